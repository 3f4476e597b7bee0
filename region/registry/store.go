package registry

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/lockstep-tx/lockstep/region/arbiter"
)

// table is where the participants are in the arbiter.
const table = "participant"

// Load reads all participants.
func Load(ctx context.Context, a *arbiter.Arbiter) (*Table, error) {
	rows, err := a.List(ctx, table, "")
	if err != nil {
		return nil, err
	}
	list := make([]Participant, len(rows))
	for i, row := range rows {
		if err := json.Unmarshal(row.Value, &list[i]); err != nil {
			return nil, fmt.Errorf("participant %q in the arbiter: %w", row.Key, err)
		}
		list[i].Rev = row.Rev
	}
	return NewTable(list), nil
}

// Set writes a participant, new or changed, if it is still as it was read (Rev; 0 for a new one): arbiter.ErrChanged.
func Set(ctx context.Context, a *arbiter.Arbiter, p Participant) error {
	value, err := json.Marshal(p)
	if err != nil {
		return err
	}
	_, err = a.Put(ctx, table, arbiter.Row{Key: p.Name, Value: value, Rev: p.Rev})
	return err
}

// Remove takes a participant away. Branches that name it are not called until it is back; effects for copies behind absolute
// URLs of it are not applied meanwhile, and not later.
func Remove(ctx context.Context, a *arbiter.Arbiter, p Participant) error {
	return a.Delete(ctx, table, p.Name, p.Rev)
}

// Registry keeps the table up to date. Safe for concurrent use.
type Registry struct {
	a   *arbiter.Arbiter
	log *slog.Logger
	now atomic.Pointer[Table]
}

// New makes a Registry. log may be nil.
func New(a *arbiter.Arbiter, log *slog.Logger) *Registry {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	return &Registry{a: a, log: log}
}

// Table is what is known now; nil until the arbiter was heard for the first time: that is not the same as no participants.
func (r *Registry) Table() *Table { return r.now.Load() }

// Run follows the arbiter until ctx ends. What was known stays while the arbiter does not answer.
func (r *Registry) Run(ctx context.Context) {
	r.a.Watch(ctx, table, func() {
		for ctx.Err() == nil {
			lctx, cancel := context.WithTimeout(ctx, 3*time.Second)
			t, err := Load(lctx, r.a)
			cancel()
			if err == nil {
				r.now.Store(t)
				return
			}
			r.log.Warn("the participants could not be read; what was known stays", "err", err)
			select {
			case <-time.After(time.Second):
			case <-ctx.Done():
			}
		}
	})
}
