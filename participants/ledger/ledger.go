// Package ledger is a double-entry book of accounts in a participant's database: PostgreSQL, MySQL/MariaDB or SQLite.
//
// Its law (guarantee G7): a transfer debits one account and credits another by the same amount, so that entries sum to
// zero per transaction and currency; entries are never changed, a reversal corrects them. An account's four counters, with
// what its mode keeps beside them, equal the fold of its entries and open holds at every commit. Limits are checked when
// money is held, so that a post cannot fail for a business reason, and a post or void moves what its own hold holds,
// never what a payload claims. Each id takes effect once; the same id with another body is a *MismatchError. CHECK
// constraints and primary keys repeat the law in the schema, so that a mistake here is an error and not a loss.
//
// The outside world and suspense are accounts too, with Overdraft set. Balance is credits minus debits.
//
// It is tested rule by rule, and by random interleavings of holds, posts, voids, duplicates, transactions rolled back,
// refunds, reversals and killed posters over accounts of every mode, compared with a model and audited (see Audit), on all
// three kinds of databases; and by many goroutines at the servers' default isolation.
package ledger

import (
	"context"
	"crypto/sha256"
	"database/sql"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"regexp"
	"strings"
	"sync"
	"time"

	"github.com/lockstep-tx/lockstep/participants/barrier"
	"github.com/lockstep-tx/lockstep/participants/money"
)

var schemaName = regexp.MustCompile(`^[a-z_][a-z0-9_]{0,39}$`)

// Options of a Ledger. Zero fields take the default given.
type Options struct {
	// Schema is where the tables are: a schema of PostgreSQL, a database of MySQL, a prefix in SQLite. Defaults to where the
	// connection is.
	Schema string
	// Now gives the time of entries. Defaults to time.Now.
	Now func() time.Time
	// Location is where a day of aggregated posting begins. Defaults to UTC.
	Location *time.Location
}

// Ledger is the book in one database. It keeps no money in memory, only what never changes of accounts that it has seen.
// Safe for concurrent use.
type Ledger struct {
	names
	now      func() time.Time
	location *time.Location
	writer   writer
	generic  *generic // the way of every database where speed does not count

	mu    sync.Mutex
	known map[string]meta
}

// writer is what differs between databases when money moves.
type writer interface {
	enter(ctx context.Context, tx *sql.Tx, p *plan) (answer, int, error)
	settle(ctx context.Context, tx *sql.Tx, s settlement) (bool, error)
	fold(ctx context.Context, tx *sql.Tx, account string) (bool, error)
}

// New returns the ledger whose tables Migrate has made. It does not touch the database.
func New(d barrier.Dialect, o Options) (*Ledger, error) {
	n, err := newNames(d, o.Schema)
	if err != nil {
		return nil, err
	}
	l := &Ledger{names: n, now: o.Now, location: o.Location, generic: newGeneric(n), known: map[string]meta{}}
	if l.now == nil {
		l.now = time.Now
	}
	if l.location == nil {
		l.location = time.UTC
	}
	if d == barrier.PostgreSQL {
		l.writer = newPostgres(n)
	} else {
		l.writer = l.generic
	}
	return l, nil
}

// Querier reads: a *sql.DB, *sql.Tx or *sql.Conn.
type Querier interface {
	QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error)
	QueryRowContext(ctx context.Context, query string, args ...any) *sql.Row
}

// Leg moves Minor minor units of Currency from the account Debit to the account Credit.
type Leg struct {
	Debit    string `json:"debit"`
	Credit   string `json:"credit"`
	Minor    int64  `json:"amount"`
	Currency string `json:"currency"` // ISO 4217; empty means money.DefaultCurrency
}

// LegsMax bounds the legs of one transfer.
const LegsMax = 64

// Transfer is what a hold or an immediate transfer moves: all legs or none.
type Transfer struct {
	// ID is the caller's, 1 to 260 bytes; it does not begin with "cut:" or "deposit:", which the ledger's own ids do. Empty
	// means HoldID(Gid, Branch).
	ID string
	// Gid and Branch stand in the entries; at most 128 bytes each.
	Gid, Branch string
	// RefundOf is the id of the posted hold or transfer that this one gives money back of: all its refunds together, those
	// held included, never exceed it. While that is a hold that is not decided yet, the refund is barrier.ErrOngoing.
	RefundOf string
	Legs     []Leg

	call *barrier.Call // that makes it, where one does (Of): its durability, and what its slot's accounts may do
}

func (t Transfer) isGlobal() bool { return t.call != nil && t.call.Global }

func (t Transfer) policy() barrier.Policy {
	if t.call == nil {
		return barrier.Policy{}
	}
	return t.call.Policy()
}

// HoldID is the id of the hold that a branch makes: one per branch.
func HoldID(gid, branch string) string { return gid + ":" + branch }

