package e2e

import (
	"bytes"
	"database/sql"
	"encoding/json"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/lockstep-tx/lockstep/participants/ledger"
	"github.com/lockstep-tx/lockstep/participants/sqldb"
)

func TestPaymentsFromFrozenAndClosedAccountsOnSQLite(t *testing.T) {
	paymentsByState(t, "sqlite:"+t.TempDir())
}

// paymentsByState pays from accounts that are not open. Each payment is refused with a problem (RFC 9457) that names the
// buyer's field, also when it is repeated, and leaves no money and no stock held anywhere. An account that is opened again
// pays; an order that was refused stays refused.
func paymentsByState(t *testing.T, db string) {
	c := embedded(t)
	s := newShop(t, c, db)
	s.stock(1)
	for id, balance := range map[string]int{"frozen": 5000, "closed": 0} {
		s.must("POST", "/accounts", m{"kind": "buyer", "id": id, "balance": balance}, 204)
	}
	book := openBook(t, db)
	book.set("frozen", ledger.Frozen)
	book.set("closed", ledger.Closed)
	for _, buyer := range []string{"frozen", "closed"} {
		for range 2 {
			s.refusedState(buyer, order("of-"+buyer, m{"buyer": buyer}))
		}
	}
	s.settled(0, 0)
	book.has("frozen", 5000)
	book.has("closed", 0)

	book.set("frozen", ledger.Open)
	s.must("POST", "/v1/payments", order("thawed", m{"buyer": "frozen"}), 200)
	s.refusedState("frozen", order("of-frozen", m{"buyer": "frozen"})) // its answer stands
	got := s.settled(1, 1)
	book.has("frozen", 4900)
	if got.Buyer.Frozen != 0 || got.Merchant.Pending != 0 || got.Merchant.Posted != 100 || got.Inventory.Articles[0].Held != 0 || got.Inventory.Articles[0].Sold != 1 {
		t.Errorf("after one payment and the refusals: %+v", got)
	}
}

// refusedState wants the problem that the account's state is.
func (s *shop) refusedState(buyer string, body m) {
	s.t.Helper()
	raw, err := json.Marshal(body)
	if err != nil {
		s.t.Fatal(err)
	}
	resp, err := http.Post(s.base+"/v1/payments", "application/json", bytes.NewReader(raw))
	if err != nil {
		s.t.Fatal(err)
	}
	defer resp.Body.Close()
	text := readAll(s.t, resp)
	var p struct {
		Type, Title, Field, Payment string
		Status                      int
	}
	if err := json.Unmarshal([]byte(text), &p); err != nil {
		s.t.Fatalf("%s: %v", text, err)
	}
	if resp.StatusCode != http.StatusUnprocessableEntity || resp.Header.Get("Content-Type") != "application/problem+json" || p.Status != resp.StatusCode ||
		p.Type != "/problems/account_"+buyer || p.Field != "buyer" || !strings.Contains(p.Title, buyer) || p.Payment == "" {
		s.t.Errorf("%s's payment: %d %s %s", buyer, resp.StatusCode, resp.Header.Get("Content-Type"), text)
	}
}

// book is the buyers' ledger, opened beside the participants' process.
type book struct {
	t  *testing.T
	l  *ledger.Ledger
	db *sql.DB
}

func openBook(t *testing.T, address string) book {
	t.Helper()
	if dir, isSQLite := strings.CutPrefix(address, "sqlite:"); isSQLite {
		address = "sqlite:" + filepath.Join(dir, "buyer.db")
	}
	db, d, err := sqldb.Open(t.Context(), address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	l, err := ledger.New(d.Dialect, ledger.Options{})
	if err != nil {
		t.Fatal(err)
	}
	return book{t, l, db}
}

func (b book) set(id string, to ledger.State) {
	b.t.Helper()
	if err := b.l.SetState(b.t.Context(), b.db, id, to); err != nil {
		b.t.Fatal(err)
	}
}

// has wants so much on an account, and nothing of it held.
func (b book) has(id string, total int64) {
	b.t.Helper()
	a, err := b.l.Balance(b.t.Context(), b.db, id)
	if err != nil || a.Total() != total || a.DebitsPending != 0 || a.CreditsPending != 0 {
		b.t.Errorf("%s has %+v, %v; want %d and nothing held", id, a, err, total)
	}
}

// posted waits until the participants' poster has brought up the house's counters, and recounts the book.
func (b book) posted() {
	b.t.Helper()
	eventually(b.t, 20*time.Second, "the house's counters show all payments", func() bool {
		a, err := b.l.Balance(b.t.Context(), b.db, ledger.PaidTo("CNY"))
		return err == nil && a.Mode == ledger.Buffered && a.BufferedCredits == 0 && a.BufferedDebits == 0 && a.CreditsPosted > 0
	})
	if faults, err := b.l.Audit(b.t.Context(), b.db); err != nil || len(faults) > 0 {
		b.t.Errorf("the book: %v, %v", faults, err)
	}
}
