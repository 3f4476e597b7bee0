// Package points gives buyers points for what they paid, on messages that arrive at least once.
//
// Its law: a message counts once: the barrier keeps its repeats away, and the total equals the sum of the entries. A
// message cannot be refused for a business reason (its transaction is committed): an unknown account is opened.
//
// It is tested with repeated and concurrent messages.
package points

import (
	"context"
	"database/sql"
	"errors"
	"fmt"

	"github.com/lockstep-tx/lockstep/participants/barrier"
	"github.com/lockstep-tx/lockstep/participants/sqldb"
)

// Grant is the payload of a message.
type Grant struct {
	Account string `json:"account"`
	Points  int64  `json:"amount"`
}

// pointsMax bounds one grant.
const pointsMax = 1_000_000_000_000

// Points are the accounts in one database. Safe for concurrent use.
type Points struct{ d sqldb.Dialect }

// New returns the points of a database whose tables Migrate has made.
func New(d sqldb.Dialect) *Points { return &Points{d} }

// Migrate makes the tables; it may run any number of times.
func Migrate(ctx context.Context, db *sql.DB, d sqldb.Dialect) error {
	err := d.Migrate(ctx, db, `CREATE TABLE IF NOT EXISTS points_account (
			id varchar(128) PRIMARY KEY,
			points bigint NOT NULL CHECK (points >= 0))`,
		`CREATE TABLE IF NOT EXISTS points_entry (
			gid varchar(128) NOT NULL,
			branch_id varchar(128) NOT NULL,
			account varchar(128) NOT NULL,
			points bigint NOT NULL CHECK (points > 0),
			PRIMARY KEY (gid, branch_id))`)
	if err != nil {
		return fmt.Errorf("migrate points: %w", err)
	}
	return nil
}

// Add gives the points of g. A g that cannot be is ErrInvalid; the message stays with its coordinator until somebody
// looks.
func (p *Points) Add(ctx context.Context, tx *sql.Tx, call *barrier.Call, g Grant) error {
	if err := barrier.CheckID("account", g.Account, 128); err != nil {
		return err
	}
	if g.Points <= 0 || g.Points > pointsMax {
		return fmt.Errorf("%w: %d points for account %q", barrier.ErrInvalid, g.Points, g.Account)
	}
	if _, err := tx.ExecContext(ctx, p.d.InsertNew("INTO points_account (id, points) VALUES (?, 0)"), g.Account); err != nil {
		return fmt.Errorf("points of %s: %w", g.Account, err)
	}
	if ok, err := p.d.Change(ctx, tx, "UPDATE points_account SET points = points + ? WHERE id = ?", g.Points, g.Account); err != nil || !ok {
		return errors.Join(err, fmt.Errorf("points of %s: the account did not change", g.Account))
	}
	if _, err := tx.ExecContext(ctx, p.d.Q(`INSERT INTO points_entry (gid, branch_id, account, points) VALUES (?, ?, ?, ?)`),
		call.Gid, call.BranchID, g.Account, g.Points); err != nil {
		return fmt.Errorf("points of %s: %w", g.Account, err)
	}
	return nil
}

// Account is one buyer's points.
type Account struct {
	ID     string `json:"id"`
	Points int64  `json:"points"`
}

// State is a consistent look at all accounts.
type State struct {
	Accounts []Account `json:"accounts"` // by id
	Points   int64     `json:"points"`
	// Entries and EntryPoints recount from the entries.
	Entries     int64 `json:"entries"`
	EntryPoints int64 `json:"entry_points"`
}

// Faults returns what is wrong with the sums; nil if nothing is.
func (s State) Faults() []string {
	if s.Points != s.EntryPoints {
		return []string{fmt.Sprintf("points: %d on the accounts, %d in the entries", s.Points, s.EntryPoints)}
	}
	return nil
}

// Read returns the state in one read transaction.
func (p *Points) Read(ctx context.Context, db *sql.DB) (State, error) {
	var s State
	tx, err := p.d.BeginRead(ctx, db)
	if err != nil {
		return s, err
	}
	defer func() { _ = tx.Rollback() }()
	rows, err := tx.QueryContext(ctx, `SELECT id, points FROM points_account ORDER BY id`)
	if err != nil {
		return s, err
	}
	defer rows.Close()
	for rows.Next() {
		var a Account
		if err := rows.Scan(&a.ID, &a.Points); err != nil {
			return s, err
		}
		s.Accounts = append(s.Accounts, a)
		s.Points += a.Points
	}
	if err := rows.Err(); err != nil {
		return s, err
	}
	err = tx.QueryRowContext(ctx, `SELECT count(*), coalesce(sum(points), 0) FROM points_entry`).Scan(&s.Entries, &s.EntryPoints)
	return s, err
}
