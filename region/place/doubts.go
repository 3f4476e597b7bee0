package place

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/lockstep-tx/lockstep/coordinator/engine"
	"github.com/lockstep-tx/lockstep/coordinator/txn"
	"github.com/lockstep-tx/lockstep/region/failover/recovery"
	"github.com/lockstep-tx/lockstep/region/slot"
)

// This file finds what is in doubt after a forced failover (ADR 9): tries that stand at surviving participants and that nobody
// knows a record of. The participants' fence rows are raised first, so that what is read stays true.

// doubtsEvery is how often the participants are asked while a loss is not worked off: one may not have answered, and a client
// that makes its tries itself may still make one.
const doubtsEvery = 10 * time.Second

// doubtsPatience is how long a participant that does not answer is waited for: what is made of the others' tries has not the
// branches that it holds.
const doubtsPatience = time.Minute

// FindDoubts looks for tries without a record in the slots that mine accepts and that were taken by force, until ctx ends.
// do carries out a request at this region.
func (p *Place) FindDoubts(ctx context.Context, mine func(n int) bool, do func(context.Context, engine.Request) (engine.Reply, error)) {
	var looked [slot.Count]time.Time
	var since time.Time // somebody does not answer
	for ctx.Err() == nil {
		var moves []engine.Move
		if m := p.owners.Load(); m != nil {
			for n, o := range m {
				if o.Region == p.cfg.Self && o.Lost != 0 && o.Status == slot.Active && mine(n) && time.Since(looked[n]) > doubtsEvery {
					moves = append(moves, engine.Move{Slot: n, Owner: o})
				}
			}
		}
		if len(moves) > 0 {
			err := p.findDoubts(ctx, moves, !since.IsZero() && time.Since(since) > doubtsPatience, do)
			switch {
			case err == nil:
				since = time.Time{}
			case since.IsZero():
				since = time.Now()
			}
			if err != nil && ctx.Err() == nil {
				p.cfg.Log.Warn("not everybody was asked for tries without a record; asking again", "slots", len(moves), "err", err)
			}
			for _, m := range moves {
				looked[m.Slot] = time.Now()
			}
		}
		select {
		case <-p.Changed():
		case <-time.After(time.Second):
		case <-ctx.Done():
		}
	}
}

