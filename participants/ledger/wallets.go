package ledger

import (
	"context"
	"database/sql"
	"fmt"
	"strings"

	"github.com/lockstep-tx/lockstep/participants/barrier"
	"github.com/lockstep-tx/lockstep/participants/money"
	"github.com/lockstep-tx/lockstep/participants/mutant"
)

// Wallets is a ledger whose branches work on one account each, so that each has its home in that account's: a pay takes
// money from it to the house's passage of the currency, a receive takes it from there. Where both sides of a transaction
// are done, or applied, the passage is level.
type Wallets struct{ *Ledger }

// Passage is the house's account that money passes over between two wallets.
func Passage(currency string) string { return "house:passage:" + currency }

// OpenWallet makes an account with a first deposit, as Buyers.Create does. Every region opens it alike.
func (w Wallets) OpenWallet(ctx context.Context, db *sql.DB, id, currency string, deposit int64) error {
	return w.OpenWalletIn(ctx, db, Account{ID: id, Currency: currency}, deposit)
}

// OpenWalletIn is OpenWallet for an account with attributes, as Buyers.CreateIn takes it.
func (w Wallets) OpenWalletIn(ctx context.Context, db *sql.DB, a Account, deposit int64) error {
	if strings.HasPrefix(a.ID, "house:") {
		return fmt.Errorf("%w: account id %q is of the house", barrier.ErrInvalid, a.ID)
	}
	if err := w.OpenAccount(ctx, db, Account{ID: Passage(a.Currency), Currency: a.Currency, Overdraft: true}); err != nil {
		return err
	}
	return Buyers{w.Ledger}.CreateIn(ctx, db, a, deposit)
}

// Direction of a wallet's branch.
type Direction bool

// Pay takes money from the wallet, Receive brings money to it.
const (
	Pay     Direction = true
	Receive Direction = false
)

// Transfer is what a branch of the direction moves.
func (d Direction) Transfer(call *barrier.Call, t money.Transfer) (Transfer, error) {
	t, err := t.Normal()
	leg := Leg{Debit: Passage(t.Currency), Credit: t.Account, Minor: t.Minor, Currency: t.Currency}
	if d == Pay {
		leg.Debit, leg.Credit = leg.Credit, leg.Debit
	}
	return Of(call, leg), err
}

// WalletOp is one function of a wallet's branch, as the kit takes it.
type WalletOp func(ctx context.Context, tx *sql.Tx, call *barrier.Call, t money.Transfer) error

func (d Direction) op(f func(context.Context, *sql.Tx, Transfer) error) WalletOp {
	return func(ctx context.Context, tx *sql.Tx, call *barrier.Call, t money.Transfer) error {
		p, err := d.Transfer(call, t)
		if err != nil {
			return err
		}
		return f(ctx, tx, p)
	}
}

// Try, Confirm and Cancel are the functions of a branch of the direction.
func (w Wallets) Try(d Direction) WalletOp     { return d.op(w.Hold) }
func (w Wallets) Confirm(d Direction) WalletOp { return d.op(w.Post) }
func (w Wallets) Cancel(d Direction) WalletOp  { return d.op(w.Void) }

// Apply is the function that does the same to a copy.
func (w Wallets) Apply(d Direction) WalletOp {
	if mutant.On(mutant.WrongSign) {
		d = !d
	}
	return d.op(w.Effect)
}

// WalletsState is a consistent look at one region's wallets and at the house's accounts beside them, by id.
type WalletsState struct {
	Accounts []Balance `json:"accounts"`
	// Balance is the sum over the wallets, Frozen what they hold for undecided payments, by currency.
	Balance map[string]int64 `json:"balance"`
	Frozen  map[string]int64 `json:"frozen"`
	// Passage is the balance of the passages by currency: 0 where both sides of everything have arrived.
	Passage map[string]int64 `json:"passage"`
	// Open counts holds that are neither posted nor voided.
	Open int64 `json:"open"`
	// Faults are what Audit finds.
	Faults []string `json:"faults"`
}

// State reads the state in one transaction, and audits the book after it.
func (w Wallets) State(ctx context.Context, db *sql.DB) (WalletsState, error) {
	s := WalletsState{Balance: map[string]int64{}, Frozen: map[string]int64{}, Passage: map[string]int64{}}
	tx, err := w.beginRead(ctx, db)
	if err != nil {
		return s, err
	}
	defer func() { _ = tx.Rollback() }()
	ids, err := w.ids(ctx, tx)
	if err != nil {
		return s, err
	}
	for _, id := range ids {
		b, err := w.Balance(ctx, tx, id)
		if err != nil {
			return s, err
		}
		s.Accounts = append(s.Accounts, b)
		switch {
		case b.ID == Passage(b.Currency):
			s.Passage[b.Currency] = b.Total()
		case !b.Overdraft:
			s.Balance[b.Currency] += b.Total()
			s.Frozen[b.Currency] += b.DebitsPending
		}
	}
	if err := tx.QueryRowContext(ctx, w.q("SELECT count(*) FROM {p}transfer WHERE state = 'pending' AND leg = 0")).Scan(&s.Open); err != nil {
		return s, err
	}
	if err := tx.Rollback(); err != nil {
		return s, err
	}
	s.Faults, err = w.Audit(ctx, db)
	return s, err
}

func (w Wallets) ids(ctx context.Context, q Querier) ([]string, error) {
	rows, err := q.QueryContext(ctx, w.q("SELECT id FROM {p}account WHERE shard = 0 ORDER BY id"))
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var out []string
	for rows.Next() {
		var id string
		if err := rows.Scan(&id); err != nil {
			return nil, err
		}
		out = append(out, id)
	}
	return out, rows.Err()
}

func (w Wallets) beginRead(ctx context.Context, db *sql.DB) (*sql.Tx, error) {
	if w.dialect == barrier.SQLite {
		return db.BeginTx(ctx, nil)
	}
	return db.BeginTx(ctx, &sql.TxOptions{Isolation: sql.LevelRepeatableRead, ReadOnly: true})
}
