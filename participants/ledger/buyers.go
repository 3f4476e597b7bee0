package ledger

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strings"

	"github.com/lockstep-tx/lockstep/participants/barrier"
	"github.com/lockstep-tx/lockstep/participants/money"
)

// Buyers is a ledger whose accounts are buyers': a payment moves money from one of them to the house's account of that
// currency.
type Buyers struct{ *Ledger }

// The house's accounts, by currency: where deposits come from and where payments go.
const (
	outside = "house:outside:"
	paid    = "house:paid:"
)

// housePrefix begins the house's accounts: no buyer's does.
const housePrefix = "house:"

// PaidTo is the house's account of a currency that payments go to and refunds come from.
func PaidTo(currency string) string { return paid + currency }

// Create opens an account with a first deposit. The same account again, with the same deposit, changes nothing; with
// another one it is refused.
func (b Buyers) Create(ctx context.Context, db *sql.DB, id, currency string, deposit int64) error {
	return b.CreateIn(ctx, db, Account{ID: id, Currency: currency}, deposit)
}

// CreateIn is Create for an account in any mode but Aggregated, whose money could not be spent on the day it comes.
func (b Buyers) CreateIn(ctx context.Context, db *sql.DB, a Account, deposit int64) error {
	id, currency := a.ID, a.Currency
	if deposit < 0 || deposit > money.MinorMax {
		return fmt.Errorf("%w: account %q with deposit %d", barrier.ErrInvalid, id, deposit)
	}
	if a.Mode == Aggregated || a.Overdraft || strings.HasPrefix(id, housePrefix) {
		return fmt.Errorf("%w: account %q: a buyer's is not aggregated, has no overdraft and does not begin with %s", barrier.ErrInvalid, id, housePrefix)
	}
	err := b.OpenAccount(ctx, db, a)
	for _, house := range []string{outside, paid} {
		if err == nil {
			err = b.openHouse(ctx, db, house+currency, currency)
		}
	}
	if err != nil {
		return err
	}
	return b.InTx(ctx, db, func(tx *sql.Tx) error {
		if deposit == 0 {
			return b.noDeposit(ctx, tx, id)
		}
		err := b.enter(ctx, tx, Transfer{ID: depositPrefix + id, Legs: []Leg{{Debit: outside + currency, Credit: id, Minor: deposit, Currency: currency}}}, kindTransfer, true)
		var other *MismatchError
		if errors.As(err, &other) {
			return &Refusal{Reason: AccountExists, Field: "balance", Account: id, Detail: "it was opened with another deposit"}
		}
		return err
	})
}

// openHouse opens an account of the house. Every payment or deposit goes there, so both sides are insert only; a Poster
// brings its counters up.
func (b Buyers) openHouse(ctx context.Context, db *sql.DB, id, currency string) error {
	err := b.OpenAccount(ctx, db, Account{ID: id, Currency: currency, Overdraft: true, Mode: Buffered})
	var no *Refusal
	if errors.As(err, &no) && no.Reason == AccountExists {
		return nil // from before, in the mode of then: modes never change
	}
	return err
}

// noDeposit refuses an account that has one.
func (b Buyers) noDeposit(ctx context.Context, tx *sql.Tx, id string) error {
	if _, err := b.header(ctx, tx, depositPrefix+id, ""); !errors.Is(err, sql.ErrNoRows) {
		return errors.Join(err, &Refusal{Reason: AccountExists, Field: "balance", Account: id, Detail: "it was opened with a deposit"})
	}
	return nil
}

func (b Buyers) payment(call *barrier.Call, t money.Transfer) (Transfer, error) {
	t, err := t.Normal()
	return Of(call, Leg{Debit: t.Account, Credit: paid + t.Currency, Minor: t.Minor, Currency: t.Currency}), err
}

// Freeze is the try: it holds t for the branch. See Hold.
func (b Buyers) Freeze(ctx context.Context, tx *sql.Tx, call *barrier.Call, t money.Transfer) error {
	p, err := b.payment(call, t)
	if err != nil {
		return err
	}
	err = b.Hold(ctx, tx, p)
	var no *Refusal
	if errors.As(err, &no) && no.Reason == NoAccount && no.Account == paid+p.Legs[0].Currency {
		return &Refusal{Reason: WrongCurrency, Field: "currency", Account: t.Account, Detail: "no account is in " + p.Legs[0].Currency}
	}
	return err
}

// Confirm spends what the branch's try froze. t must be the try's; a difference is an error that somebody must look at.
func (b Buyers) Confirm(ctx context.Context, tx *sql.Tx, call *barrier.Call, t money.Transfer) error {
	p, err := b.payment(call, t)
	if err != nil {
		return err
	}
	return b.Post(ctx, tx, p)
}

// Cancel gives back what the branch's try froze. Of a try that never ran the barrier keeps it away.
func (b Buyers) Cancel(ctx context.Context, tx *sql.Tx, call *barrier.Call, t money.Transfer) error {
	p, err := b.payment(call, t)
	if err != nil {
		return err
	}
	return b.Void(ctx, tx, p)
}

