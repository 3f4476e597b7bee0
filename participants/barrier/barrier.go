// Package barrier makes a participant's branch calls take effect exactly once (guarantee G5).
//
// Its law: the fence check, the barrier rows and the business change are one local transaction. A call is judged by
// what the database holds at that moment and by nothing else: a repeat runs nothing, a cancel before its try leaves a
// tombstone, a try after it is refused, a call of an older epoch is refused, and confirm and cancel of one branch
// exclude each other with an error that says so.
//
// The barrier table and its rules are DTM's (gid, branch_id, op, barrier_id are unique; a cancel inserts the try's row
// too), so that a participant written with DTM's SDK and one written with this package can share a database. Beside it
// stands one fence row per slot, all SlotCount of them made by Migrate. The fence row is locked first: shared for a call
// at the stored epoch, exclusive to raise it.
//
// It is tested by one test per rule on SQLite, PostgreSQL and MariaDB, by duplicates in real goroutines over several
// connections, against DTM's own barrier, and by killing a process with SIGKILL between the barrier row and the business
// change and after the commit.
package barrier

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"sync/atomic"
)

// The errors a caller branches on. Whatever is none of these is Unknown: the call may have happened, repeat it.
var (
	// ErrRefused is a No: of the business, or of the barrier to a late try. HTTP 409 with FAILURE.
	ErrRefused = errors.New("refused")
	// ErrOngoing says that the outcome is not settled yet; the coordinator asks again. HTTP 425 with ONGOING.
	ErrOngoing = errors.New("ongoing")
	// ErrStale says that a newer epoch of the slot has been here; the caller no longer owns it. HTTP 412.
	ErrStale = errors.New("a newer epoch has been here")
	// ErrDuplicate answers the second local part of one message (op msg): it, or its check-back, was here before.
	ErrDuplicate = errors.New("duplicate")
	// ErrContradiction says that confirm and cancel of one branch have met: the second of them, and only it, ran nothing.
	// Somebody must look: a coordinator has changed a decision, or two of them took one.
	ErrContradiction = errors.New("confirm and cancel contradict each other")
	// ErrUnfenced answers a call that only a coordinator makes and that carries no epoch.
	ErrUnfenced = errors.New("no epoch")
	// ErrInvalid answers a call whose identity is incomplete or does not fit the table. HTTP 400.
	ErrInvalid = errors.New("invalid call")
)

// Outcome says what Do did; all three are a success for the coordinator.
type Outcome int

const (
	// Unknown is the outcome beside an error.
	Unknown Outcome = iota
	// Done: the business function ran and its change is durable.
	Done
	// Repeated: the call had been done before; nothing ran.
	Repeated
	// Empty: a cancel came before its try. Its tombstone is durable, nothing ran.
	Empty
)

func (o Outcome) String() string {
	switch o {
	case Unknown:
		return "unknown"
	case Done:
		return "done"
	case Repeated:
		return "repeated"
	case Empty:
		return "empty"
	}
	return fmt.Sprintf("Outcome(%d)", int(o))
}

// Options change how a Barrier judges; the zero value is the strict one.
type Options struct {
	// AllowUnfenced lets confirms, cancels and other calls that only a coordinator makes pass without an epoch: for a
	// participant that is driven by DTM's own server. Defaults to false.
	AllowUnfenced bool

	// GidTime returns the time in a gid, in milliseconds since 1970, and false for a gid that carries none. The floor is
	// compared with it; nil compares nothing. Defaults to nil.
	GidTime func(gid string) (ms int64, ok bool)

	// Schema is where the tables are: a schema of PostgreSQL, a database of MySQL, a prefix in SQLite. It is the same for
	// everything that this barrier does. Defaults to DefaultSchema, where DTM's SDKs look.
	Schema string
}

// Barrier guards one database. It is safe for concurrent use.
type Barrier struct {
	db      *sql.DB
	dialect dialect
	kind    Dialect
	options Options
	// seen are epochs that the fence rows certainly have. They say which lock to ask for, and nothing else: what the row
	// says under the lock decides.
	seen [SlotCount]atomic.Int64
}

// New returns the barrier of db, whose tables Migrate has made. It does not touch db.
func New(db *sql.DB, d Dialect, o Options) (*Barrier, error) {
	dialect, err := newDialect(d, o.Schema)
	if err != nil {
		return nil, err
	}
	return &Barrier{db: db, dialect: dialect, kind: d, options: o}, nil
}

// Dialect returns the kind of the guarded database.
func (b *Barrier) Dialect() Dialect { return b.kind }

// DB returns the guarded database, for reads and for changes that belong to no transaction.
func (b *Barrier) DB() *sql.DB { return b.db }

