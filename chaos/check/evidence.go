// Package check decides whether what a run has left behind keeps the promises.
//
// Its law: it reads what clients were told, what participants answered, and the rows of their databases and journals by
// SQL of its own; of the product it uses nothing, least of all what reconciles (a test of the imports says so). A checker
// says how many subjects it examined; none, or an arming condition that was not met, is no pass.
package check

import (
	"cmp"
	"context"
	"crypto/sha256"
	"database/sql"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"time"

	_ "github.com/go-sql-driver/mysql" // drivers
	_ "github.com/jackc/pgx/v5/stdlib"
	_ "modernc.org/sqlite"

	"github.com/lockstep-tx/lockstep/chaos/history"
	"github.com/lockstep-tx/lockstep/chaos/tap"
)

// Account is one account's row, or the sum of its rows.
type Account struct {
	ID             string `json:"id"`
	DebitsPending  int64  `json:"debits_pending"`
	DebitsPosted   int64  `json:"debits_posted"`
	CreditsPending int64  `json:"credits_pending"`
	CreditsPosted  int64  `json:"credits_posted"`
}

// Balance is what was posted.
func (a *Account) Balance() int64 { return a.CreditsPosted - a.DebitsPosted }

// House says that it is the house's, not a wallet.
func (a *Account) House() bool { return strings.HasPrefix(a.ID, "house:") }

// Transfer is one branch's hold or effect in a ledger.
type Transfer struct {
	Gid    string `json:"gid"`
	Branch string `json:"branch"`
	Kind   string `json:"kind"`
	State  string `json:"state"`
	Debit  string `json:"debit"`
	Credit string `json:"credit"`
	Amount int64  `json:"amount"`
	// Currency, with what a server pads it with taken away.
	Currency string `json:"currency,omitempty"`
	ID       string `json:"id,omitempty"`
	Of       string `json:"of,omitempty"` // the transfer that a reversal takes back; "mended": it was there twice, and is not counted
}

// Entry is one posting.
type Entry struct {
	Gid       string `json:"gid"`
	Branch    string `json:"branch"`
	Direction string `json:"direction"`
	Account   string `json:"account"`
	Amount    int64  `json:"amount"`
	Currency  string `json:"currency,omitempty"`
	Transfer  string `json:"transfer,omitempty"` // that made it
}

// Row is one row of a barrier: reason is the operation that wrote it.
type Row struct {
	Gid    string `json:"gid"`
	Branch string `json:"branch"`
	Op     string `json:"op"`
	Reason string `json:"reason"`
}

// Book is everything in one region's wallets' database.
type Book struct {
	Region    string     `json:"region"`
	Accounts  []Account  `json:"accounts"`
	Transfers []Transfer `json:"transfers"`
	Entries   []Entry    `json:"entries"`
	Rows      []Row      `json:"rows"`
}

// Snapshot is a consistent look at one book while the run goes on.
type Snapshot struct {
	Region   string    `json:"region"`
	At       int64     `json:"at"`
	Accounts []Account `json:"accounts"`
}

// Window is when a fault was there, on the history's clock.
type Window struct {
	Fault    string `json:"fault"`
	Injected int64  `json:"injected"`
	Healed   int64  `json:"healed"`
	Crash    bool   `json:"crash"`          // a process died at the injection
	Drift    bool   `json:"drift"`          // money was altered behind the product's back, and had been repaired at the healing
	Lost     bool   `json:"lost,omitempty"` // a region's slots were taken by force, and it returned
	// Erased is the region whose disks were gone when it returned; "" for none. Gone is when the last of its processes was dead.
	Erased   string `json:"erased,omitempty"`
	Gone     int64  `json:"gone,omitempty"`
	InFlight int    `json:"in_flight"`
	AtHeal   int    `json:"at_heal"` // in flight at the healing
}

// Decided is a transaction's row in a journal.
type Decided struct {
	Region   string `json:"region"`
	Gid      string `json:"gid"`
	Phase    int    `json:"phase"` // as journals number them
	Finished bool   `json:"finished"`
	// Slot, Origin and the numbers of its two events; FinishSeq 0 and At 0 where it is not finished. At is unix ms.
	Slot        int   `json:"slot,omitempty"`
	Origin      int64 `json:"origin,omitempty"` // of the finish, or of the decision
	DecisionSeq int64 `json:"decision_seq,omitempty"`
	FinishSeq   int64 `json:"finish_seq,omitempty"`
	At          int64 `json:"at,omitempty"`
	// Body is a digest of what is kept of it beside numbers and chains; "" where that was trimmed.
	Body string `json:"body,omitempty"`
}

