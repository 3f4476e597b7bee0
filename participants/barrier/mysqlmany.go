package barrier

import (
	"context"
	"database/sql"
	"fmt"
	"slices"
	"strings"
)

// together says whether members can be entered as sets: nothing is raised, and none writes another op's row, which a cancel
// may find there or not.
func together(locks []lock, members []member) bool {
	return len(members) > 1 && !slices.ContainsFunc(locks, func(l lock) bool { return l.exclusive }) &&
		!slices.ContainsFunc(members, func(m member) bool { return m.undone != "" })
}

// enterTogether is enter with a statement for all fences, one for all rows, and for confirms one that claims and one that
// reads. nil if not all rows are new: then nothing was written. Rows are taken in the members' order, and rivals after them:
// two batches that have calls of the same branches can deadlock, which InnoDB ends and the caller does again one by one.
func (d mysqlDialect) enterTogether(ctx context.Context, tx *sql.Tx, locks []lock, members []member) (*facts, error) {
	f := &facts{fences: map[int]fenceRow{}, members: make([]found, len(members))}
	if err := d.shareFences(ctx, tx, locks, f); err != nil {
		return nil, err
	}
	if new, err := d.insertAll(ctx, tx, members); err != nil || !new {
		return nil, err
	}
	rival := func(i int) string { return members[i].rival }
	claimed := make([]bool, len(members))
	if err := d.each(ctx, tx, members, rival, " FOR UPDATE", func(i int, _, _ string) { claimed[i] = true }); err != nil {
		return nil, err
	}
	reads := func(i int) string {
		f.members[i].first = true
		if m := &members[i]; m.needRows && (m.rival == "" || claimed[i]) {
			f.members[i].rows = map[string]string{}
			return allOps
		}
		return ""
	}
	if err := d.each(ctx, tx, members, reads, "", func(i int, op, reason string) { f.members[i].rows[op] = reason }); err != nil {
		return nil, err
	}
	for i := range members {
		if own := &f.members[i]; members[i].needRows && own.rows == nil {
			// There is no row that both opposites would lock: they see each other by locking what they read.
			var err error
			if own.rows, err = d.rows(ctx, tx, &members[i], d.share); err != nil {
				return nil, err
			}
		}
	}
	return f, nil
}

// allOps stands for whatever op a row has; no op is written so.
const allOps = "*"

// shareFences locks and reads fence rows, by their slots.
func (d mysqlDialect) shareFences(ctx context.Context, tx *sql.Tx, locks []lock, f *facts) error {
	slots := make([]any, len(locks))
	for i, l := range locks {
		slots[i] = l.slot
	}
	rows, err := tx.QueryContext(ctx, "SELECT slot, epoch, floor_ms, copied, risk, cap, risk_epoch FROM "+d.fenceName+
		" FORCE INDEX (PRIMARY) WHERE slot IN (?"+strings.Repeat(", ?", len(slots)-1)+") ORDER BY slot"+d.share, slots...)
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		var slot int
		var row fenceRow
		if err := rows.Scan(&slot, &row.epoch, &row.floor, &row.copied, &row.policy.Risk, &row.policy.Cap, &row.policy.Since); err != nil {
			return err
		}
		f.fences[slot] = row
	}
	if err := rows.Err(); err != nil {
		return err
	}
	for _, l := range locks {
		if _, ok := f.fences[l.slot]; !ok {
			return fmt.Errorf("fence row of slot %d: %w", l.slot, sql.ErrNoRows)
		}
	}
	return nil
}

// insertAll writes the members' own rows; false, and none, if one of them was there.
func (d mysqlDialect) insertAll(ctx context.Context, tx *sql.Tx, members []member) (bool, error) {
	if _, err := tx.ExecContext(ctx, "SAVEPOINT entered"); err != nil {
		return false, err
	}
	args := make([]any, 0, 6*len(members))
	for i := range members {
		m := &members[i]
		args = append(args, m.transType, m.gid, m.branch, m.op, m.barrierID, m.reason)
	}
	r, err := tx.ExecContext(ctx, "INSERT IGNORE INTO "+d.tableName+" (trans_type, gid, branch_id, op, barrier_id, reason) VALUES (?, ?, ?, ?, ?, ?)"+
		strings.Repeat(", (?, ?, ?, ?, ?, ?)", len(members)-1), args...)
	if err != nil {
		return false, err
	}
	n, err := r.RowsAffected()
	if err != nil || n == int64(len(members)) {
		return err == nil, err
	}
	_, err = tx.ExecContext(ctx, "ROLLBACK TO SAVEPOINT entered")
	return false, err
}

// each gives the rows of those members' branches for which which gives an op, or allOps, under the members' barrier_ids.
// What is looked for is a table that is joined with, and comes first, so that every row is found by the unique index and
// nothing beside it is locked.
func (d mysqlDialect) each(ctx context.Context, tx *sql.Tx, members []member, which func(i int) string, how string, f func(i int, op, reason string)) error {
	var args []any
	n, on := 0, ""
	for i := range members {
		op := which(i)
		if op == "" {
			continue
		}
		if op != allOps {
			on = " AND b.op = m.op COLLATE utf8mb4_bin"
		}
		m := &members[i]
		n, args = n+1, append(args, i, m.gid, m.branch, op, m.barrierID)
	}
	if n == 0 {
		return nil
	}
	rows, err := tx.QueryContext(ctx, "SELECT m.n, b.op, b.reason FROM (SELECT ? AS n, ? AS gid, ? AS branch_id, ? AS op, ? AS barrier_id"+
		strings.Repeat(" UNION ALL SELECT ?, ?, ?, ?, ?", n-1)+") m STRAIGHT_JOIN "+d.tableName+
		" b ON b.gid = m.gid COLLATE utf8mb4_bin AND b.branch_id = m.branch_id COLLATE utf8mb4_bin AND b.barrier_id = m.barrier_id COLLATE utf8mb4_bin"+on+how, args...)
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		var i int
		var op, reason string
		if err := rows.Scan(&i, &op, &reason); err != nil {
			return err
		}
		f(i, op, reason)
	}
	return rows.Err()
}
