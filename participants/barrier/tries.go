package barrier

import (
	"cmp"
	"context"
	"database/sql"
	"fmt"
	"slices"
	"strings"
)

// The states of a branch in the list of tries.
const (
	StateTried     = "tried"
	StateConfirmed = "confirmed"
	StateCancelled = "cancelled"
)

// Try is a branch of a transaction that has a try here which nobody ended.
type Try struct {
	BranchKey
	TransType  string `json:"trans_type"`
	Durability string `json:"durability"` // as the try said it: regional or global
	State      string `json:"state"`      // tried, confirmed or cancelled
}

// Tries lists, of every transaction of the slots that has a try here which no confirm and no cancel ended, every branch that
// is tried, confirmed or cancelled, by gid and branch. cancelled is what a coordinator's cancel ended, one that came before
// its try included: it proves a decision. A tombstone that a fence wrote proves nothing and is left out. The barrier's table
// is read once, whatever the number of slots. ErrInvalid names the field.
func (b *Barrier) Tries(ctx context.Context, slots []int) ([]Try, error) {
	if len(slots) == 0 {
		return nil, fmt.Errorf("%w: slots: none is named", ErrInvalid)
	}
	asked := map[int]bool{}
	for i, n := range slots {
		if n < 0 || n >= SlotCount {
			return nil, fmt.Errorf("%w: slots[%d]: %d; 0 to %d are possible", ErrInvalid, i, n, SlotCount-1)
		}
		asked[n] = true
	}
	gids, err := b.open(ctx, asked)
	if err != nil {
		return nil, fmt.Errorf("list the open tries: %w", err)
	}
	out := []Try{}
	for part := range slices.Chunk(gids, opsAtOnce) {
		some, err := b.triesOf(ctx, part)
		if err != nil {
			return nil, fmt.Errorf("list the open tries: %w", err)
		}
		out = append(out, some...)
	}
	slices.SortFunc(out, func(x, y Try) int {
		return cmp.Or(strings.Compare(x.Gid, y.Gid), strings.Compare(x.Branch, y.Branch))
	})
	return out, nil
}

// open gives the gids of the slots that have a try which nobody ended. What ended one is found by the table's unique key.
func (b *Barrier) open(ctx context.Context, asked map[int]bool) ([]any, error) {
	table := b.dialect.table()
	rows, err := b.db.QueryContext(ctx, "SELECT DISTINCT t.gid FROM "+table+" t WHERE t.op = 'try' AND t.reason = 'try' AND t.barrier_id = '01' AND NOT EXISTS (SELECT 1 FROM "+table+
		" e WHERE e.gid = t.gid AND e.branch_id = t.branch_id AND e.op IN ('confirm', 'cancel') AND e.barrier_id = '01')")
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var gids []any
	for rows.Next() {
		var gid string
		if err := rows.Scan(&gid); err != nil {
			return nil, err
		}
		if asked[SlotOf(gid)] {
			gids = append(gids, gid)
		}
	}
	return gids, rows.Err()
}

// triesOf reads the branches of a few transactions; those of which no try is open any more are left out.
func (b *Barrier) triesOf(ctx context.Context, gids []any) ([]Try, error) {
	found := map[BranchKey]*Try{}
	in := make([]string, len(gids))
	for i := range gids {
		in[i] = b.dialect.arg(i + 1)
	}
	which := " WHERE gid IN (" + strings.Join(in, ", ") + ")"
	err := b.each(ctx, "SELECT gid, branch_id, trans_type, op, reason FROM "+b.dialect.table()+which+" AND barrier_id = '01'", gids, func(rows *sql.Rows) error {
		t := Try{Durability: DurabilityRegional}
		var op, reason string
		if err := rows.Scan(&t.Gid, &t.Branch, &t.TransType, &op, &reason); err != nil {
			return err
		}
		if t.State = stateOf(op, reason); t.State == "" {
			return nil
		}
		if was := found[t.BranchKey]; was == nil || was.State == StateTried {
			found[t.BranchKey] = &t
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	err = b.each(ctx, "SELECT gid, branch_id FROM "+b.beside("touched")+which+" AND durability = '"+DurabilityGlobal+"'", gids, func(rows *sql.Rows) error {
		var k BranchKey
		if err := rows.Scan(&k.Gid, &k.Branch); err != nil {
			return err
		}
		if t := found[k]; t != nil {
			t.Durability = DurabilityGlobal
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	isOpen := map[string]bool{}
	for k, t := range found {
		isOpen[k.Gid] = isOpen[k.Gid] || t.State == StateTried
	}
	var out []Try
	for k, t := range found {
		if isOpen[k.Gid] {
			out = append(out, *t)
		}
	}
	return out, nil
}

// stateOf says what a row is evidence of; "" for none.
func stateOf(op, reason string) string {
	switch {
	case op == OpTry && reason == OpTry:
		return StateTried
	case op == OpConfirm && reason == OpConfirm:
		return StateConfirmed
	case op == OpCancel && reason == OpCancel:
		return StateCancelled
	}
	return ""
}

func (b *Barrier) each(ctx context.Context, query string, args []any, f func(*sql.Rows) error) error {
	rows, err := b.db.QueryContext(ctx, query, args...)
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		if err := f(rows); err != nil {
			return err
		}
	}
	return rows.Err()
}
