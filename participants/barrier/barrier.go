// Package barrier makes a participant's branch calls take effect exactly once (guarantee G5).
//
// Its law: the fence check, the barrier rows and the business change are one local transaction. A call is judged by
// what the database holds at that moment and by nothing else: a repeat runs nothing, a cancel before its try leaves a
// tombstone, a try after it is refused, a call of an older epoch is refused, and confirm and cancel of one branch
// exclude each other with an error that says so.
//
// The barrier table and its rules are DTM's (gid, branch_id, op, barrier_id are unique; a cancel inserts the try's row
// too), so that a participant written with DTM's SDK and one written with this package can share a database. Beside it
// stands one fence row per slot, all SlotCount of them made by Migrate.
//
// It is tested by one test per rule, by duplicates in real goroutines over several connections to one file, and by
// killing a process with SIGKILL between the barrier row and the business change and after the commit. A database is
// one Dialect; SQLite is the first.
package barrier

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"
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
}

// Barrier guards one database. It is safe for concurrent use and keeps no state of its own.
type Barrier struct {
	db      *sql.DB
	dialect *dialect
	options Options
}

// New returns the barrier of db, whose tables Migrate has made. It does not touch db.
func New(db *sql.DB, d Dialect, o Options) (*Barrier, error) {
	dialect, err := d.statements()
	if err != nil {
		return nil, err
	}
	return &Barrier{db: db, dialect: dialect, options: o}, nil
}

// DB returns the guarded database, for reads and for changes that belong to no transaction.
func (b *Barrier) DB() *sql.DB { return b.db }

// Do runs one branch call in one local transaction: fence, barrier rows, then business, whose tx ends with Do's return:
// business neither commits nor keeps it. An error of business rolls everything back, the barrier rows included, and is
// returned as it is; it should wrap ErrRefused or ErrOngoing where it means that.
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
	if err := call.validate(); err != nil {
		return Unknown, err
	}
	key := key{call.Gid, call.BranchID, fmt.Sprintf("%02d", call.calls)}
	tx, err := b.db.BeginTx(ctx, nil)
	if err != nil {
		return Unknown, fmt.Errorf("barrier %s: begin: %w", call, err)
	}
	defer func() { _ = tx.Rollback() }() // after Commit it does nothing; it also runs when business panics
	if err := b.checkFence(ctx, tx, call, key); err != nil {
		return Unknown, err
	}
	outcome, err := b.enter(ctx, tx, call, key)
	if err != nil {
		return Unknown, err
	}
	if outcome == Done {
		if err := business(tx); err != nil {
			return Unknown, err
		}
	}
	// Repeated wrote nothing but, perhaps, a higher epoch: that counts too.
	if err := tx.Commit(); err != nil {
		return Unknown, fmt.Errorf("barrier %s: commit: %w", call, err)
	}
	return outcome, nil
}

type key struct{ gid, branch, barrierID string }

// enter writes the rows of one call and judges by which of them were new.
func (b *Barrier) enter(ctx context.Context, tx *sql.Tx, call *Call, key key) (Outcome, error) {
	undone := undoes(call.Op)
	var tombstone bool
	if undone != "" {
		var err error
		if tombstone, err = b.insert(ctx, tx, call, key, undone, call.Op); err != nil {
			return Unknown, err
		}
	}
	first, err := b.insert(ctx, tx, call, key, call.Op, call.Op)
	if err != nil {
		return Unknown, err
	}
	if first && undone == "" && !confirms(call.Op) {
		return Done, nil
	}
	rows, err := b.reasons(ctx, tx, call, key)
	if err != nil {
		return Unknown, err
	}
	switch {
	case call.Op == OpMsg: // not first
		return Unknown, fmt.Errorf("%w: barrier %s: the message was prepared before or has been decided", ErrDuplicate, call)
	case undone != "":
		for _, op := range []string{OpConfirm, OpCommit} {
			if _, ok := rows[op]; ok {
				return Unknown, fmt.Errorf("%w: barrier %s: %s of this branch has been here", ErrContradiction, call, op)
			}
		}
		if tombstone {
			return Empty, nil
		}
	case confirms(call.Op):
		for _, op := range []string{OpCancel, OpRollback} {
			if _, ok := rows[op]; ok {
				return Unknown, fmt.Errorf("%w: barrier %s: found the tombstone of a %s", ErrContradiction, call, op)
			}
		}
	case rows[call.Op] != call.Op: // a try or action whose row a cancel wrote
		return Unknown, fmt.Errorf("%w: barrier %s: too late, %s has been here", ErrRefused, call, rows[call.Op])
	}
	if first {
		return Done, nil
	}
	return Repeated, nil
}

