package payment

import (
	"context"
	"errors"
	"fmt"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/lockstep-tx/lockstep/coordinator/api/client"
	"github.com/lockstep-tx/lockstep/participants/ledger"
)

// buyerBranch is the branch that moves the buyer's money, of payments and of refunds.
const buyerBranch = "buyer"

// drive runs a payment's transaction, or asks what became of it, and books a decision. fresh says that this call wrote the
// payment down: nobody has sent its transaction yet.
func (s *Service) drive(ctx context.Context, p *Payment, fresh bool) error {
	st, reason, err := s.decide(ctx, p.Gid, fresh, func() (client.Tx, error) { return s.transaction(p) })
	if err != nil && ctx.Err() == nil {
		s.Log.Warn("a payment's outcome is not known; it is asked for again", "payment", p.ID, "gid", p.Gid, "err", err)
	}
	if err != nil || st == Processing {
		return nil // it goes on
	}
	if p.State = st; st == Refused {
		p.Reason, p.Field = reasonOf(reason)
	}
	p.DecidedMS = s.Now().UnixMilli()
	return s.decided(context.WithoutCancel(ctx), p)
}

// decide gives what was decided of a transaction, and a refusal's reason; Processing if ctx ends before.
//
// Only what nobody has sent is executed outright. Anything else is asked for by its gid: the participants may be served at
// another address by now, which would be another body under the same gid. What the coordinator does not know was never sent
// or has ended long ago, and was cleaned out of the barriers since, so that its tries would be refused: the ledger tells
// the two apart.
func (s *Service) decide(ctx context.Context, gid string, fresh bool, transaction func() (client.Tx, error)) (st State, reason string, err error) {
	if !fresh {
		now, known, err := s.watch(ctx, gid, func(now client.State) bool { return now.Committed() || now.Aborted() })
		if err != nil || known {
			return stateOf(now), now.GetReason(), err
		}
		held, err := s.Held(ctx, ledger.HoldID(gid, buyerBranch))
		switch {
		case err != nil:
			return Processing, "", err
		case held == "posted":
			return Paid, "", nil
		case held == "voided":
			return Refused, "forgotten", nil
		}
	}
	t, err := transaction()
	if err != nil {
		return Processing, "", err
	}
	until := client.Decided
	if fresh && ctx.Err() != nil { // the caller waits for nothing; it goes out all the same
		until = client.Accepted
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(context.WithoutCancel(ctx), settleAsk)
		defer cancel()
	}
	now, err := s.Coordinator.Execute(ctx, t, until)
	if err != nil {
		return Processing, "", err
	}
	return stateOf(now), now.GetReason(), nil
}

func stateOf(st client.State) State {
	switch {
	case st.Committed():
		return Paid
	case st.Aborted():
		return Refused
	}
	return Processing
}

// settled says whether all that a refund takes from has been posted: the ledger and the merchant would refuse it for good
// before, and the confirms may be on their way yet. It waits until then or until ctx ends.
func (s *Service) settled(ctx context.Context, p *Payment) (bool, error) {
	now, known, err := s.watch(ctx, p.Gid, confirmed)
	if err != nil || known {
		return err == nil && confirmed(now), err
	}
	held, err := s.Held(ctx, ledger.HoldID(p.Gid, buyerBranch))
	return held == "posted", err // the coordinator forgets what has ended everywhere
}

// confirmed says that every participant has answered its confirm; messages may be on their way.
func confirmed(st client.State) bool {
	if !st.Committed() {
		return false
	}
	for _, b := range st.GetBranches() {
		if !b.GetMessage() && b.GetSecondStatus() != "done" {
			return false
		}
	}
	return true
}

var errEnough = errors.New("enough is known")

// watch waits until enough of a transaction is known, or ctx ends; known is false where the coordinator does not know it.
func (s *Service) watch(ctx context.Context, gid string, enough func(client.State) bool) (st client.State, known bool, err error) {
	err = s.Coordinator.Watch(ctx, gid, func(now client.State) error {
		if st = now; enough(now) {
			return errEnough
		}
		return nil
	})
	switch {
	case err == nil || errors.Is(err, errEnough):
		return st, true, nil
	case status.Code(err) == codes.NotFound:
		return st, false, nil
	}
	return st, false, fmt.Errorf("ask for %s: %w", gid, err)
}
