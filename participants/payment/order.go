package payment

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"

	"github.com/lockstep-tx/lockstep/participants/inventory"
)

func digestible(r OrderRequest) string {
	raw, err := json.Marshal(r)
	if err != nil {
		panic(err) // plain fields
	}
	return string(raw)
}

// Order reads an order; a *Problem with status 404 if there is none.
func (s *Service) Order(ctx context.Context, id string) (*Order, error) {
	o := &Order{ID: id}
	var body string
	err := s.DB.QueryRowContext(ctx, s.Dialect.Q("SELECT body FROM payment_order WHERE id = ?"), id).Scan(&body)
	if errors.Is(err, sql.ErrNoRows) {
		return nil, problem("not_found", "id", "no order "+id)
	}
	if err != nil {
		return nil, err
	}
	if err := json.Unmarshal([]byte(body), &o.OrderRequest); err != nil {
		return nil, err
	}
	state, expires, err := s.Inventory.OrderState(ctx, s.InventoryDB, id)
	if errors.Is(err, sql.ErrNoRows) {
		return nil, problem("not_found", "id", "order "+id+" has reserved nothing")
	}
	o.State, o.ExpiresMS = state, expires.UnixMilli()
	return o, err
}

// CancelOrder gives an unpaid order's stock back (撤单). A repeat changes nothing. A *Problem with status 409 while it is
// being paid and after.
func (s *Service) CancelOrder(ctx context.Context, id string) (*Order, error) {
	if _, err := s.Order(ctx, id); err != nil {
		return nil, err
	}
	err := s.Inventory.CancelOrder(ctx, s.InventoryDB, id)
	if errors.Is(err, inventory.ErrOrderTaken) {
		return nil, problemOf("order_taken", "", err.Error(), id)
	}
	if err != nil {
		return nil, err
	}
	return s.Order(ctx, id)
}
