package branch

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"

	"github.com/lockstep-tx/lockstep/participants/barrier"
)

// This file is what a participant serves after the loss of a region (ADR 9): what was tried, higher fences, homes that nobody
// released, and the end of a try whose record is lost.

// Settler is a Movable that keeps what it holds by gid and branch, and can end it by that name. It runs behind the barrier
// rows of the ordinary confirm or cancel, so that one of them takes effect.
type Settler interface {
	// Settle ends what the branch's try holds: op is barrier.OpConfirm or barrier.OpCancel. An error that wraps
	// barrier.ErrNotTried says that nothing is held.
	Settle(ctx context.Context, tx *sql.Tx, gid, branch, op string) error
}

// Holder is a Movable that can say what branches hold.
type Holder interface {
	// Held gives what the open holds of branches hold; a branch that holds nothing is left out.
	Held(ctx context.Context, db *sql.DB, branches []barrier.BranchKey) (map[barrier.BranchKey]Held, error)
}

// Held is what an open hold holds of one account.
type Held struct {
	Account  string `json:"account,omitempty"`
	Amount   int64  `json:"amount,omitempty"` // in minor units
	Currency string `json:"currency,omitempty"`
	Debit    bool   `json:"debit"` // the account is debited; else it is credited
}

// Try is one line of what POST /lockstep/tries answers.
type Try struct {
	barrier.Try
	Held
}

var errNoSettler = errors.New("this participant cannot end a try by its name")

func (p *Participant) mountForced(mux *http.ServeMux) {
	mux.HandleFunc("POST /lockstep/tries", func(w http.ResponseWriter, r *http.Request) {
		var in struct {
			Slots []int `json:"slots"`
		}
		err := readJSON(w, r, &in)
		var out struct {
			Tries []Try `json:"tries"`
		}
		if err == nil {
			out.Tries, err = p.tries(r.Context(), in.Slots)
		}
		p.answer(w, "tries", out, err)
	})
	mux.HandleFunc("POST /lockstep/fence", func(w http.ResponseWriter, r *http.Request) {
		var slots []barrier.SlotEpoch
		err := readJSON(w, r, &slots)
		if err == nil {
			err = p.barrier.Raise(r.Context(), slots)
		}
		p.answer(w, "fence", struct{}{}, err)
	})
	mux.HandleFunc("POST /lockstep/risk", func(w http.ResponseWriter, r *http.Request) {
		var in struct {
			Slots []barrier.SlotEpoch `json:"slots"`
		}
		err := readJSON(w, r, &in)
		if err == nil {
			err = p.barrier.LiftRisk(r.Context(), in.Slots)
		}
		p.answer(w, "risk", struct{}{}, err)
	})
	mux.Handle("POST /lockstep/settle", handler(p.options.Log, func(ctx context.Context, call *barrier.Call, _ []byte) error {
		return p.settle(ctx, call)
	}))
}

func (p *Participant) tries(ctx context.Context, slots []int) ([]Try, error) {
	found, err := p.barrier.Tries(ctx, slots)
	if err != nil {
		return nil, err
	}
	out := make([]Try, len(found))
	var open []barrier.BranchKey
	for i, t := range found {
		out[i].Try = t
		if t.State == barrier.StateTried {
			open = append(open, t.BranchKey)
		}
	}
	holder, ok := p.movable.(Holder)
	if !ok || len(open) == 0 {
		return out, nil
	}
	held, err := holder.Held(ctx, p.barrier.DB(), open)
	if err != nil {
		return nil, err
	}
	for i := range out {
		if out[i].State == barrier.StateTried {
			out[i].Held = held[out[i].BranchKey]
		}
	}
	return out, nil
}

// settle ends a branch's try by its name, among the ordinary calls.
func (p *Participant) settle(ctx context.Context, call *barrier.Call) error {
	settler, ok := p.movable.(Settler)
	if !ok {
		return errNoSettler
	}
	if call.Op != barrier.OpConfirm && call.Op != barrier.OpCancel {
		return fmt.Errorf("%w: op: %q; confirm and cancel are possible", barrier.ErrInvalid, call.Op)
	}
	o := operation{op: call.Op, run: func(ctx context.Context, tx *sql.Tx, call *barrier.Call, _ []byte, _ bool) error {
		return settler.Settle(ctx, tx, call.Gid, call.BranchID, call.Op)
	}}
	return doOne(ctx, p, o, call, nil, false)
}

// isForced reads whether an adoption is forced; what goes with that alone is refused elsewhere.
func isForced(r *http.Request) (bool, error) {
	q := r.URL.Query()
	switch f := q.Get("forced"); f {
	case "true":
		return true, nil
	case "", "false":
	default:
		return false, fmt.Errorf("%w: forced: %q; true and false are possible", barrier.ErrInvalid, f)
	}
	for _, field := range []string{"at_risk", "cap"} {
		if q.Has(field) {
			return false, fmt.Errorf("%w: %s: it goes with forced=true", barrier.ErrInvalid, field)
		}
	}
	return false, nil
}

// adoptForced adopts the slots of the body in one local transaction, or the one that the query names.
func (p *Participant) adoptForced(w http.ResponseWriter, r *http.Request) error {
	if p.movable == nil {
		return fmt.Errorf("%w: this participant's accounts cannot be moved", barrier.ErrInvalid)
	}
	q := r.URL.Query()
	var in struct {
		Slots []barrier.SlotEpoch `json:"slots"`
	}
	if q.Has("slot") {
		n, epoch, err := slotAndEpoch(r)
		if err != nil {
			return err
		}
		if n, err := io.ReadFull(http.MaxBytesReader(w, r.Body, 1), make([]byte, 1)); n > 0 || !errors.Is(err, io.EOF) {
			return fmt.Errorf("%w: body: a forced adoption takes nothing over; send none, or the slots alone", barrier.ErrInvalid)
		}
		in.Slots = []barrier.SlotEpoch{{Slot: n, Epoch: epoch}}
	} else if err := readJSON(w, r, &in); err != nil {
		return err
	}
	policy := barrier.Policy{Risk: barrier.Risk(q.Get("at_risk"))}
	if q.Has("cap") || policy.Risk == barrier.RiskLimit {
		var err error
		if policy.Cap, err = strconv.ParseInt(q.Get("cap"), 10, 64); err != nil {
			return fmt.Errorf("%w: cap: %q; it is in minor units, 0 or more, and goes with at_risk=limit", barrier.ErrInvalid, q.Get("cap"))
		}
	}
	return p.barrier.AdoptForced(r.Context(), policy, in.Slots...)
}
