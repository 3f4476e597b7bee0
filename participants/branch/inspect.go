package branch

import (
	"context"
	"database/sql"
	"encoding/json"
	"fmt"
	"net/http"

	"github.com/lockstep-tx/lockstep/participants/barrier"
)

// Inspectable is what a reconciler may ask of a participant's books. Its answers are the participant's own JSON.
type Inspectable interface {
	// Inspect says what the books have of branches, of each in its place.
	Inspect(ctx context.Context, db *sql.DB, branches []barrier.BranchKey) ([]json.RawMessage, error)
	// Check lists what is wrong in the books by themselves.
	Check(ctx context.Context, db *sql.DB) (json.RawMessage, error)
	// Mend sets one thing right that Check has listed, from what the books have elsewhere; it says what was and what is.
	Mend(ctx context.Context, tx *sql.Tx, fault json.RawMessage) (json.RawMessage, error)
}

// Inspected is what a participant has of one branch.
type Inspected struct {
	barrier.BranchKey
	// Ops are the barrier's rows: the op, and the op that wrote it (a cancel's tombstone stands as try by cancel).
	Ops map[string]string `json:"ops"`
	// Books is what Inspectable says; absent where the participant's books cannot be asked.
	Books json.RawMessage `json:"books,omitempty"`
}

// inspectMax bounds the branches of one question.
const inspectMax = 1000

func (p *Participant) mountInspection(mux *http.ServeMux) {
	mux.HandleFunc("POST /lockstep/inspect", func(w http.ResponseWriter, r *http.Request) {
		var ask []barrier.BranchKey
		err := readJSON(w, r, &ask)
		if err == nil && len(ask) > inspectMax {
			err = fmt.Errorf("%w: %d branches; at most %d are answered", barrier.ErrInvalid, len(ask), inspectMax)
		}
		var out []Inspected
		if err == nil {
			out, err = p.inspect(r.Context(), ask)
		}
		p.answer(w, "inspect", out, err)
	})
	mux.HandleFunc("GET /lockstep/check", func(w http.ResponseWriter, r *http.Request) {
		books, err := p.books()
		var out json.RawMessage
		if err == nil {
			out, err = books.Check(r.Context(), p.barrier.DB())
		}
		p.answer(w, "check", out, err)
	})
}

// inspect reads barrier and books of branches. They are read one after the other: a branch that ends in between is shown with
// its older rows and its newer books.
func (p *Participant) inspect(ctx context.Context, ask []barrier.BranchKey) ([]Inspected, error) {
	ops, err := p.barrier.Ops(ctx, ask)
	if err != nil {
		return nil, err
	}
	out := make([]Inspected, len(ask))
	for i, k := range ask {
		out[i] = Inspected{BranchKey: k, Ops: ops[k]}
	}
	books, ok := p.movable.(Inspectable)
	if !ok {
		return out, nil
	}
	have, err := books.Inspect(ctx, p.barrier.DB(), ask)
	if err != nil {
		return nil, err
	}
	if len(have) != len(ask) {
		return nil, fmt.Errorf("the books answer %d of %d questions", len(have), len(ask))
	}
	for i := range out {
		out[i].Books = have[i]
	}
	return out, nil
}

func (p *Participant) books() (Inspectable, error) {
	books, ok := p.movable.(Inspectable)
	if !ok {
		return nil, fmt.Errorf("%w: this participant's books cannot be asked", barrier.ErrInvalid)
	}
	return books, nil
}
