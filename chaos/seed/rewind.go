package seed

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strconv"

	"github.com/lockstep-tx/lockstep/participants/barrier"
	"github.com/lockstep-tx/lockstep/participants/sqldb"
)

// Backup is what a participant's book was at a moment (D21).
type Backup struct {
	transfers map[[2]string][4]string // by id and leg: state, settled_us, refunded, of_id
	entries   map[[3]string]bool      // transfer, leg, direction
	barrier   map[[4]string]bool      // gid, branch, op, barrier id
	accounts  map[[2]string][4]int64  // by id and shard
	gids      map[[2]string]string    // of transfers
}

// BackUp reads a participant's book as it is, in one read.
func BackUp(ctx context.Context, db *sql.DB, d sqldb.Dialect, schema string) (*Backup, error) {
	t, err := tablesOf(d, schema)
	if err != nil {
		return nil, err
	}
	tx, err := db.BeginTx(ctx, &sql.TxOptions{ReadOnly: true, Isolation: isolation(d)})
	if err != nil {
		return nil, err
	}
	defer func() { _ = tx.Rollback() }() // it only reads
	return t.backup(ctx, tx)
}

// isolation under which all reads are of one moment; SQLite's always are.
func isolation(d sqldb.Dialect) sql.IsolationLevel {
	if d.Dialect == barrier.SQLite {
		return sql.LevelDefault
	}
	return sql.LevelRepeatableRead
}

func (t tables) backup(ctx context.Context, tx *sql.Tx) (*Backup, error) {
	b := &Backup{map[[2]string][4]string{}, map[[3]string]bool{}, map[[4]string]bool{}, map[[2]string][4]int64{}, map[[2]string]string{}}
	var s [7]sql.NullString
	var n [4]int64
	each := func(query string, into []any, row func()) error {
		rows, err := tx.QueryContext(ctx, query)
		if err != nil {
			return fmt.Errorf("%.60s: %w", query, err)
		}
		defer rows.Close()
		for rows.Next() {
			if err := rows.Scan(into...); err != nil {
				return err
			}
			row()
		}
		return rows.Err()
	}
	err := all(
		func() error {
			return each("SELECT id, leg, state, settled_us, refunded, of_id, gid FROM ledger_transfer", []any{&s[0], &s[1], &s[2], &s[3], &s[4], &s[5], &s[6]}, func() {
				k := [2]string{s[0].String, s[1].String}
				b.transfers[k], b.gids[k] = [4]string{s[2].String, s[3].String, s[4].String, s[5].String}, s[6].String
			})
		},
		func() error {
			return each("SELECT transfer_id, leg, direction FROM ledger_entry", []any{&s[0], &s[1], &s[2]}, func() { b.entries[[3]string{s[0].String, s[1].String, s[2].String}] = true })
		},
		func() error {
			return each("SELECT gid, branch_id, op, barrier_id FROM "+t.barrier, []any{&s[0], &s[1], &s[2], &s[3]}, func() { b.barrier[[4]string{s[0].String, s[1].String, s[2].String, s[3].String}] = true })
		},
		func() error {
			return each("SELECT id, shard, debits_pending, debits_posted, credits_pending, credits_posted FROM ledger_account", []any{&s[0], &s[1], &n[0], &n[1], &n[2], &n[3]}, func() { b.accounts[[2]string{s[0].String, s[1].String}] = n })
		})
	return b, err
}

// Rewind sets a participant's book back to what it was, as who restores a backup does (D21): its transfers, entries, barrier rows
// and counters, in one transaction. It gives the transactions whose rows it changed.
func Rewind(ctx context.Context, db *sql.DB, d sqldb.Dialect, schema string, to *Backup) (gids map[string]bool, err error) {
	t, err := tablesOf(d, schema)
	if err != nil {
		return nil, err
	}
	gids = map[string]bool{}
	err = sqldb.InTx(ctx, db, func(tx *sql.Tx) error {
		clear(gids) // it may be tried again
		is, err := t.backup(ctx, tx)
		if err != nil {
			return err
		}
		p := &planter{ctx: ctx, tx: tx, t: t}
		return all(
			func() error { return p.rewindEntries(is, to) },
			func() error { return p.rewindTransfers(is, to, gids) },
			func() error {
				for k := range is.barrier {
					if to.barrier[k] {
						continue
					}
					gids[k[0]] = true
					if err := p.one("DELETE FROM "+t.barrier+" WHERE gid = ? AND branch_id = ? AND op = ? AND barrier_id = ?", k[0], k[1], k[2], k[3]); err != nil {
						return err
					}
				}
				return nil
			},
			func() error {
				for k, n := range to.accounts {
					if is.accounts[k] == n {
						continue
					}
					if err := p.one("UPDATE ledger_account SET debits_pending = ?, debits_posted = ?, credits_pending = ?, credits_posted = ? WHERE id = ? AND shard = ?", n[0], n[1], n[2], n[3], k[0], number(k[1])); err != nil {
						return err
					}
				}
				return nil
			})
	})
	if err == nil && len(gids) == 0 {
		err = errors.New("nothing has happened since the backup: nothing was changed")
	}
	if err != nil {
		return nil, err
	}
	is, err := BackUp(ctx, db, d, schema)
	if err == nil {
		for k := range is.entries {
			if !to.entries[k] && gids[is.gids[[2]string{k[0], k[1]}]] {
				err = fmt.Errorf("it is not there: entry %v still stands", k)
			}
		}
	}
	return gids, err
}

func (p *planter) rewindEntries(is, to *Backup) error {
	for k := range is.entries {
		if to.entries[k] {
			continue
		}
		if err := p.unlocked(k[0], func() error {
			return p.one("DELETE FROM ledger_entry WHERE transfer_id = ? AND leg = ? AND direction = ?", k[0], number(k[1]), k[2])
		}); err != nil {
			return err
		}
	}
	return nil
}

func (p *planter) rewindTransfers(is, to *Backup, gids map[string]bool) error {
	for k, now := range is.transfers {
		was, there := to.transfers[k]
		if there && was == now {
			continue
		}
		gids[is.gids[k]] = true
		if !there {
			if err := p.one("DELETE FROM ledger_transfer WHERE id = ? AND leg = ?", k[0], number(k[1])); err != nil {
				return err
			}
			continue
		}
		if err := p.one("UPDATE ledger_transfer SET state = ?, settled_us = ?, refunded = ?, of_id = ? WHERE id = ? AND leg = ?", was[0], number(was[1]), number(was[2]), was[3], k[0], number(k[1])); err != nil {
			return err
		}
	}
	return nil
}

// number is a whole number as a database took it; "" is NULL.
func number(text string) any {
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil {
		return nil
	}
	return n
}