// Buyer is one buyer's account; amounts in minor units. Deposited is Balance + Frozen + Spent.
type Buyer struct {
	ID        string `json:"id"`
	Currency  string `json:"currency"`
	Deposited int64  `json:"deposited"`
	Balance   int64  `json:"balance"` // may be spent
	Frozen    int64  `json:"frozen"`  // held by payments that are not decided
	Spent     int64  `json:"spent"`
}

// BuyersState is a consistent look at all buyers.
type BuyersState struct {
	Accounts  []Buyer `json:"accounts"` // by id
	Deposited int64   `json:"deposited"`
	Balance   int64   `json:"balance"`
	Frozen    int64   `json:"frozen"`
	Spent     int64   `json:"spent"`
	// OpenHolds and OpenAmount recount what is frozen from the holds.
	OpenHolds  int64 `json:"open_holds"`
	OpenAmount int64 `json:"open_amount"`
	// ConfirmedAmount recounts what is spent from the entries.
	ConfirmedAmount int64 `json:"confirmed_amount"`
	// Refunded is what went back to buyers of it, from the entries too; House is what the house's accounts have of payments,
	// on their counters and waiting for the Poster.
	Refunded int64 `json:"refunded"`
	House    int64 `json:"house"`
}

// Faults returns what is wrong with the sums; nil if nothing is.
func (s BuyersState) Faults() []string {
	var faults []string
	if s.Deposited != s.Balance+s.Frozen+s.Spent {
		faults = append(faults, fmt.Sprintf("ledger: deposited %d is not balance %d + frozen %d + spent %d", s.Deposited, s.Balance, s.Frozen, s.Spent))
	}
	if s.Frozen != s.OpenAmount {
		faults = append(faults, fmt.Sprintf("ledger: frozen %d, but the open holds have %d", s.Frozen, s.OpenAmount))
	}
	if s.Spent != s.ConfirmedAmount {
		faults = append(faults, fmt.Sprintf("ledger: spent %d, but the entries have %d", s.Spent, s.ConfirmedAmount))
	}
	if s.House != s.ConfirmedAmount-s.Refunded {
		faults = append(faults, fmt.Sprintf("ledger: the house has %d, but paid and refunded are %d and %d", s.House, s.ConfirmedAmount, s.Refunded))
	}
	return faults
}

// Read returns the state in one read transaction.
func (b Buyers) Read(ctx context.Context, db *sql.DB) (BuyersState, error) {
	var s BuyersState
	var o *sql.TxOptions
	if b.dialect != barrier.SQLite {
		o = &sql.TxOptions{Isolation: sql.LevelRepeatableRead}
	}
	tx, err := db.BeginTx(ctx, o)
	if err != nil {
		return s, err
	}
	defer func() { _ = tx.Rollback() }()
	rows, err := tx.QueryContext(ctx, b.q(`SELECT d.id, d.currency, a.dp, a.dq, a.cq + coalesce(u.c, 0) FROM {p}account d
		JOIN (SELECT id, sum(debits_pending) AS dp, sum(debits_posted) AS dq, sum(credits_posted) AS cq FROM {p}account GROUP BY id) a ON a.id = d.id
		LEFT JOIN (SELECT account, sum(credit) AS c FROM {p}buffer GROUP BY account) u ON u.account = d.id
		WHERE d.overdraft = 'none' AND d.shard = 0 ORDER BY d.id`))
	if err != nil {
		return s, err
	}
	defer rows.Close()
	for rows.Next() {
		var a Buyer
		if err := rows.Scan(&a.ID, &a.Currency, &a.Frozen, &a.Spent, &a.Deposited); err != nil {
			return s, err
		}
		a.Balance = a.Deposited - a.Frozen - a.Spent
		s.Accounts = append(s.Accounts, a)
		s.Deposited += a.Deposited
		s.Balance += a.Balance
		s.Frozen += a.Frozen
		s.Spent += a.Spent
	}
	if err := rows.Err(); err != nil {
		return s, err
	}
	if err := tx.QueryRowContext(ctx, b.q("SELECT count(*), coalesce(sum(amount), 0) FROM {p}transfer WHERE state = 'pending'")).Scan(&s.OpenHolds, &s.OpenAmount); err != nil {
		return s, err
	}
	err = tx.QueryRowContext(ctx, b.q(`SELECT coalesce(sum(CASE WHEN direction = 'credit' THEN amount END), 0), coalesce(sum(CASE WHEN direction = 'debit' THEN amount END), 0),
		(SELECT coalesce(sum(credits_posted - debits_posted), 0) FROM {p}account WHERE id LIKE ?) + (SELECT coalesce(sum(credit - debit), 0) FROM {p}buffer WHERE account LIKE ?)
		FROM {p}entry WHERE account LIKE ?`), paid+"%", paid+"%", paid+"%").Scan(&s.ConfirmedAmount, &s.Refunded, &s.House)
	return s, err
}