// Event is one event in a journal: of a decision, a finish, or of the slot.
type Event struct {
	Region string `json:"region"` // whose journal
	Origin int64  `json:"origin"`
	Slot   int    `json:"slot"`
	Seq    int64  `json:"seq"`
	Chain  string `json:"chain"`
}

// Evidence is what a run has left behind.
type Evidence struct {
	Opened    int64
	Ops       []history.Op
	Calls     []tap.Call
	Books     []Book
	Snapshots []Snapshot
	Decided   []Decided
	Events    []Event
	Reaches   []Reach // those that have moved, in order of time
	Windows   []Window
	// Driven are the transactions that coordinators still drove at the end, Silent the coordinators that did not answer then, with why.
	Driven []string
	Silent []string
	// Lagged is by how many events the regions' journals differed at the healing.
	Lagged int
	// GivenUp are the transactions that may have been known to a region alone whose disks are gone: an operator has given them up.
	GivenUp []string
	// Plants is the drift that was planted, Repairs what participants were asked to repair.
	Plants  []Plant
	Repairs []tap.Repair
	// Foreign says that the accounts are in somebody else's tables: books are empty, and Balances are what each participant said at the
	// end of the accounts that have their home there, opened with Deposit each.
	Foreign  bool
	Balances map[string]int64
	Deposit  int64
	// Owned is what was written of slots' owners, in the order in which it was.
	Owned []Owned
	// Stores is the last look at the etcds.
	Stores Stores
	// Lacks says, by checker, what the system under test has not that the checker is about: it is skipped, with that reason.
	Lacks map[string]string
	// LateAnswer is what a try that came after its cancel is answered where it is kept from having an effect; 0 means 409.
	LateAnswer int
}

// open opens an address for reading.
func open(address string) (*sql.DB, string, error) {
	scheme, rest, _ := strings.Cut(address, ":")
	switch scheme {
	case "sqlite":
		db, err := sql.Open("sqlite", "file:"+(&url.URL{Path: rest}).EscapedPath()+"?mode=ro&_pragma=busy_timeout(10000)")
		return db, scheme, err
	case "postgres", "postgresql":
		db, err := sql.Open("pgx", address)
		return db, "postgres", err
	case "mysql", "mariadb":
		u, err := url.Parse(address)
		if err != nil {
			return nil, "", err
		}
		password, _ := u.User.Password()
		db, err := sql.Open("mysql", u.User.Username()+":"+password+"@tcp("+u.Host+")"+u.Path)
		return db, "mysql", err
	}
	return nil, "", fmt.Errorf("database %q: sqlite:FILE, postgres://… or mysql://… are read", scheme)
}

// reading runs f in one read transaction, so that all that f reads is of one moment.
func reading(ctx context.Context, address string, f func(tx *sql.Tx, kind string) error) error {
	db, kind, err := open(address)
	if err != nil {
		return err
	}
	defer db.Close()
	o := &sql.TxOptions{ReadOnly: true}
	if kind != "sqlite" {
		o.Isolation = sql.LevelRepeatableRead
	}
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	tx, err := db.BeginTx(ctx, o)
	if err != nil {
		return err
	}
	defer func() { _ = tx.Rollback() }() // it only reads
	return f(tx, kind)
}

// all reads the rows of a query.
func all[T any](tx *sql.Tx, query string, scan func(rows *sql.Rows, t *T) error) (out []T, err error) {
	rows, err := tx.Query(query)
	if err != nil {
		return nil, fmt.Errorf("%.60s…: %w", query, err)
	}
	defer func() { err = errors.Join(err, rows.Close()) }()
	for rows.Next() {
		var t T
		if err := scan(rows, &t); err != nil {
			return nil, err
		}
		out = append(out, t)
	}
	return out, rows.Err()
}

func accounts(tx *sql.Tx) ([]Account, error) {
	return all(tx, "SELECT id, sum(debits_pending), sum(debits_posted), sum(credits_pending), sum(credits_posted) FROM ledger_account GROUP BY id", func(r *sql.Rows, a *Account) error {
		return r.Scan(&a.ID, &a.DebitsPending, &a.DebitsPosted, &a.CreditsPending, &a.CreditsPosted)
	})
}

