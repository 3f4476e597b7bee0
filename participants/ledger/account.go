package ledger

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strings"

	"github.com/lockstep-tx/lockstep/participants/barrier"
	"github.com/lockstep-tx/lockstep/participants/money"
	"github.com/lockstep-tx/lockstep/participants/mutant"
)

// Mode says how an account's counters are kept. It never changes.
type Mode string

// The modes. Sums are exact at every commit in each.
const (
	// Direct: one row, updated by each transfer.
	Direct Mode = "direct"
	// Serial is Direct in the tables, and says that the account is hot: its participant is to serve it by shared transactions,
	// so that the row is locked and synced once for many transfers. The kit shares them by default, for Direct accounts too;
	// it is the sharing that makes it fast, and a branch with Alone set has none.
	Serial Mode = "serial"
	// Buffered credits insert only: accepted and durable at once, posted to the counters in batches by a Poster. A debit
	// sees the whole balance. With Overdraft, debits insert only as well.
	Buffered Mode = "buffered"
	// Aggregated credits insert only too, into the account's clearing account; CutDay posts each day's as one summed entry.
	// Until then they cannot be debited (T+1). With Overdraft, debits go the same way.
	Aggregated Mode = "aggregated"
	// Split accounts have Shards rows of counters, chosen by a hash of the transfer's id; a debit gathers from them, and
	// Rebalance levels them.
	Split Mode = "split"

	// clearing is the companion of an Aggregated account.
	clearing       Mode = "clearing"
	clearingSuffix      = ":clearing"
)

// State of an account.
type State string

// A frozen or closed account takes no new hold or transfer; holds that are there can be posted and voided.
const (
	Open   State = "open"
	Frozen State = "frozen"
	Closed State = "closed"
)

// ShardsMax bounds a Split account.
const ShardsMax = 256

// Account is an account's definition.
type Account struct {
	ID       string `json:"id"`       // 1 to 128 bytes, not ending in ":clearing"
	Currency string `json:"currency"` // ISO 4217
	Mode     Mode   `json:"mode"`     // empty means Direct
	// Overdraft lets debits exceed credits: for the outside world, suspense and clearing.
	Overdraft bool `json:"overdraft,omitempty"`
	// MaxCredit and MaxDebit cap the sum of pending and posted credits and debits, in minor units; 0 is no cap. Only Direct
	// and Serial accounts can have one.
	MaxCredit int64 `json:"max_credit,omitempty"`
	MaxDebit  int64 `json:"max_debit,omitempty"`
	Shards    int   `json:"shards,omitempty"` // of Split: 2 to ShardsMax
	// GlobalOnly refuses debits of transactions whose durability is regional. In exchange the account is never at risk: no
	// debit of it is lost with a region. It never changes.
	GlobalOnly bool  `json:"global_only,omitempty"`
	State      State `json:"state"` // empty means Open
}

func (a Account) normal() (Account, error) {
	if a.Mode == "" {
		a.Mode = Direct
	}
	if a.State == "" {
		a.State = Open
	}
	if mutant.On(mutant.SkipBalanceCheck) {
		a.Overdraft = true
	}
	bad := func(format string, args ...any) error {
		return fmt.Errorf("%w: account %q: %s", barrier.ErrInvalid, a.ID, fmt.Sprintf(format, args...))
	}
	if err := barrier.CheckID("account id", a.ID, 128); err != nil {
		return a, err
	}
	switch {
	case strings.HasSuffix(a.ID, clearingSuffix):
		return a, bad("an id does not end in %s", clearingSuffix)
	case a.State != Open:
		return a, bad("it is opened open, not %s", a.State)
	case a.GlobalOnly && a.Overdraft:
		return a, bad("global_only: an account with overdraft is every region's own")
	case a.Mode != Split && a.Shards != 0:
		return a, bad("only a split account has shards")
	case a.Mode == Split && (a.Shards < 2 || a.Shards > ShardsMax):
		return a, bad("%d shards; 2 to %d are possible", a.Shards, ShardsMax)
	case a.MaxCredit < 0 || a.MaxDebit < 0:
		return a, bad("a cap is positive, or 0 for none")
	case a.Mode != Direct && a.Mode != Serial && (a.MaxCredit != 0 || a.MaxDebit != 0):
		return a, bad("a %s account cannot have a cap", a.Mode)
	}
	switch a.Mode {
	case Direct, Serial, Split, Buffered, Aggregated:
		return a, money.CheckCurrency(a.Currency)
	}
	return a, bad("mode %q", a.Mode)
}

