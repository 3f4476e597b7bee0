package demo

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/url"
	"path/filepath"
	"slices"
	"strings"

	"github.com/lockstep-tx/lockstep/participants/barrier"
	"github.com/lockstep-tx/lockstep/participants/sqldb"
)

// This file counts the money. It reads the participants' tables with statements of its own and shares nothing with what
// finds and repairs drift.

// book is what one region's wallets hold, in minor units.
type book struct {
	balances map[string]int64 // posted, with what is buffered
	held     int64            // of undecided payments
	holds    int64            // their number
	faults   []string
}

func (b *book) total() int64 {
	var n int64
	for _, v := range b.balances {
		n += v
	}
	return n
}

// readBook reads a region's book in one transaction.
func readBook(ctx context.Context, address string) (b *book, err error) {
	db, dialect, err := sqldb.Open(ctx, address)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	tx, err := dialect.BeginRead(ctx, db)
	if err != nil {
		return nil, err
	}
	defer func() { _ = tx.Rollback() }()
	b = &book{balances: map[string]int64{}}
	rows, err := tx.QueryContext(ctx, `SELECT a.id, a.overdraft, sum(a.credits_posted - a.debits_posted), sum(a.debits_pending), (SELECT coalesce(sum(u.credit - u.debit), 0) FROM ledger_buffer u WHERE u.account = a.id),
		(SELECT coalesce(sum(CASE WHEN e.direction = 'credit' THEN e.amount ELSE -e.amount END), 0) FROM ledger_entry e WHERE e.account = a.id)
		FROM ledger_account a GROUP BY a.id, a.overdraft ORDER BY a.id`)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	for rows.Next() {
		var id, overdraft string
		var posted, pending, buffered, entries int64
		if err := rows.Scan(&id, &overdraft, &posted, &pending, &buffered, &entries); err != nil {
			return nil, err
		}
		if posted+buffered != entries {
			b.faults = append(b.faults, fmt.Sprintf("account %s: its counters say %d, its entries %d", id, posted+buffered, entries))
		}
		if overdraft == "none" {
			b.balances[id] = posted + buffered
			b.held += pending
		} else if strings.HasPrefix(id, "house:passage:") && posted+buffered != 0 {
			b.faults = append(b.faults, fmt.Sprintf("%s holds %d: one side of a payment is missing", id, posted+buffered))
		}
	}
	if err := errors.Join(rows.Close(), rows.Err()); err != nil {
		return nil, err
	}
	return b, tx.QueryRowContext(ctx, "SELECT count(*) FROM ledger_transfer WHERE state = 'pending'").Scan(&b.holds)
}

// readJournal counts the transactions that a region's journal knows as decided, and as finished.
func readJournal(ctx context.Context, address string) (decided, finished int64, err error) {
	db, _, err := sqldb.Open(ctx, address)
	if err != nil {
		return 0, 0, err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	return decided, finished, db.QueryRowContext(ctx, "SELECT count(*), count(finish_seq) FROM lockstep_journal").Scan(&decided, &finished)
}

// expected is what every wallet should hold by what the clients were told.
func (l *load) expected() map[string]int64 {
	out := map[string]int64{}
	for _, a := range l.accounts {
		out[a] = firstDeposit
	}
	for _, t := range l.pays {
		if t.outcome == paid {
			out[t.from] -= t.amount
			out[t.to] += t.amount
		}
	}
	return out
}

// differs names the accounts that are not as they should be.
func (b *book) differs(want map[string]int64) []string {
	var out []string
	for id, n := range want {
		if b.balances[id] != n {
			out = append(out, fmt.Sprintf("%s has %s, and should have %s", id, yuan(b.balances[id]), yuan(n)))
		}
	}
	slices.Sort(out)
	return append(out, b.faults...)
}

// walletDatabase gives the address of a region's own database: a SQLite file, or a new database of the PostgreSQL given.
func (d *demo) walletDatabase(ctx context.Context, r *region) (address string, err error) {
	if !strings.HasPrefix(d.cfg.DB, "postgres") {
		return "sqlite:" + filepath.Join(r.dir, "wallets.db"), nil // MySQL has one barrier per server: two regions need two
	}
	u, err := url.Parse(d.cfg.DB)
	if err != nil {
		return "", fmt.Errorf("--db: %w", err)
	}
	db, dialect, err := sqldb.Open(ctx, d.cfg.DB)
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	name := "lockstep_demo_" + strings.ReplaceAll(r.name, "-", "_")
	if err := createDatabase(ctx, db, dialect, name); err != nil {
		return "", fmt.Errorf("--db: a database for the wallets of %s: %w; next: drop it, or give another server", r.name, err)
	}
	u.Path = "/" + name
	return u.String(), nil
}

func createDatabase(ctx context.Context, db *sql.DB, d sqldb.Dialect, name string) error {
	if d.Dialect != barrier.PostgreSQL {
		return fmt.Errorf("%s", d)
	}
	_, err := db.ExecContext(ctx, `CREATE DATABASE "`+name+`"`)
	return err
}
