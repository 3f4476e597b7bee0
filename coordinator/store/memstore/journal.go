package memstore

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"sync"

	"github.com/lockstep-tx/lockstep/coordinator/engine"
	"github.com/lockstep-tx/lockstep/coordinator/record"
	"github.com/lockstep-tx/lockstep/coordinator/txn"
)

// Journal is an engine.Journal in memory, for tests and simulation.
type Journal struct {
	mu     sync.Mutex
	rows   map[txn.Gid]int
	order  []engine.Row
	events []record.Event
	fault  error // what Append answers; nil while it works
}

// NewJournal makes an empty journal.
func NewJournal() *Journal { return &Journal{rows: map[txn.Gid]int{}} }

var _ engine.Journal = (*Journal)(nil)

// Break makes every Append fail with err and store nothing; nil heals it.
func (j *Journal) Break(err error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.fault = err
}

// Append is engine.Journal's.
func (j *Journal) Append(ctx context.Context, rows []engine.Row) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.fault != nil {
		return j.fault
	}
	for _, row := range rows {
		i, ok := j.rows[row.Gid]
		switch {
		case !ok:
			j.rows[row.Gid] = len(j.order)
			j.order = append(j.order, row)
		case row.Finish.Seq != 0 || j.order[i].Finish.Seq == 0:
			j.order[i] = row
		}
	}
	return nil
}

// AppendEvents is engine.Journal's.
func (j *Journal) AppendEvents(ctx context.Context, events []record.Event) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.fault != nil {
		return j.fault
	}
	for _, e := range events {
		if !slices.ContainsFunc(j.events, func(have record.Event) bool { return have.Slot == e.Slot && have.Head == e.Head }) {
			j.events = append(j.events, e)
		}
	}
	return nil
}

// Carried gives the live records that left with a slot at the end of an epoch, without those that have finished since.
func (j *Journal) Carried(n int, epoch uint64) [][]byte {
	j.mu.Lock()
	defer j.mu.Unlock()
	latest := map[txn.Gid][]byte{}
	for _, e := range j.events {
		if e.Slot == n && e.Epoch == epoch && e.Kind == record.KindCarry {
			latest[e.Gid] = e.Body
		}
	}
	var out [][]byte
	for _, gid := range slices.Sorted(maps.Keys(latest)) {
		if i, ok := j.rows[gid]; !ok || j.order[i].Finish.Seq == 0 {
			out = append(out, latest[gid])
		}
	}
	return out
}

func txOf(row *engine.Row) (*record.Tx, error) {
	tx, err := record.FromParts(row.Closed, row.Progress, row.Decision, row.Finish, row.DecisionEpoch, row.FinishEpoch)
	if err != nil {
		return nil, fmt.Errorf("journal row %q: %w", string(row.Gid), err)
	}
	return tx, nil
}

// Get is engine.Journal's.
func (j *Journal) Get(_ context.Context, gid txn.Gid) (*record.Tx, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	i, ok := j.rows[gid]
	if !ok {
		return nil, nil
	}
	return txOf(&j.order[i])
}

// Gids is engine.Journal's.
func (j *Journal) Gids(_ context.Context, each func(txn.Gid)) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	for gid := range j.rows {
		each(gid)
	}
	return nil
}

// List is engine.Journal's.
func (j *Journal) List(_ context.Context, f engine.Filter, cursor string, limit int, visibleSince int64) ([]*record.Tx, string, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	from := len(j.order)
	if cursor != "" {
		n, err := strconv.Atoi(cursor)
		if err != nil {
			return nil, "", fmt.Errorf("cursor %q: %w", cursor, err)
		}
		from = min(from, n)
	}
	var out []*record.Tx
	for i := from - 1; i >= 0; i-- {
		if j.order[i].Finish.Seq == 0 || j.order[i].FinishedAt < visibleSince {
			continue
		}
		tx, err := txOf(&j.order[i])
		if err != nil {
			return nil, "", err
		}
		if f.Matches(&tx.State) {
			if out = append(out, tx); len(out) == limit {
				return out, strconv.Itoa(i), nil
			}
		}
	}
	return out, "", nil
}

// Trim is engine.Journal's; it drops nothing.
func (j *Journal) Trim(context.Context, int64, int64, int) (int, error) { return 0, nil }

// Rows gives a copy of all rows in the order of their first arrival.
func (j *Journal) Rows() []engine.Row {
	j.mu.Lock()
	defer j.mu.Unlock()
	return append([]engine.Row(nil), j.order...)
}