// checkFence locks the fence rows of the call's slots, compares them with its epochs, and raises those that are lower.
func (b *Barrier) checkFence(ctx context.Context, tx *sql.Tx, call *Call, key key) error {
	if !call.Fence.given() {
		if coordinatorOnly(call.TransType, call.Op) && !b.options.AllowUnfenced {
			return fmt.Errorf("%w: barrier %s: a %s comes from a coordinator and carries Lockstep-Slot and Lockstep-Epoch", ErrUnfenced, call, call.Op)
		}
	}
	own := Fence{Slot: SlotOf(call.Gid), Epoch: call.Fence.Epoch}
	fences := []Fence{own}
	if call.Account.given() && call.Account != own {
		fences = append(fences, call.Account)
		// Everybody locks in the order of the slots, so that no two calls wait for each other.
		slices.SortFunc(fences, func(x, y Fence) int { return x.Slot - y.Slot })
	}
	for _, f := range fences {
		var row fenceRow
		if err := tx.QueryRowContext(ctx, b.dialect.fence, f.Slot).Scan(&row.epoch, &row.floor, &row.copied); err != nil {
			return fmt.Errorf("barrier %s: fence row of slot %d: %w", call, f.Slot, err)
		}
		switch {
		case !f.given() && row.copied:
			return fmt.Errorf("%w: barrier %s: slot %d has its home elsewhere", ErrStale, call, f.Slot)
		case f.given() && f.Epoch < row.epoch:
			return fmt.Errorf("%w: barrier %s: slot %d is at epoch %d, the call has %d", ErrStale, call, f.Slot, row.epoch, f.Epoch)
		case f.given() && f.Epoch > row.epoch:
			if _, err := tx.ExecContext(ctx, b.dialect.raise, f.Epoch, f.Slot); err != nil {
				return fmt.Errorf("barrier %s: raise slot %d: %w", call, f.Slot, err)
			}
		}
		if f.Slot == own.Slot {
			if err := b.checkFloor(ctx, tx, call, key, row.floor); err != nil {
				return err
			}
		}
	}
	return nil
}

type fenceRow struct {
	epoch  int64
	floor  int64 // milliseconds since 1970
	copied bool
}

// checkFloor refuses what is so old that its barrier rows may have been cleaned: nobody could tell a repeat from the
// first.
func (b *Barrier) checkFloor(ctx context.Context, tx *sql.Tx, call *Call, key key, floor int64) error {
	if b.options.GidTime == nil || floor == 0 {
		return nil
	}
	ms, ok := b.options.GidTime(call.Gid)
	if !ok || ms > floor {
		return nil
	}
	rows, err := b.reasons(ctx, tx, call, key)
	switch {
	case err != nil:
		return err
	case len(rows) > 0: // not cleaned yet: the rows themselves decide
		return nil
	case undoes(call.Op) == "" && !confirms(call.Op):
		return fmt.Errorf("%w: barrier %s: older than the rows that are kept", ErrRefused, call)
	}
	return fmt.Errorf("barrier %s: older than the rows that are kept, and none is left; an operator must look", call)
}

func (b *Barrier) insert(ctx context.Context, tx *sql.Tx, call *Call, k key, op, reason string) (bool, error) {
	r, err := tx.ExecContext(ctx, b.dialect.insert, call.TransType, k.gid, k.branch, op, k.barrierID, reason)
	if err != nil {
		return false, fmt.Errorf("barrier %s: %w", call, err)
	}
	n, err := r.RowsAffected()
	if err != nil {
		return false, fmt.Errorf("barrier %s: %w", call, err)
	}
	return n > 0, nil
}

// reasons returns the branch's rows under this barrier_id: op to the op of the call that wrote it.
func (b *Barrier) reasons(ctx context.Context, tx *sql.Tx, call *Call, k key) (map[string]string, error) {
	rows, err := tx.QueryContext(ctx, b.dialect.rows, k.gid, k.branch, k.barrierID)
	if err != nil {
		return nil, fmt.Errorf("barrier %s: %w", call, err)
	}
	defer rows.Close()
	reasons := map[string]string{}
	for rows.Next() {
		var op, reason string
		if err := rows.Scan(&op, &reason); err != nil {
			return nil, fmt.Errorf("barrier %s: %w", call, err)
		}
		reasons[op] = reason
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("barrier %s: %w", call, err)
	}
	return reasons, nil
}

// QueryPrepared answers a message's check-back: nil if its local part is committed, ErrRefused if it is not and, from
// now on, cannot be: the answer is written first, and a local part that comes later gets ErrDuplicate. ErrStale as Do.
func (b *Barrier) QueryPrepared(ctx context.Context, call *Call) error {
	c := Call{TransType: call.TransType, Gid: call.Gid, BranchID: "00", Op: OpMsg, Fence: call.Fence, Account: call.Account}
	if err := c.validate(); err != nil {
		return err
	}
	k := key{c.Gid, "00", "01"}
	tx, err := b.db.BeginTx(ctx, nil)
	if err != nil {
		return fmt.Errorf("barrier %s: begin: %w", &c, err)
	}
	defer func() { _ = tx.Rollback() }()
	if err := b.checkFence(ctx, tx, &c, k); err != nil {
		return err
	}
	if _, err := b.insert(ctx, tx, &c, k, OpMsg, OpRollback); err != nil {
		return err
	}
	rows, err := b.reasons(ctx, tx, &c, k)
	if err != nil {
		return err
	}
	if err := tx.Commit(); err != nil {
		return fmt.Errorf("barrier %s: commit: %w", &c, err)
	}
	if rows[OpMsg] == OpRollback {
		return fmt.Errorf("%w: barrier %s: the local part is not committed", ErrRefused, &c)
	}
	return nil
}
