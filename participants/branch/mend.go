package branch

import (
	"context"
	"database/sql"
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"

	"github.com/lockstep-tx/lockstep/participants/barrier"
)

// This file is what a repair asks of a participant beside Mend: a barrier row that is lost is written again, an effect that is
// lost behind its row is done again. Both go by what is here, under the fence rows; neither decides anything.

// Restorable is an Inspectable whose branches can be restored.
type Restorable interface {
	// EndedAs gives the op that ended a branch by the books: confirm, cancel, or "" where none did. Nobody ends it before tx does.
	EndedAs(ctx context.Context, tx *sql.Tx, k barrier.BranchKey) (string, error)
	// OpenHolds lists holds that are open and were made before a time (unix ms), from behind the id after on, by id.
	OpenHolds(ctx context.Context, db *sql.DB, before int64, after string, limit int) ([]OpenHold, error)
	// PostedHolds lists branches that were posted from a time on and before another, alike; Since is when.
	PostedHolds(ctx context.Context, db *sql.DB, from, before int64, after string, limit int) ([]OpenHold, error)
}

// OpenHold is one line of what GET /lockstep/holds answers: a hold that nobody has ended, or, where the question has posted_from,
// one that was posted from then on.
type OpenHold struct {
	ID string `json:"id"`
	barrier.BranchKey
	Held
	Since int64 `json:"since"` // unix ms
	// Tried: the barrier has the try's row.
	Tried bool `json:"tried"`
}

// What a restore brings back.
const (
	RestoreRow    = "row"
	RestoreEffect = "effect"
)

// Restore is the question to POST /lockstep/restore.
type Restore struct {
	barrier.BranchKey
	Op   string `json:"op"`   // confirm or cancel
	What string `json:"what"` // row: the barrier's, where the books have the op; effect: the books', where the barrier has the op
	// Path of a call behind the participant's base, and the payload, for an effect; without a path the hold is ended by its name.
	Path    string `json:"path,omitempty"`
	Payload []byte `json:"payload,omitempty"`
}

// Restored says what came of it.
type Restored struct {
	Restored bool   `json:"restored"` // false: it was there already
	Why      string `json:"why,omitempty"`
}

// holdsMax bounds one answer of holds.
const holdsMax = 1000

func (p *Participant) mountMending(mux *http.ServeMux) {
	mux.HandleFunc("POST /lockstep/mend", func(w http.ResponseWriter, r *http.Request) {
		var fault, out json.RawMessage
		books, err := p.books()
		if err == nil {
			err = readJSON(w, r, &fault)
		}
		if err == nil {
			err = p.fenced(r, func(tx *sql.Tx) (err error) {
				out, err = books.Mend(r.Context(), tx, fault)
				return err
			})
		}
		p.answer(w, "mend", out, err)
	})
	mux.HandleFunc("POST /lockstep/restore", func(w http.ResponseWriter, r *http.Request) {
		var in Restore
		var out Restored
		books, err := p.restorable()
		if err == nil {
			err = readJSON(w, r, &in)
		}
		if err == nil {
			err = p.fenced(r, func(tx *sql.Tx) (err error) {
				out, err = p.restore(r.Context(), tx, books, in)
				return err
			})
		}
		p.answer(w, "restore", out, err)
	})
	mux.HandleFunc("GET /lockstep/holds", func(w http.ResponseWriter, r *http.Request) {
		q := r.URL.Query()
		before, err := strconv.ParseInt(q.Get("before"), 10, 64)
		if err != nil {
			err = fmt.Errorf("%w: before: %w", barrier.ErrInvalid, err)
		}
		from := int64(-1)
		if err == nil && q.Has("posted_from") {
			if from, err = strconv.ParseInt(q.Get("posted_from"), 10, 64); err != nil || from < 0 {
				err = fmt.Errorf("%w: posted_from: %q is no time in milliseconds", barrier.ErrInvalid, q.Get("posted_from"))
			}
		}
		var out []OpenHold
		if err == nil {
			out, err = p.holds(r.Context(), from, before, q.Get("after"))
		}
		p.answer(w, "holds", out, err)
	})
}

func (p *Participant) restorable() (Restorable, error) {
	books, ok := p.movable.(Restorable)
	if !ok {
		return nil, fmt.Errorf("%w: this participant's branches cannot be restored", barrier.ErrInvalid)
	}
	return books, nil
}

