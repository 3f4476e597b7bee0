// Package inventory keeps a shop's stock: what is free, what is held by open payments and by orders that are not paid
// yet, what is sold.
//
// Its law: for every article stocked = free + held + sold, and none of them is negative; a hold ends once, in sold or in
// free. The limit is checked at reserve, so that a deduction cannot fail. An order's reservation is one hold that a payment
// takes over and gives back; it lapses by its time only while no payment has it.
//
// It is tested operation by operation on SQLite, PostgreSQL and MariaDB, and by random interleavings whose sums are
// compared.
package inventory

import (
	"cmp"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/lockstep-tx/lockstep/participants/barrier"
	"github.com/lockstep-tx/lockstep/participants/sqldb"
)

// Item is a number of one article.
type Item struct {
	SKU string `json:"sku"`
	N   int64  `json:"n"`
}

// Request is the payload of reserve, deduct and release: items, or the order that has reserved them.
type Request struct {
	Items []Item `json:"items,omitempty"`
	Order string `json:"order,omitempty"`
}

const (
	itemsMax  = 100
	numberMax = 1_000_000_000
)

// Refusal is a No for a business reason. It is barrier.ErrRefused.
type Refusal struct {
	Reason string // stock_gone, no_article, order_gone, account_at_risk
	Field  string // items, order
	About  string
}

func (r *Refusal) Error() string { return fmt.Sprintf("%s %s (field %s)", r.Reason, r.About, r.Field) }

// Unwrap makes it barrier.ErrRefused.
func (r *Refusal) Unwrap() error { return barrier.ErrRefused }

// Inventory is the stock in one database. Safe for concurrent use.
type Inventory struct {
	d   sqldb.Dialect
	now func() time.Time
}

// New returns the inventory of a database whose tables Migrate has made. now nil is time.Now; it decides when an unpaid
// order lapses, and nothing else.
func New(d sqldb.Dialect, now func() time.Time) *Inventory {
	if now == nil {
		now = time.Now
	}
	return &Inventory{d: d, now: now}
}

// Migrate makes the tables; it may run any number of times.
func Migrate(ctx context.Context, db *sql.DB, d sqldb.Dialect) error {
	err := d.Migrate(ctx, db, `CREATE TABLE IF NOT EXISTS inventory_stock (
			sku varchar(64) PRIMARY KEY,
			free bigint NOT NULL CHECK (free >= 0),
			held bigint NOT NULL DEFAULT 0 CHECK (held >= 0),
			sold bigint NOT NULL DEFAULT 0 CHECK (sold >= 0))`,
		// holder is a payment's branch or an order.
		`CREATE TABLE IF NOT EXISTS inventory_hold (
			holder varchar(260) NOT NULL,
			sku varchar(64) NOT NULL,
			n bigint NOT NULL CHECK (n > 0),
			state varchar(10) NOT NULL CHECK (state IN ('held', 'sold', 'released')),
			PRIMARY KEY (holder, sku))`,
		`CREATE TABLE IF NOT EXISTS inventory_order (
			id varchar(64) PRIMARY KEY,
			state varchar(10) NOT NULL CHECK (state IN ('reserved', 'paying', 'sold', 'released')),
			holder varchar(260) NOT NULL DEFAULT '',
			expires_ms bigint NOT NULL)`,
		// What was taken of an article since its slot was adopted without a release at that epoch, and each holder's part of it.
		`CREATE TABLE IF NOT EXISTS inventory_at_risk (
			sku varchar(64) NOT NULL,
			epoch bigint NOT NULL,
			used bigint NOT NULL CHECK (used >= 0),
			PRIMARY KEY (sku, epoch))`,
		`CREATE TABLE IF NOT EXISTS inventory_at_risk_hold (
			holder varchar(260) NOT NULL,
			sku varchar(64) NOT NULL,
			epoch bigint NOT NULL,
			n bigint NOT NULL CHECK (n > 0),
			PRIMARY KEY (holder, sku))`,
		"CREATE INDEX IF NOT EXISTS inventory_order_by_state ON inventory_order (state, expires_ms)")
	if err != nil {
		return fmt.Errorf("migrate inventory: %w", err)
	}
	return nil
}

