package barrier

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"time"
)

// Dialect names a kind of database.
type Dialect int

const (
	// SQLite keeps DTM's table in the guarded database itself under the name dtm_barrier_barrier: dtm_barrier.barrier would
	// be another file attached to the connection, and SQLite in WAL mode does not commit two files in one step.
	SQLite Dialect = 1
	// PostgreSQL keeps the tables in a schema of the guarded database.
	PostgreSQL Dialect = 2
	// MySQL and MariaDB keep them in a database of the same server (InnoDB commits both in one step).
	MySQL Dialect = 3
)

func (d Dialect) String() string {
	switch d {
	case SQLite:
		return "SQLite"
	case PostgreSQL:
		return "PostgreSQL"
	case MySQL:
		return "MySQL"
	}
	return fmt.Sprintf("Dialect(%d)", int(d))
}

// DefaultSchema is where DTM's SDKs look for their table.
const DefaultSchema = "dtm_barrier"

var schemaName = regexp.MustCompile(`^[a-z_][a-z0-9_]{0,47}$`)

// dialect is what differs between databases. Its methods run inside the caller's transaction.
type dialect interface {
	// migrate gives the statements that make the tables, each idempotent.
	migrate() []string
	// enter locks the fence rows of locks, which are sorted by slot, raises the exclusive ones that are lower, inserts the
	// members' rows, and tells what it found. Nothing of it stays if the caller rolls back.
	enter(ctx context.Context, tx *sql.Tx, locks []lock, members []member) (*facts, error)
	// forget deletes one row that this transaction has inserted.
	forget(ctx context.Context, tx *sql.Tx, k key, op string) error
	// stands is an error if the row that this transaction has inserted is gone, because the server ended the transaction on
	// its own and does not say so at the commit.
	stands(ctx context.Context, tx *sql.Tx, k key, op string) error
	// lastSavepoint ends the savepoint of a batch, where that tells whether the transaction still stands.
	lastSavepoint() string
	// isolation is what a transaction begins with.
	isolation() *sql.TxOptions
	// savepoint carries out statements on savepoints, separated by ";".
	savepoint(ctx context.Context, tx *sql.Tx, stmts string) error
	// retryable says that the whole transaction failed for a reason that may be gone the next time.
	retryable(err error) bool
	// timeArg is a time as create_time is compared with.
	timeArg(t time.Time) any
	// table and fence are the tables' names; arg is the n-th placeholder, from 1.
	table() string
	fence() string
	arg(n int) string
}

func newDialect(d Dialect, schema string) (dialect, error) {
	if schema == "" {
		schema = DefaultSchema
	}
	if !schemaName.MatchString(schema) {
		return nil, fmt.Errorf("%w: schema %q is not of the form %s", ErrInvalid, schema, schemaName)
	}
	switch d {
	case SQLite:
		// The fence of the default schema has kept its first name.
		fence := "lockstep_fence"
		if schema != DefaultSchema {
			fence = schema + "_" + fence
		}
		return sqliteDialect{generic{schema + "_barrier", fence, "", ""}}, nil
	case PostgreSQL:
		return postgres{schema}, nil
	case MySQL:
		return mysqlDialect{generic{schema + ".barrier", schema + ".lockstep_fence", " LOCK IN SHARE MODE", " FOR UPDATE"}, schema}, nil
	}
	return nil, fmt.Errorf("%w: no barrier for %s", ErrInvalid, d)
}

// lock is the fence row of one slot as one transaction needs it.
type lock struct {
	slot      int
	epoch     int64 // the highest that a call carries, 0 for none
	exclusive bool  // to raise it
}

type key struct{ gid, branch, barrierID string }

// member is one call of a transaction and the rows it wants.
type member struct {
	key
	transType, op, reason string
	undone                string // the op whose row a cancel writes too; "" if none
	rival                 string // confirm and cancel take turns on the row of this op; "" where there is nothing to exclude
	needRows              bool   // the rows that were there decide, even if this one is new
}

// facts are what enter found.
type facts struct {
	fences  map[int]fenceRow // before they were raised
	members []found          // by member
}

type fenceRow struct {
	epoch  int64
	floor  int64 // milliseconds since 1970
	copied bool
	policy Policy
}

type found struct {
	tombstone, first bool              // the undone op's row, the op's own row is new
	rows             map[string]string // the branch's rows under this barrier_id, the new ones too: op to the op that wrote it
}

// generic is the way of databases that do it statement by statement.
type generic struct {
	tableName, fenceName string
	share, exclusive     string // what makes a read of the fence lock it
}

func (g generic) table() string  { return g.tableName }
func (g generic) fence() string  { return g.fenceName }
func (g generic) arg(int) string { return "?" }