// fenced runs a repair under the fence rows of the slots that the request's headers name, as a call's do.
func (p *Participant) fenced(r *http.Request, work func(tx *sql.Tx) error) error {
	var slots []barrier.SlotEpoch
	for _, kind := range []string{"Lockstep-", "Lockstep-Account-"} {
		n, epoch := r.Header.Get(kind+"Slot"), r.Header.Get(kind+"Epoch")
		if n == "" && epoch == "" {
			continue
		}
		s := barrier.SlotEpoch{}
		var err error
		if s.Slot, err = strconv.Atoi(n); err == nil {
			s.Epoch, err = strconv.ParseInt(epoch, 10, 64)
		}
		if err != nil {
			return fmt.Errorf("%w: %sSlot and %sEpoch are numbers: %w", barrier.ErrInvalid, kind, kind, err)
		}
		slots = append(slots, s)
	}
	return p.barrier.Fenced(r.Context(), slots, work)
}

func (p *Participant) restore(ctx context.Context, tx *sql.Tx, books Restorable, in Restore) (Restored, error) {
	no := func(format string, args ...any) (Restored, error) {
		return Restored{}, fmt.Errorf("%w: branch %s of %s: %s", barrier.ErrRefused, in.Branch, in.Gid, fmt.Sprintf(format, args...))
	}
	if in.Op != barrier.OpConfirm && in.Op != barrier.OpCancel {
		return Restored{}, fmt.Errorf("%w: op: %q; confirm and cancel are possible", barrier.ErrInvalid, in.Op)
	}
	rival := barrier.OpCancel
	if in.Op == rival {
		rival = barrier.OpConfirm
	}
	ops, err := p.barrier.OpsIn(ctx, tx, in.BranchKey)
	if err != nil {
		return Restored{}, err
	}
	ended, err := books.EndedAs(ctx, tx, in.BranchKey)
	_, rivals := ops[rival]
	_, stands := ops[in.Op]
	switch {
	case err != nil:
		return Restored{}, err
	case rivals, ended == rival:
		return no("the barrier has %v and the books have %q: a person must decide", ops, ended)
	case in.What == RestoreRow && ended != in.Op:
		return no("the books do not have the %s, so that its row would be a lie", in.Op)
	case in.What == RestoreRow:
		fresh, err := p.barrier.RestoreRow(ctx, tx, in.BranchKey, in.Op)
		return Restored{Restored: fresh}, err
	case in.What != RestoreEffect:
		return Restored{}, fmt.Errorf("%w: what: %q; row and effect are possible", barrier.ErrInvalid, in.What)
	case ended == in.Op:
		return Restored{Why: "the effect is there"}, nil
	case !stands:
		return no("the barrier has no row of the %s: send the call itself", in.Op)
	}
	return Restored{Restored: true}, p.effectAgain(ctx, tx, in)
}

// effectAgain runs the branch's function behind the row that is there.
func (p *Participant) effectAgain(ctx context.Context, tx *sql.Tx, in Restore) error {
	if settler, ok := p.movable.(Settler); ok && in.Path == "" {
		return settler.Settle(ctx, tx, in.Gid, in.Branch, in.Op)
	}
	op := OpApply // which also enters what is gone altogether
	if in.Op == barrier.OpCancel {
		op = in.Op
	}
	path := "/" + branchOf(in.Path) + "/" + op
	o, ok := p.branches[path]
	if !ok {
		return fmt.Errorf("%w: no branch is served at %q", errNoBranch, path)
	}
	call := &barrier.Call{TransType: "tcc", Gid: in.Gid, BranchID: in.Branch, Op: in.Op, Apply: op == OpApply}
	return o.run(ctx, tx, call, in.Payload, false)
}

// holds lists open holds; with a time posted ones from then on.
func (p *Participant) holds(ctx context.Context, postedFrom, before int64, after string) (out []OpenHold, err error) {
	books, err := p.restorable()
	switch {
	case err != nil:
		return nil, err
	case postedFrom < 0:
		out, err = books.OpenHolds(ctx, p.barrier.DB(), before, after, holdsMax)
	default:
		out, err = books.PostedHolds(ctx, p.barrier.DB(), postedFrom, before, after, holdsMax)
	}
	if err != nil {
		return nil, err
	}
	keys := make([]barrier.BranchKey, len(out))
	for i := range out {
		keys[i] = out[i].BranchKey
	}
	ops, err := p.barrier.Ops(ctx, keys)
	for i := range out {
		_, out[i].Tried = ops[out[i].BranchKey]["try"]
	}
	return out, err
}
