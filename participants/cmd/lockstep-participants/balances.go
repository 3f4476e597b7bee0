package main

import (
	"encoding/json"
	"net/http"
)

// balances is the answer to GET /balances, as `lockstep-participants check --state-url` wants it: everything that a branch
// moves, by name. Their sum never changes: what buyers pay the house has, and over against what merchants have stands what
// was booked for them, counted from the bookings.
func (s *service) balances(w http.ResponseWriter, r *http.Request) {
	st, err := s.read(r.Context())
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	out := map[string]int64{"house": st.Buyer.House, "bookings": -st.Merchant.OpenAmount - st.Merchant.PostedAmount}
	for _, a := range st.Buyer.Accounts {
		out["buyer "+a.ID], out["buyer "+a.ID+" frozen"] = a.Balance, a.Frozen
	}
	for _, a := range st.Merchant.Accounts {
		out["merchant "+a.ID+" pending"], out["merchant "+a.ID] = a.Pending, a.Payable()
		out["merchant "+a.ID+" held back"], out["merchant "+a.ID+" given back"] = a.Returns, a.Refunded
	}
	for _, a := range st.Inventory.Articles {
		out["article "+a.SKU], out["article "+a.SKU+" held"], out["article "+a.SKU+" sold"] = a.Free, a.Held, a.Sold
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(map[string]any{"balances": out})
}