// Stock puts n more of an article on the shelf; durable on nil. An id makes a repeat harmless: the same id counts once.
func (v *Inventory) Stock(ctx context.Context, db *sql.DB, id, sku string, n int64) error {
	if n < 0 || n > numberMax {
		return fmt.Errorf("%w: %d of article %q", barrier.ErrInvalid, n, sku)
	}
	if err := errors.Join(barrier.CheckID("sku", sku, 64), barrier.CheckID("id", id, 200)); err != nil {
		return err
	}
	return sqldb.InTx(ctx, db, func(tx *sql.Tx) error {
		if _, err := tx.ExecContext(ctx, v.d.InsertNew("INTO inventory_stock (sku, free) VALUES (?, 0)"), sku); err != nil {
			return err
		}
		if n == 0 {
			return nil
		}
		// The delivery is a hold that was released: its row says that it was counted.
		r, err := tx.ExecContext(ctx, v.d.InsertNew("INTO inventory_hold (holder, sku, n, state) VALUES (?, ?, ?, 'released')"), "stock:"+id, sku, n)
		if err != nil {
			return err
		}
		if is, err := r.RowsAffected(); err != nil || is == 0 {
			return err
		}
		_, err = v.d.Change(ctx, tx, "UPDATE inventory_stock SET free = free + ? WHERE sku = ?", n, sku)
		return err
	})
}

func (r Request) normal() (Request, error) {
	if r.Order != "" {
		if len(r.Items) > 0 {
			return r, fmt.Errorf("%w: an order, or items, not both", barrier.ErrInvalid)
		}
		return r, barrier.CheckID("order", r.Order, 64)
	}
	if len(r.Items) == 0 || len(r.Items) > itemsMax {
		return r, fmt.Errorf("%w: %d items; 1 to %d are possible", barrier.ErrInvalid, len(r.Items), itemsMax)
	}
	r.Items = slices.Clone(r.Items)
	slices.SortFunc(r.Items, func(a, b Item) int { return cmp.Compare(a.SKU, b.SKU) }) // rows are locked in one order
	for i, it := range r.Items {
		if err := barrier.CheckID("sku", it.SKU, 64); err != nil {
			return r, err
		}
		if it.N <= 0 || it.N > numberMax {
			return r, fmt.Errorf("%w: item %d of article %q", barrier.ErrInvalid, it.N, it.SKU)
		}
		if i > 0 && r.Items[i-1].SKU == it.SKU {
			return r, fmt.Errorf("%w: article %s stands twice", barrier.ErrInvalid, it.SKU)
		}
	}
	return r, nil
}

func holderOf(call *barrier.Call) string { return call.Gid + ":" + call.BranchID }

// Reserve is the try: it holds the items, or takes over the order that has reserved them. *Refusal if there is too little,
// no such article, or the order has lapsed, was cancelled or is being paid already; or if the articles' region was lost and
// call's policy refuses it.
func (v *Inventory) Reserve(ctx context.Context, tx *sql.Tx, call *barrier.Call, r Request) error {
	r, err := r.normal()
	if err != nil {
		return err
	}
	if err := v.allowed(call.Policy(), r); err != nil {
		return err
	}
	if r.Order == "" {
		if err := v.hold(ctx, tx, holderOf(call), r.Items); err != nil {
			return err
		}
		return v.count(ctx, tx, call.Policy(), holderOf(call), r.Items)
	}
	ok, err := v.d.Change(ctx, tx, "UPDATE inventory_order SET state = 'paying', holder = ? WHERE id = ? AND state = 'reserved' AND expires_ms > ?", holderOf(call), r.Order, v.now().UnixMilli())
	if err == nil && !ok {
		err = &Refusal{Reason: "order_gone", Field: "order", About: r.Order}
	}
	return err
}

