package inventory

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"github.com/lockstep-tx/lockstep/participants/barrier"
	"github.com/lockstep-tx/lockstep/participants/sqldb"
)

// ReserveOrder holds items for an order ahead of its payment, until expires; durable on nil. A repeat of an order that is
// there changes nothing. *Refusal as Reserve.
func (v *Inventory) ReserveOrder(ctx context.Context, db *sql.DB, id string, items []Item, expires time.Time) error {
	r, err := Request{Items: items}.normal()
	if err != nil {
		return err
	}
	if err := barrier.CheckID("order", id, 64); err != nil {
		return err
	}
	return sqldb.InTx(ctx, db, func(tx *sql.Tx) error {
		res, err := tx.ExecContext(ctx, v.d.InsertNew("INTO inventory_order (id, state, expires_ms) VALUES (?, 'reserved', ?)"), id, expires.UnixMilli())
		if err != nil {
			return err
		}
		if n, err := res.RowsAffected(); err != nil || n == 0 {
			return err
		}
		return v.hold(ctx, tx, orderHolder(id), r.Items)
	})
}

// ErrOrderTaken says that an order cannot be cancelled: it is being paid or was paid.
var ErrOrderTaken = errors.New("the order is being paid or was paid")

// CancelOrder gives an unpaid order's items back (撤单); durable on nil. A repeat changes nothing. ErrOrderTaken while a
// payment has it and after; sql.ErrNoRows if there is none.
func (v *Inventory) CancelOrder(ctx context.Context, db *sql.DB, id string) error {
	return sqldb.InTx(ctx, db, func(tx *sql.Tx) error {
		ok, err := v.d.Change(ctx, tx, "UPDATE inventory_order SET state = 'released' WHERE id = ? AND state = 'reserved'", id)
		if err != nil {
			return err
		}
		if ok {
			return v.settle(ctx, tx, orderHolder(id), "released")
		}
		var state string
		if err := tx.QueryRowContext(ctx, v.d.Q("SELECT state FROM inventory_order WHERE id = ?"), id).Scan(&state); err != nil {
			return err
		}
		if state != "released" {
			return fmt.Errorf("%w: %s", ErrOrderTaken, state)
		}
		return nil
	})
}

// OrderState is reserved, paying, sold or released; sql.ErrNoRows if there is no such order.
func (v *Inventory) OrderState(ctx context.Context, db *sql.DB, id string) (state string, expires time.Time, err error) {
	var ms int64
	err = db.QueryRowContext(ctx, v.d.Q("SELECT state, expires_ms FROM inventory_order WHERE id = ?"), id).Scan(&state, &ms)
	return state, time.UnixMilli(ms), err
}

// Expire releases orders that have lapsed, at most limit of them, and gives how many. One that is being paid stays.
func (v *Inventory) Expire(ctx context.Context, db *sql.DB, limit int) (int, error) {
	rows, err := db.QueryContext(ctx, v.d.Q("SELECT id FROM inventory_order WHERE state = 'reserved' AND expires_ms <= ? LIMIT ?"), v.now().UnixMilli(), limit)
	if err != nil {
		return 0, err
	}
	var ids []string
	for rows.Next() {
		var id string
		if err := rows.Scan(&id); err != nil {
			rows.Close()
			return 0, err
		}
		ids = append(ids, id)
	}
	if err := errors.Join(rows.Err(), rows.Close()); err != nil {
		return 0, err
	}
	done := 0
	for _, id := range ids {
		switch err := v.CancelOrder(ctx, db, id); {
		case err == nil:
			done++
		case !errors.Is(err, ErrOrderTaken): // a payment was faster
			return done, err
		}
	}
	return done, nil
}

// State is a consistent look at all articles.
type State struct {
	Articles            []Article `json:"articles"`   // by sku
	OpenHolds           int64     `json:"open_holds"` // of payments
	HeldItems, SoldSums int64     `json:"-"`
}

// Article is one article's numbers.
type Article struct {
	SKU  string `json:"sku"`
	Free int64  `json:"free"`
	Held int64  `json:"held"`
	Sold int64  `json:"sold"`
}

// Read reads all articles, and recounts what is held and sold from the holds, in one read transaction.
func (v *Inventory) Read(ctx context.Context, db *sql.DB) (State, error) {
	var s State
	tx, err := v.d.BeginRead(ctx, db)
	if err != nil {
		return s, err
	}
	defer func() { _ = tx.Rollback() }()
	rows, err := tx.QueryContext(ctx, "SELECT sku, free, held, sold FROM inventory_stock ORDER BY sku")
	if err != nil {
		return s, err
	}
	defer rows.Close()
	for rows.Next() {
		var a Article
		if err := rows.Scan(&a.SKU, &a.Free, &a.Held, &a.Sold); err != nil {
			return s, err
		}
		s.Articles = append(s.Articles, a)
	}
	if err := errors.Join(rows.Err(), rows.Close()); err != nil {
		return s, err
	}
	err = tx.QueryRowContext(ctx, `SELECT count(CASE WHEN state = 'held' AND holder NOT LIKE 'order:%' THEN 1 END), coalesce(sum(CASE WHEN state = 'held' THEN n END), 0),
		coalesce(sum(CASE WHEN state = 'sold' THEN n END), 0) FROM inventory_hold`).Scan(&s.OpenHolds, &s.HeldItems, &s.SoldSums)
	return s, err
}

// Faults returns what is wrong with the sums; nil if nothing is.
func (s State) Faults() []string {
	var held, sold int64
	for _, a := range s.Articles {
		held += a.Held
		sold += a.Sold
	}
	if held != s.HeldItems || sold != s.SoldSums {
		return []string{fmt.Sprintf("inventory: %d held and %d sold on the shelf, %d and %d in the holds", held, sold, s.HeldItems, s.SoldSums)}
	}
	return nil
}