// rows is how many rows of counters it has beside row 0.
func (a Account) rows() int {
	switch a.Mode {
	case Buffered, Aggregated:
		return 1
	}
	return a.Shards
}

// OpenAccount makes an account; durable on nil. The same definition again changes nothing, whatever its state; another
// one is a *Refusal with AccountExists.
func (l *Ledger) OpenAccount(ctx context.Context, db *sql.DB, a Account) error {
	a, err := a.normal()
	if err != nil {
		return err
	}
	return l.InTx(ctx, db, func(tx *sql.Tx) error {
		if err := l.insertAccount(ctx, tx, a); err != nil {
			return err
		}
		if a.Mode == Aggregated {
			c := Account{ID: a.ID + clearingSuffix, Currency: a.Currency, Mode: clearing, Overdraft: true, State: Open, Shards: 1}
			if err := l.insertAccount(ctx, tx, c); err != nil {
				return err
			}
		}
		has, err := l.definition(ctx, tx, a.ID)
		if err != nil {
			return err
		}
		has.State = a.State
		if has != a {
			return &Refusal{Reason: AccountExists, Field: "id", Account: a.ID, Detail: fmt.Sprintf("%+v", has)}
		}
		return nil
	})
}

func (l *Ledger) insertAccount(ctx context.Context, tx *sql.Tx, a Account) error {
	overdraft := "none"
	if a.Overdraft {
		overdraft = "any"
	}
	stmt := "INSERT INTO {p}account (id, shard, currency, mode, shards, overdraft, max_credit, max_debit, state, global_only) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
	if l.dialect == barrier.MySQL {
		stmt += " ON DUPLICATE KEY UPDATE id = id"
	} else {
		stmt += " ON CONFLICT (id, shard) DO NOTHING"
	}
	for shard := range a.rows() + 1 {
		r, err := tx.ExecContext(ctx, l.q(stmt), a.ID, shard, a.Currency, a.Mode, a.Shards, overdraft,
			sql.NullInt64{Int64: a.MaxCredit, Valid: a.MaxCredit != 0}, sql.NullInt64{Int64: a.MaxDebit, Valid: a.MaxDebit != 0}, a.State, oneIf(a.GlobalOnly))
		if err != nil {
			return fmt.Errorf("open account %s: %w", a.ID, err)
		}
		if n, err := r.RowsAffected(); err != nil || n == 0 {
			return err // it is there, with all its rows
		}
	}
	return nil
}

func oneIf(is bool) int {
	if is {
		return 1
	}
	return 0
}

// definition reads an account; sql.ErrNoRows if there is none.
func (l *Ledger) definition(ctx context.Context, db Querier, id string) (Account, error) {
	a := Account{ID: id}
	var overdraft string
	var globalOnly int
	err := db.QueryRowContext(ctx, l.q("SELECT currency, mode, shards, overdraft, coalesce(max_credit, 0), coalesce(max_debit, 0), state, global_only FROM {p}account WHERE id = ? AND shard = 0"), id).
		Scan(&a.Currency, &a.Mode, &a.Shards, &overdraft, &a.MaxCredit, &a.MaxDebit, &a.State, &globalOnly)
	a.Overdraft, a.GlobalOnly = overdraft == "any", globalOnly != 0
	return a, err
}

// SetState freezes, opens or closes an account; durable on nil. Closing wants it empty: nothing pending, buffered or on
// balance, else a *Refusal with AccountInUse; a closed account stays closed.
func (l *Ledger) SetState(ctx context.Context, db *sql.DB, id string, to State) error {
	if to != Open && to != Frozen && to != Closed {
		return fmt.Errorf("%w: state %q", barrier.ErrInvalid, to)
	}
	return l.InTx(ctx, db, func(tx *sql.Tx) error {
		if l.dialect == barrier.PostgreSQL {
			if _, err := tx.ExecContext(ctx, l.q("SELECT pg_advisory_xact_lock({lock}, hashtext(?))"), id); err != nil {
				return err
			}
		}
		// Nobody moves money on it between the look and the change.
		if _, err := tx.ExecContext(ctx, l.q("UPDATE {p}account SET state = state WHERE id = ?"), id); err != nil {
			return err
		}
		b, err := l.Balance(ctx, tx, id)
		if err != nil {
			return err
		}
		if b.State == Closed && to != Closed {
			return &Refusal{Reason: AccountClosed, Field: "state", Account: id}
		}
		if to == Closed && (b.DebitsPending != 0 || b.CreditsPending != 0 || b.Total() != 0 || b.BufferedCredits != 0 || b.BufferedDebits != 0) {
			return &Refusal{Reason: AccountInUse, Field: "state", Account: id, Detail: fmt.Sprintf("balance %d, pending debits %d, pending credits %d", b.Total(), b.DebitsPending, b.CreditsPending)}
		}
		if _, err := tx.ExecContext(ctx, l.q("UPDATE {p}account SET state = ? WHERE id = ?"), to, id); err != nil {
			return fmt.Errorf("account %s to %s: %w", id, to, err)
		}
		return nil
	})
}