func (v *Inventory) hold(ctx context.Context, tx *sql.Tx, holder string, items []Item) error {
	for _, it := range items {
		ok, err := v.d.Change(ctx, tx, "UPDATE inventory_stock SET free = free - ?, held = held + ? WHERE sku = ? AND free >= ?", it.N, it.N, it.SKU, it.N)
		if err != nil {
			return err
		}
		if !ok {
			return v.why(ctx, tx, it)
		}
		if _, err := tx.ExecContext(ctx, v.d.Q("INSERT INTO inventory_hold (holder, sku, n, state) VALUES (?, ?, ?, 'held')"), holder, it.SKU, it.N); err != nil {
			return err
		}
	}
	return nil
}

func (v *Inventory) why(ctx context.Context, tx *sql.Tx, it Item) error {
	var free int64
	err := tx.QueryRowContext(ctx, v.d.Q("SELECT free FROM inventory_stock WHERE sku = ?"), it.SKU).Scan(&free)
	switch {
	case errors.Is(err, sql.ErrNoRows):
		return &Refusal{Reason: "no_article", Field: "items", About: it.SKU}
	case err != nil:
		return err
	}
	return &Refusal{Reason: "stock_gone", Field: "items", About: it.SKU}
}

// Deduct is the confirm: what is held is sold.
func (v *Inventory) Deduct(ctx context.Context, tx *sql.Tx, call *barrier.Call, r Request) error {
	holder, err := v.holder(ctx, tx, call, r, "sold")
	if err != nil {
		return err
	}
	return v.settle(ctx, tx, holder, "sold")
}

// Release is the cancel: what is held is free again, or the order's again until it lapses.
func (v *Inventory) Release(ctx context.Context, tx *sql.Tx, call *barrier.Call, r Request) error {
	holder, err := v.holder(ctx, tx, call, r, "reserved")
	if err != nil || r.Order != "" {
		return err
	}
	if err := v.settle(ctx, tx, holder, "released"); err != nil || call.Policy().Risk != barrier.RiskLimit {
		return err
	}
	return v.giveBack(ctx, tx, holder)
}

// holder gives whose hold a call is about, and moves the order on that it took over.
func (v *Inventory) holder(ctx context.Context, tx *sql.Tx, call *barrier.Call, r Request, to string) (string, error) {
	if r.Order == "" {
		return holderOf(call), nil
	}
	ok, err := v.d.Change(ctx, tx, "UPDATE inventory_order SET state = ?, holder = '' WHERE id = ? AND state = 'paying' AND holder = ?", to, r.Order, holderOf(call))
	if err == nil && !ok {
		err = fmt.Errorf("%s: order %s is not being paid by it", call, r.Order)
	}
	return orderHolder(r.Order), err
}

func orderHolder(id string) string { return "order:" + id }

// settle ends a hold; an error if there is none.
func (v *Inventory) settle(ctx context.Context, tx *sql.Tx, holder, state string) error {
	rows, err := tx.QueryContext(ctx, v.d.Q("SELECT sku, n FROM inventory_hold WHERE holder = ? AND state = 'held' ORDER BY sku"), holder)
	if err != nil {
		return err
	}
	var items []Item
	for rows.Next() {
		var it Item
		if err := rows.Scan(&it.SKU, &it.N); err != nil {
			rows.Close()
			return err
		}
		items = append(items, it)
	}
	if err := errors.Join(rows.Err(), rows.Close()); err != nil {
		return err
	}
	if len(items) == 0 {
		return fmt.Errorf("inventory: %s %w", holder, errNoHold)
	}
	column := map[string]string{"sold": "sold", "released": "free"}[state]
	for _, it := range items {
		for _, c := range []struct {
			stmt string
			args []any
		}{
			{"UPDATE inventory_hold SET state = ? WHERE holder = ? AND sku = ? AND state = 'held'", []any{state, holder, it.SKU}},
			{"UPDATE inventory_stock SET held = held - ?, " + column + " = " + column + " + ? WHERE sku = ?", []any{it.N, it.N, it.SKU}},
		} {
			if ok, err := v.d.Change(ctx, tx, c.stmt, c.args...); err != nil || !ok {
				return errors.Join(err, fmt.Errorf("inventory: %s of %s was settled by somebody else", it.SKU, holder))
			}
		}
	}
	return nil
}