// Do runs one branch call in one local transaction: fence, barrier rows, then business, whose tx ends with Do's return:
// business neither commits nor keeps it. An error of business rolls everything back, the barrier rows included, and is
// returned as it is; it should wrap ErrRefused or ErrOngoing where it means that. business returns each error that the
// database gives it, unless it set a savepoint before: MySQL ends the transaction at a deadlock, and what is written after
// one that was passed over stands by itself. Do notices that, and cannot take it back.
//
// The transaction is at READ COMMITTED on PostgreSQL, whatever the server's default: a snapshot from before the fence's
// lock would show the fence as it was. On the others it is at the server's default.
//
// The n-th Do on one Call is kept apart from its others by barrier_id n, in the order of the calls: a handler that makes
// several must make them in the same order each time. Each is a local transaction of its own.
//
// On Done, Repeated and Empty the effect is durable. Errors: ErrRefused (a try or action after its tombstone), ErrStale,
// ErrContradiction, ErrDuplicate (op msg only), ErrUnfenced, ErrInvalid; after these nothing was written. After any
// other error, those of ctx included, the outcome is unknown and the call is to be repeated: a repeat is harmless.
// Source: dtm-wire.md section 11, DESIGN section 6; serves guarantee G5.
func (b *Barrier) Do(ctx context.Context, call *Call, business func(tx *sql.Tx) error) (Outcome, error) {
	call.calls++
	if err := b.admit(call); err != nil {
		return Unknown, err
	}
	tx, err := b.begin(ctx)
	if err != nil {
		return Unknown, fmt.Errorf("barrier %s: begin: %w", call, err)
	}
	defer func() { _ = tx.Rollback() }() // after Commit it does nothing; it also runs when business panics
	locks, m := b.locks(call), b.member(call)
	f, err := b.dialect.enter(ctx, tx, locks, []member{m})
	if err != nil {
		return Unknown, fmt.Errorf("barrier %s: %w", call, err)
	}
	call.rule(f)
	outcome, err := b.judge(call, &m, f, &f.members[0])
	if err != nil {
		return Unknown, err
	}
	if outcome, err = b.mutate(ctx, tx, call, &m, &f.members[0], outcome); err != nil {
		return Unknown, err
	}
	if outcome == Done {
		if err := business(tx); err != nil {
			return Unknown, err
		}
		if err := b.dialect.stands(ctx, tx, m.key, m.op); err != nil {
			return Unknown, fmt.Errorf("barrier %s: %w", call, err)
		}
	}
	if err := b.touch(ctx, tx, f, []*Call{call}, func(int) Outcome { return outcome }); err != nil {
		return Unknown, fmt.Errorf("barrier %s: %w", call, err)
	}
	// Repeated wrote nothing but, perhaps, a higher epoch: that counts too.
	if err := tx.Commit(); err != nil {
		return Unknown, fmt.Errorf("barrier %s: commit: %w", call, err)
	}
	b.saw(locks, f)
	return outcome, nil
}

// begin begins a local transaction at the isolation level that the fence needs.
func (b *Barrier) begin(ctx context.Context) (*sql.Tx, error) {
	return b.db.BeginTx(ctx, b.dialect.isolation())
}

// QueryPrepared answers a message's check-back: nil if its local part is committed, ErrRefused if it is not and, from
// now on, cannot be: the answer is written first, and a local part that comes later gets ErrDuplicate. ErrStale as Do.
func (b *Barrier) QueryPrepared(ctx context.Context, call *Call) error {
	c := &Call{TransType: call.TransType, Gid: call.Gid, BranchID: "00", Op: OpMsg, Fence: call.Fence, Account: call.Account, calls: 1}
	if err := b.admit(c); err != nil {
		return err
	}
	tx, err := b.begin(ctx)
	if err != nil {
		return fmt.Errorf("barrier %s: begin: %w", c, err)
	}
	defer func() { _ = tx.Rollback() }()
	locks, m := b.locks(c), b.member(c)
	m.reason, m.needRows = OpRollback, true
	f, err := b.dialect.enter(ctx, tx, locks, []member{m})
	if err != nil {
		return fmt.Errorf("barrier %s: %w", c, err)
	}
	if err := b.judgeFences(c, &m, f, &f.members[0]); err != nil {
		return err
	}
	if err := tx.Commit(); err != nil {
		return fmt.Errorf("barrier %s: commit: %w", c, err)
	}
	b.saw(locks, f)
	if f.members[0].rows[OpMsg] == OpRollback {
		return fmt.Errorf("%w: barrier %s: the local part is not committed", ErrRefused, c)
	}
	return nil
}