// meta is what never changes of an account.
type meta struct {
	mode      Mode
	currency  string
	unlimited bool
	shards    int
	// globalOnly: see Account.
	globalOnly bool
}

// knownMax bounds the accounts kept in memory; past it, all are forgotten.
const knownMax = 1 << 17

// meta finds an account; sql.ErrNoRows if there is none. The entry may be of a transaction that was rolled back: every
// statement compares mode and currency again, and a refusal forgets the entry.
func (l *Ledger) meta(ctx context.Context, tx *sql.Tx, id string) (meta, error) {
	l.mu.Lock()
	m, ok := l.known[id]
	l.mu.Unlock()
	if ok {
		return m, nil
	}
	a, err := l.definition(ctx, tx, id)
	if err != nil {
		return m, err
	}
	m = meta{a.Mode, a.Currency, a.Overdraft, max(a.Shards, 1), a.GlobalOnly}
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.known) >= knownMax {
		clear(l.known)
	}
	l.known[id] = m
	return m, nil
}

func (l *Ledger) forget(id string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.known, id)
}

// why says why an account's row did not take a move.
func (l *Ledger) why(ctx context.Context, tx *sql.Tx, p *plan, m move, field string, isGate bool) error {
	l.forget(m.account)
	var state State
	var mode Mode
	var currency, overdraft string
	var maxCredit, maxDebit sql.NullInt64
	var dp, dq, cp, cq int64
	err := tx.QueryRowContext(ctx, l.q("SELECT state, mode, currency, overdraft, max_credit, max_debit, debits_pending, debits_posted, credits_pending, credits_posted FROM {p}account WHERE id = ? AND shard = ?{exclusive}"), m.account, m.shard).
		Scan(&state, &mode, &currency, &overdraft, &maxCredit, &maxDebit, &dp, &dq, &cp, &cq)
	switch {
	case errors.Is(err, sql.ErrNoRows):
		return &Refusal{Reason: NoAccount, Field: field, Account: m.account}
	case err != nil:
		return err
	case state == Frozen:
		return &Refusal{Reason: AccountFrozen, Field: field, Account: m.account}
	case state == Closed:
		return &Refusal{Reason: AccountClosed, Field: field, Account: m.account}
	case mode != m.mode || isGate:
		return fmt.Errorf("ledger %s %s: account %s is %s and was %s a moment ago; call again", p.kind, p.id, m.account, mode, m.mode)
	case currency != m.currency:
		return &Refusal{Reason: WrongCurrency, Field: "currency", Account: m.account, Detail: fmt.Sprintf("it is in %s, not %s", currency, m.currency)}
	}
	if free := cq - dq - dp; overdraft == "none" && m.debit > free+m.creditNow(p) {
		return &Refusal{Reason: InsufficientFunds, Field: "amount", Account: m.account, Detail: fmt.Sprintf("%d available, %d asked for", free, m.debit)}
	}
	if maxDebit.Valid && dp+dq+m.debit > maxDebit.Int64 {
		return &Refusal{Reason: DebitCap, Field: "amount", Account: m.account, Detail: fmt.Sprintf("%d of %d used, %d asked for", dp+dq, maxDebit.Int64, m.debit)}
	}
	if maxCredit.Valid && cp+cq+m.credit > maxCredit.Int64 {
		return &Refusal{Reason: CreditCap, Field: "amount", Account: m.account, Detail: fmt.Sprintf("%d of %d used, %d asked for", cp+cq, maxCredit.Int64, m.credit)}
	}
	return fmt.Errorf("ledger %s %s: account %s shard %d did not take the move and would now; call again", p.kind, p.id, m.account, m.shard)
}

// creditNow is the credit of a move that a debit in the same transfer may use.
func (m move) creditNow(p *plan) int64 {
	if p.post {
		return m.credit
	}
	return 0
}