func (generic) isolation() *sql.TxOptions                          { return nil }
func (generic) stands(context.Context, *sql.Tx, key, string) error { return nil }
func (generic) lastSavepoint() string                              { return "" }

func (g generic) timeArg(t time.Time) any { return t.UTC().Format(time.DateTime) }

func (g generic) lockFences(ctx context.Context, tx *sql.Tx, locks []lock, f *facts) error {
	for _, l := range locks {
		how := g.share
		if l.exclusive {
			how = g.exclusive
		}
		var row fenceRow
		if err := tx.QueryRowContext(ctx, "SELECT epoch, floor_ms, copied, risk, cap, risk_epoch FROM "+g.fenceName+" WHERE slot = ?"+how, l.slot).
			Scan(&row.epoch, &row.floor, &row.copied, &row.policy.Risk, &row.policy.Cap, &row.policy.Since); err != nil {
			return fmt.Errorf("fence row of slot %d: %w", l.slot, err)
		}
		f.fences[l.slot] = row
		if l.exclusive && l.epoch > row.epoch {
			if _, err := tx.ExecContext(ctx, "UPDATE "+g.fenceName+" SET epoch = ? WHERE slot = ?", l.epoch, l.slot); err != nil {
				return fmt.Errorf("raise slot %d: %w", l.slot, err)
			}
		}
	}
	return nil
}

// insert writes one row; false if it was there.
func (g generic) insert(ctx context.Context, tx *sql.Tx, verb, suffix string, m *member, op string) (bool, error) {
	r, err := tx.ExecContext(ctx, verb+" INTO "+g.tableName+" (trans_type, gid, branch_id, op, barrier_id, reason) VALUES (?, ?, ?, ?, ?, ?)"+suffix,
		m.transType, m.gid, m.branch, op, m.barrierID, m.reason)
	if err != nil {
		return false, err
	}
	n, err := r.RowsAffected()
	return n > 0, err
}

// rows reads the branch's rows under the member's barrier_id.
func (g generic) rows(ctx context.Context, tx *sql.Tx, m *member, how string) (map[string]string, error) {
	rows, err := tx.QueryContext(ctx, "SELECT op, reason FROM "+g.tableName+" WHERE gid = ? AND branch_id = ? AND barrier_id = ?"+how, m.gid, m.branch, m.barrierID)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	out := map[string]string{}
	for rows.Next() {
		var op, reason string
		if err := rows.Scan(&op, &reason); err != nil {
			return nil, err
		}
		out[op] = reason
	}
	return out, rows.Err()
}

func (g generic) enterWith(ctx context.Context, tx *sql.Tx, locks []lock, members []member, verb, suffix string, claim func(*member) (bool, error)) (*facts, error) {
	f := &facts{fences: map[int]fenceRow{}, members: make([]found, len(members))}
	how := make([]string, len(members))
	if err := g.lockFences(ctx, tx, locks, f); err != nil {
		return nil, err
	}
	for i := range members {
		// The rows of a branch in the order of the index, as the members are: whoever waits for a row locks the gap below it
		// too on MySQL, where its holder must have nothing left to write.
		m, own := &members[i], &f.members[i]
		steps := []string{m.op}
		for _, op := range []string{m.undone, m.rival} {
			if op != "" {
				steps = append(steps, op)
			}
		}
		slices.Sort(steps)
		claimed := true
		for _, op := range steps {
			var err error
			switch op {
			case m.op:
				own.first, err = g.insert(ctx, tx, verb, suffix, m, op)
			case m.undone:
				own.tombstone, err = g.insert(ctx, tx, verb, suffix, m, op)
			case m.rival:
				claimed, err = claim(m)
			}
			if err != nil {
				return nil, err
			}
		}
		// Without a row that both would lock, opposites see each other by locking what they read.
		if own.tombstone || !claimed {
			how[i] = g.share
		}
	}
	// All rows are read after all locks are held: the first plain read fixes the snapshot where the database has one per
	// transaction.
	for i := range members {
		if f.members[i].first && !members[i].needRows {
			continue
		}
		var err error
		if f.members[i].rows, err = g.rows(ctx, tx, &members[i], how[i]); err != nil {
			return nil, err
		}
	}
	return f, nil
}

func (g generic) forget(ctx context.Context, tx *sql.Tx, k key, op string) error {
	r, err := tx.ExecContext(ctx, "DELETE FROM "+g.tableName+" WHERE gid = ? AND branch_id = ? AND op = ? AND barrier_id = ?", k.gid, k.branch, op, k.barrierID)
	if err != nil {
		return err
	}
	if n, err := r.RowsAffected(); err != nil || n != 1 {
		return errors.Join(err, fmt.Errorf("%d rows of %s %s", n, k.gid, op))
	}
	return nil
}