// Of returns the transfer of a branch call. What the call says of durability, and the policy under which its slot's accounts
// are, go with it: a transfer that is made otherwise is regional and at no risk.
func Of(call *barrier.Call, legs ...Leg) Transfer {
	return Transfer{Gid: call.Gid, Branch: call.BranchID, Legs: legs, call: call}
}

// Hold is the try: it checks every limit and holds the money as pending on both sides. A repeat of a hold that is there
// does nothing. *Refusal (which is barrier.ErrRefused) names what stood in the way; *MismatchError the id that is there
// with another body; barrier.ErrInvalid a transfer that cannot be. After an error the caller rolls tx back, or tx to a
// savepoint before the call.
func (l *Ledger) Hold(ctx context.Context, tx *sql.Tx, t Transfer) error {
	if err := t.callers(); err != nil {
		return err
	}
	return l.enter(ctx, tx, t, kindHold, false)
}

// Transfer moves money at once, outside TCC. Idempotency and errors as Hold.
func (l *Ledger) Transfer(ctx context.Context, tx *sql.Tx, t Transfer) error {
	if err := t.callers(); err != nil {
		return err
	}
	return l.enter(ctx, tx, t, kindTransfer, true)
}

// Post is the confirm: what the hold holds becomes entries. t.ID names it, or t.Gid and t.Branch. Where t has legs, all of
// it must be as it was held, a difference is a *MismatchError; else only the id counts. A repeat does nothing.
// barrier.ErrContradiction if the hold was voided; any other error is of the database, or ErrNoHold.
func (l *Ledger) Post(ctx context.Context, tx *sql.Tx, t Transfer) error {
	return l.settle(ctx, tx, t, true)
}

// Void is the cancel: what the hold holds is free again. As Post; barrier.ErrContradiction if it was posted.
func (l *Ledger) Void(ctx context.Context, tx *sql.Tx, t Transfer) error {
	return l.settle(ctx, tx, t, false)
}

const (
	kindHold      = "hold"
	kindTransfer  = "transfer"
	kindReversal  = "reversal"
	kindTombstone = "tombstone"
	kindCut       = "cut"
)

// How the ids begin that the ledger gives itself.
const (
	cutPrefix     = "cut:"
	depositPrefix = "deposit:"
)

// callers refuses an id that the ledger gives itself: a day cut would take a caller's transfer for its own, done before.
func (t Transfer) callers() error {
	id := t.ID
	if id == "" {
		id = HoldID(t.Gid, t.Branch)
	}
	for _, own := range []string{cutPrefix, depositPrefix} {
		if strings.HasPrefix(id, own) {
			return fmt.Errorf("%w: transfer id %q: ids that begin with %s are the ledger's own", barrier.ErrInvalid, id, own)
		}
	}
	return nil
}

// normal fills in what t leaves out and checks what can be checked without the database.
func (t Transfer) normal() (Transfer, error) {
	if t.ID == "" && t.Gid != "" {
		t.ID = HoldID(t.Gid, t.Branch)
	}
	for _, s := range []struct {
		what, text string
		max        int
	}{{"transfer id", t.ID, 260}, {"gid", t.Gid, 128}, {"branch", t.Branch, 128}, {"refund_of", t.RefundOf, 260}} {
		if s.text == "" && s.what != "transfer id" {
			continue
		}
		if err := barrier.CheckID(s.what, s.text, s.max); err != nil {
			return t, err
		}
	}
	legs := make([]Leg, len(t.Legs))
	for i, g := range t.Legs {
		m, err := money.Transfer{Account: g.Debit, Minor: g.Minor, Currency: g.Currency}.Normal()
		if err == nil {
			_, err = money.Transfer{Account: g.Credit, Minor: g.Minor, Currency: m.Currency}.Normal()
			if err != nil {
				err = fmt.Errorf("credit: %w", err)
			}
		}
		if err == nil && g.Debit == g.Credit {
			err = fmt.Errorf("%w: both sides are account %q", barrier.ErrInvalid, g.Debit)
		}
		if err != nil {
			return t, fmt.Errorf("leg %d: %w", i, err)
		}
		g.Currency = m.Currency
		legs[i] = g
	}
	t.Legs = legs
	return t, nil
}

// digest tells bodies apart.
func (t Transfer) digest(kind string) string {
	raw, err := json.Marshal(struct {
		Kind, Gid, Branch, Of string
		Legs                  []Leg
	}{kind, t.Gid, t.Branch, t.RefundOf, t.Legs})
	if err != nil {
		panic(err) // strings and integers always marshal
	}
	sum := sha256.Sum256(raw)
	return hex.EncodeToString(sum[:16])
}

// time gives now in microseconds since 1970, and the day as yyyymmdd.
func (l *Ledger) time() (us int64, day int) {
	now := l.now()
	return now.UnixMicro(), dayOf(now.In(l.location))
}

func dayOf(t time.Time) int { return t.Year()*10000 + int(t.Month())*100 + t.Day() }
