package seed

import (
	"context"
	"database/sql"
	"fmt"

	"github.com/lockstep-tx/lockstep/participants/sqldb"
)

// Bury takes a phantom hold (D10) away again, as a person does who has found out where it came from. There says whether it was
// still as it was planted: where somebody has confirmed, cancelled or removed it, nothing is changed.
func Bury(ctx context.Context, db *sql.DB, d sqldb.Dialect, p Planted, schema string) (there bool, err error) {
	t, err := tablesOf(d, schema)
	if err != nil {
		return false, err
	}
	id := p.Gid + ":" + p.Branch
	err = sqldb.InTx(ctx, db, func(tx *sql.Tx) error {
		there = false
		var amount int64
		var debit string
		rows, err := tx.QueryContext(ctx, d.Q("SELECT amount, debit FROM ledger_transfer WHERE id = ? AND state = 'pending'"), id)
		if err != nil {
			return err
		}
		if rows.Next() {
			err, there = rows.Scan(&amount, &debit), true
		}
		if rows.Close(); err != nil || !there {
			return err
		}
		at := Target{Gid: p.Gid, Branch: p.Branch, Account: debit, Schema: schema}
		q := &planter{ctx: ctx, tx: tx, t: t, at: at, out: &Planted{}}
		r := row{id: id, debit: debit, credit: "house:passage:CNY", currency: "CNY", amount: amount}
		if err := q.move(r, -amount, 0); err != nil {
			return fmt.Errorf("bury %s: %w", id, err)
		}
		if _, err := tx.ExecContext(ctx, d.Q("DELETE FROM "+t.barrier+" WHERE gid = ?"), p.Gid); err != nil {
			return err
		}
		return q.one("DELETE FROM ledger_transfer WHERE id = ?", id)
	})
	return there, err
}