func (p *Place) findDoubts(ctx context.Context, moves []engine.Move, partly bool, do func(context.Context, engine.Request) (engine.Reply, error)) error {
	dep, err := p.cfg.Arbiter.Deployment(ctx) // as it is now: it may have been restored since this process began
	if err != nil {
		return err
	}
	tries, err := p.tries(ctx, moves)
	if err != nil && !partly {
		return err
	}
	epochs := map[int]slot.Epoch{}
	for _, m := range moves {
		epochs[m.Slot] = m.Owner.Epoch
	}
	errs := []error{err}
	for gid, list := range tries {
		n := slot.Of(string(gid))
		if err := p.doubt(ctx, engine.Move{Slot: n, Owner: slot.Owner{Epoch: epochs[n]}}, gid, list, dep.RestoredEpoch == 0, do); err != nil {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// tries raises the fences of slots at every participant that survives, and asks for the tries that stand there.
func (p *Place) tries(ctx context.Context, moves []engine.Move) (map[txn.Gid][]recovery.Try, error) {
	t := p.registry.Table()
	if t == nil {
		return nil, errUnknown
	}
	var fences []map[string]any
	var slots []int
	lost := map[string]bool{}
	for _, m := range moves {
		fences = append(fences, map[string]any{"slot": m.Slot, "epoch": m.Owner.Epoch})
		slots = append(slots, m.Slot)
		lost[p.dep.Name(m.Owner.Lost.Region())] = true
	}
	out := map[txn.Gid][]recovery.Try{}
	var errs []error
	var mu sync.Mutex
	var all sync.WaitGroup
	for _, part := range t.All() {
		if part.Can == nil || !part.Can.Tries {
			continue
		}
		for region, endpoint := range part.Endpoints {
			if lost[region] || !isHTTP(endpoint) {
				continue
			}
			all.Go(func() {
				list, err := p.triesAt(ctx, endpoint, fences, slots)
				mu.Lock()
				defer mu.Unlock()
				if err != nil {
					errs = append(errs, fmt.Errorf("participant %s in %s: %w", part.Name, region, err))
				}
				for _, one := range list {
					one.Participant = part.Name
					out[one.Gid] = append(out[one.Gid], one)
				}
			})
		}
	}
	all.Wait()
	return out, errors.Join(errs...)
}

// wireTry is a try as a participant tells of it.
type wireTry struct {
	Gid        string `json:"gid"`
	Branch     string `json:"branch"`
	TransType  string `json:"trans_type"`
	Durability string `json:"durability"`
	State      string `json:"state"`
	Account    string `json:"account"`
	Amount     int64  `json:"amount"`
	Currency   string `json:"currency"`
	Debit      bool   `json:"debit"`
}

func (p *Place) triesAt(ctx context.Context, endpoint string, fences []map[string]any, slots []int) ([]recovery.Try, error) {
	if len(fences) > 0 {
		if _, err := p.post(ctx, endpoint, "/lockstep/fence", fences); err != nil {
			return nil, fmt.Errorf("raise its fences: %w", err)
		}
	}
	return Tries(ctx, p.cfg.HTTP, endpoint, slots)
}

// Tries asks a participant's endpoint for the tries of transactions of slots that nobody has ended there.
func Tries(ctx context.Context, client *http.Client, endpoint string, slots []int) ([]recovery.Try, error) {
	raw, err := (&Place{cfg: Config{HTTP: client}}).post(ctx, endpoint, "/lockstep/tries", map[string]any{"slots": slots})
	if err != nil {
		return nil, err
	}
	var answer struct {
		Tries []wireTry `json:"tries"`
	}
	if err := json.Unmarshal(raw, &answer); err != nil {
		return nil, fmt.Errorf("its tries: %w", err)
	}
	out := make([]recovery.Try, len(answer.Tries))
	for i, w := range answer.Tries {
		mode, _ := txn.ParseMode(w.TransType) // a word that is no mode of ours is taken for TCC
		out[i] = recovery.Try{
			Gid: txn.Gid(w.Gid), Branch: txn.BranchID(w.Branch), Mode: mode, Global: strings.EqualFold(w.Durability, txn.Global.String()),
			State: w.State, Account: w.Account, Amount: w.Amount, Currency: w.Currency, Debit: w.Debit,
		}
	}
	return out, nil
}

// doubt makes a live transaction of tries that nobody knows a record of. conclusive: what the arbiter does not know was not
// decided globally.
func (p *Place) doubt(ctx context.Context, m engine.Move, gid txn.Gid, tries []recovery.Try, conclusive bool, do func(context.Context, engine.Request) (engine.Reply, error)) error {
	ctx, cancel := context.WithTimeout(ctx, returnedTimeout)
	defer cancel()
	rep, err := do(ctx, engine.Request{Gid: gid, Want: engine.WantAccepted})
	if err != nil {
		return err
	}
	slices.SortFunc(tries, func(a, b recovery.Try) int { return strings.Compare(string(a.Branch), string(b.Branch)) })
	tx, proven, err := recovery.Doubt(gid, tries, p.begun(gid), uint64(m.Owner.Epoch))
	if err != nil {
		p.cfg.Log.Error("participants contradict each other; an operator must look", "gid", gid, "err", err)
	}
	if rep.State.Phase != txn.PhaseNone {
		return p.known(ctx, m, &rep.State, tries, proven, do)
	}
	if err == nil && tx.State.Opt.Durability == txn.Global && conclusive {
		// The arbiter's silence is conclusive once abort is written there, and it is before a cancel leaves.
		if tx, err = recovery.Aborted(tx, time.Now().UnixMilli()); err != nil {
			return err
		}
		proven = nil
	}
	if err := p.take(ctx, gid, engine.Adopt{Tx: *tx}, do); err != nil {
		return err
	}
	p.cfg.Log.Warn("a transaction of the lost region stands at participants and has no record", "gid", gid, "branches", len(tx.State.Branches),
		"durability", tx.State.Opt.Durability.String(), "in_doubt", tx.State.InDoubt, "proven", proven != nil)
	if proven == nil {
		return nil
	}
	return p.take(ctx, gid, txn.Resolve{Commit: *proven, Reason: "a surviving participant proves it"}, do)
}

// known is what tries mean to a transaction that is known here: evidence where it is in doubt; and where it has ended, the end of
// those that nobody knew of when it was decided.
func (p *Place) known(ctx context.Context, m engine.Move, s *txn.State, tries []recovery.Try, proven *bool, do func(context.Context, engine.Request) (engine.Reply, error)) error {
	if s.InDoubt && proven != nil {
		return p.take(ctx, s.Gid, txn.Resolve{Commit: *proven, Reason: "a surviving participant proves it"}, do)
	}
	if !s.Phase.Finished() || s.Mode != txn.ModeTCC {
		return nil // it is driven
	}
	op := txn.OpCancel
	if s.Phase.Commit() {
		op = txn.OpConfirm
	}
	var errs []error
	for _, t := range tries {
		named := slices.ContainsFunc(s.Branches, func(b txn.Branch) bool { return b.ID == t.Branch })
		if t.State == recovery.Tried && !named && len(s.Branches) > 0 {
			errs = append(errs, p.cfg.End(ctx, m, t, op))
		}
	}
	return errors.Join(errs...)
}

// take carries out a request; that the transaction is known meanwhile is as good.
func (p *Place) take(ctx context.Context, gid txn.Gid, ev txn.Event, do func(context.Context, engine.Request) (engine.Reply, error)) error {
	_, err := do(ctx, engine.Request{Gid: gid, Event: ev, Want: engine.WantAccepted})
	var known *txn.Error
	if errors.As(err, &known) && (known.Code == txn.CodeMismatch || known.Code == txn.CodePhase) {
		return nil
	}
	return err
}

// begun is when a transaction began, as far as its gid says; else now.
func (p *Place) begun(gid txn.Gid) int64 {
	if at, ok := slot.TimeOf(string(gid)); ok {
		return at.UnixMilli()
	}
	return time.Now().UnixMilli()
}

// Effect is what a confirm does to an account: Amount in minor units, taken from it where Debit.
type Effect struct {
	Account  string `json:"account"`
	Amount   int64  `json:"amount"`
	Currency string `json:"currency"`
	Debit    bool   `json:"debit"`
}

// Effects asks a participant's endpoint what a branch's confirm does; path is the confirm's behind the endpoint. An error where
// it does not say.
func Effects(ctx context.Context, client *http.Client, endpoint, path string, payload []byte) ([]Effect, error) {
	if !isHTTP(endpoint) {
		return nil, fmt.Errorf("%s is no HTTP address", endpoint)
	}
	raw, err := (&Place{cfg: Config{HTTP: client}}).post(ctx, endpoint, "/lockstep/effects", []map[string]any{{"path": path, "payload": payload}})
	if err != nil {
		return nil, err
	}
	var answer []struct {
		Known bool     `json:"known"`
		Legs  []Effect `json:"legs"`
		Error string   `json:"error"`
	}
	switch err := json.Unmarshal(raw, &answer); {
	case err != nil:
		return nil, fmt.Errorf("its effects: %w", err)
	case len(answer) != 1 || !answer[0].Known:
		return nil, fmt.Errorf("it does not say what %s does", path)
	}
	return answer[0].Legs, nil
}
