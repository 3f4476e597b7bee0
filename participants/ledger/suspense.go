package ledger

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"github.com/lockstep-tx/lockstep/participants/barrier"
)

// Suspense is the house's account of a currency through which effects are posted that an account's limits do not allow: a
// transaction that was committed in a region before it was lost, after its money was spent here. What stands there is
// somebody's claim, and a person settles it.
func Suspense(currency string) string { return "suspense:" + currency }

// Suspended is a leg that was posted through suspense.
type Suspended struct {
	Transfer string    `json:"transfer"`
	Leg      int       `json:"leg"`     // of the transfer as it was asked for, from 0
	Account  string    `json:"account"` // that should have been debited
	Minor    int64     `json:"amount"`
	Currency string    `json:"currency"`
	At       time.Time `json:"at"`
}

// Suspended lists what was posted through suspense, by transfer and leg.
func (l *Ledger) Suspended(ctx context.Context, db Querier) ([]Suspended, error) {
	rows, err := db.QueryContext(ctx, l.q("SELECT id, leg, account, amount, currency, created_us FROM {p}suspense ORDER BY id, leg"))
	if err != nil {
		return nil, fmt.Errorf("ledger: suspense: %w", err)
	}
	defer rows.Close()
	var out []Suspended
	for rows.Next() {
		var s Suspended
		var us int64
		if err := rows.Scan(&s.Transfer, &s.Leg, &s.Account, &s.Minor, &s.Currency, &us); err != nil {
			return nil, fmt.Errorf("ledger: suspense: %w", err)
		}
		s.At = time.UnixMicro(us).UTC()
		out = append(out, s)
	}
	return out, rows.Err()
}

// effectPastLimits posts t; a debit that its account's limits do not allow is taken from suspense instead, and written down.
// A transfer that is here is what it is.
func (l *Ledger) effectPastLimits(ctx context.Context, tx *sql.Tx, t Transfer) error {
	t, err := t.normal()
	if err != nil {
		return err
	}
	if _, _, _, err := l.TransferState(ctx, tx, t.ID); !errors.Is(err, sql.ErrNoRows) {
		if err != nil {
			return err
		}
		return l.enterCopy(ctx, tx, t, true)
	}
	debited := map[string]int64{}
	for i, g := range t.Legs {
		fits, err := l.fits(ctx, tx, g, debited[g.Debit])
		if err != nil {
			return err
		}
		if fits {
			debited[g.Debit] += g.Minor
			continue
		}
		if err := l.suspend(ctx, tx, t.ID, i, g); err != nil {
			return err
		}
		t.Legs[i].Debit = Suspense(g.Currency)
	}
	return l.enterCopy(ctx, tx, t, true)
}

// fits says whether an account can be debited by a leg, after so much of the same transfer. It may change until the leg is
// written: then the schema refuses it, and the caller repeats the call.
func (l *Ledger) fits(ctx context.Context, tx *sql.Tx, g Leg, before int64) (bool, error) {
	b, err := l.Balance(ctx, tx, g.Debit)
	if errors.Is(err, sql.ErrNoRows) {
		return true, nil // which enterCopy refuses
	}
	if err != nil {
		return false, err
	}
	n := before + g.Minor
	return (b.Overdraft || n <= b.Available()) && (b.MaxDebit == 0 || b.DebitsPending+b.DebitsPosted+n <= b.MaxDebit), nil
}

// suspend opens the suspense account where it is not there, and writes down what goes through it.
func (l *Ledger) suspend(ctx context.Context, tx *sql.Tx, id string, leg int, g Leg) error {
	a := Account{ID: Suspense(g.Currency), Currency: g.Currency, Mode: Direct, Overdraft: true, State: Open}
	if err := l.insertAccount(ctx, tx, a); err != nil {
		return err
	}
	has, err := l.definition(ctx, tx, a.ID)
	if err != nil {
		return err
	}
	if !has.Overdraft || has.Currency != g.Currency {
		return fmt.Errorf("%w: account %q is no suspense account; it was opened by somebody else", barrier.ErrInvalid, a.ID)
	}
	us, _ := l.time()
	_, err = tx.ExecContext(ctx, l.q("INSERT INTO {p}suspense (id, leg, account, amount, currency, created_us) VALUES (?, ?, ?, ?, ?, ?)"), id, leg, g.Debit, g.Minor, g.Currency, us)
	return err
}