// barrierTable is where a barrier's rows are. A schema belongs to its database, but on a MySQL server: there it is one for
// the whole server, and each region has its own, so that one's rows are never taken for the other's.
func barrierTable(kind, schema string) string {
	schema = cmp.Or(schema, "dtm_barrier")
	if kind == "sqlite" {
		return schema + "_barrier"
	}
	return schema + ".barrier"
}

// ReadBook reads a region's book whole, with the rows of the barrier in schema; "" is the default.
func ReadBook(ctx context.Context, region, address, schema string) (Book, error) {
	b := Book{Region: region}
	err := reading(ctx, address, func(tx *sql.Tx, kind string) (err error) {
		if b.Accounts, err = accounts(tx); err != nil {
			return err
		}
		if b.Transfers, err = all(tx, "SELECT gid, branch, kind, state, debit, credit, amount, currency, id, of_id FROM ledger_transfer", func(r *sql.Rows, t *Transfer) error {
			err := r.Scan(&t.Gid, &t.Branch, &t.Kind, &t.State, &t.Debit, &t.Credit, &t.Amount, &t.Currency, &t.ID, &t.Of)
			t.Currency = strings.TrimSpace(t.Currency)
			return err
		}); err != nil {
			return err
		}
		if b.Entries, err = all(tx, "SELECT gid, branch, direction, account, amount, currency, transfer_id FROM ledger_entry", func(r *sql.Rows, e *Entry) error {
			err := r.Scan(&e.Gid, &e.Branch, &e.Direction, &e.Account, &e.Amount, &e.Currency, &e.Transfer)
			e.Currency = strings.TrimSpace(e.Currency)
			return err
		}); err != nil {
			return err
		}
		b.Rows, err = all(tx, "SELECT gid, branch_id, op, reason FROM "+barrierTable(kind, schema), func(r *sql.Rows, w *Row) error { return r.Scan(&w.Gid, &w.Branch, &w.Op, &w.Reason) })
		return err
	})
	return b, err
}

// ReadSnapshot reads a region's accounts.
func ReadSnapshot(ctx context.Context, region, address string, now func() int64) (Snapshot, error) {
	s := Snapshot{Region: region}
	err := reading(ctx, address, func(tx *sql.Tx, _ string) (err error) {
		s.Accounts, err = accounts(tx)
		return err
	})
	s.At = now()
	return s, err
}

// ReadJournal reads a region's journal.
func ReadJournal(ctx context.Context, region, address string) (decided []Decided, events []Event, err error) {
	err = reading(ctx, address, func(tx *sql.Tx, _ string) error {
		_, err := all(tx, "SELECT gid, slot, phase, decision_seq, decision_epoch, decision_chain, finish_seq, finish_epoch, finish_chain, finished_at, body, closed, progress FROM lockstep_journal", func(r *sql.Rows, _ *struct{}) error {
			var gid, chain, fchain, closed, progress []byte
			var slot, phase, body int
			var seq, epoch int64
			var fseq, fepoch, at sql.NullInt64
			if err := r.Scan(&gid, &slot, &phase, &seq, &epoch, &chain, &fseq, &fepoch, &fchain, &at, &body, &closed, &progress); err != nil {
				return err
			}
			d := Decided{Region: region, Gid: string(gid), Phase: phase, Finished: fseq.Valid, Slot: slot, Origin: epoch % 100, DecisionSeq: seq, FinishSeq: fseq.Int64, At: at.Int64}
			if fseq.Valid {
				d.Origin = fepoch.Int64 % 100
			}
			if body != 0 {
				h := sha256.New()
				fmt.Fprintf(h, "%d:%s%d:%s", len(closed), closed, len(progress), progress)
				d.Body = fmt.Sprintf("%x", h.Sum(nil)[:8])
			}
			decided = append(decided, d)
			events = append(events, Event{region, epoch % 100, slot, seq, fmt.Sprintf("%x", chain)})
			if fseq.Valid {
				events = append(events, Event{region, fepoch.Int64 % 100, slot, fseq.Int64, fmt.Sprintf("%x", fchain)})
			}
			return nil
		})
		if err != nil {
			return err
		}
		more, err := all(tx, "SELECT origin, slot, seq, chain FROM lockstep_event", func(r *sql.Rows, e *Event) error {
			var chain []byte
			err := r.Scan(&e.Origin, &e.Slot, &e.Seq, &chain)
			e.Region, e.Chain = region, fmt.Sprintf("%x", chain)
			return err
		})
		events = append(events, more...)
		return err
	})
	return decided, events, err
}
