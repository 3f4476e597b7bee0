package payment

import (
	"context"
	"errors"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/lockstep-tx/lockstep/coordinator/api/apipb"
	"github.com/lockstep-tx/lockstep/coordinator/api/client"
	"github.com/lockstep-tx/lockstep/participants/inventory"
	"github.com/lockstep-tx/lockstep/participants/ledger"
	"github.com/lockstep-tx/lockstep/participants/merchant"
	"github.com/lockstep-tx/lockstep/participants/sqldb"
)

// fake is a coordinator that answers as the test says.
type fake struct {
	mu       sync.Mutex
	knows    map[string]client.State // by gid
	executes client.State            // what an execution ends as; the zero State: it fails
	executed []client.Tx
	asked    map[string]int
}

func (f *fake) Execute(_ context.Context, t client.Tx, _ client.Until) (client.State, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.executed = append(f.executed, t)
	if f.executes.Transaction == nil {
		return client.State{}, status.Error(codes.Unavailable, "not now")
	}
	if f.knows[t.Gid].Transaction == nil {
		f.knows[t.Gid] = f.executes
	}
	return f.executes, nil
}

func (f *fake) Watch(_ context.Context, gid string, each func(client.State) error) error {
	f.mu.Lock()
	st, ok := f.knows[gid]
	f.asked[gid]++
	f.mu.Unlock()
	if !ok {
		return status.Error(codes.NotFound, "unknown")
	}
	if err := each(st); err != nil {
		return err
	}
	return status.Error(codes.DeadlineExceeded, "it has not gone on")
}

func ended(phase apipb.Phase, reason string, confirms ...string) client.State {
	t := &apipb.Transaction{Phase: phase, Reason: reason}
	for _, c := range confirms {
		t.Branches = append(t.Branches, &apipb.BranchState{SecondStatus: c})
	}
	t.Branches = append(t.Branches, &apipb.BranchState{SecondStatus: "pending", Message: true})
	return client.State{Transaction: t}
}

type bed struct {
	*Service
	t    *testing.T
	f    *fake
	held map[string]string // by hold
}

func newBed(t *testing.T, db string) *bed {
	t.Helper()
	conn, d, err := sqldb.Open(t.Context(), db)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	if err := errors.Join(Migrate(t.Context(), conn, d), inventory.Migrate(t.Context(), conn, d), merchant.Migrate(t.Context(), conn, d)); err != nil {
		t.Fatal(err)
	}
	b := &bed{t: t, f: &fake{knows: map[string]client.State{}, asked: map[string]int{}}, held: map[string]string{}}
	b.Service = New(Config{
		DB: conn, Dialect: d, Coordinator: b.f, Inventory: inventory.New(d, nil), InventoryDB: conn,
		HasMerchant: func(_ context.Context, id string) (bool, error) { return id != "nobody", nil },
		Held:        func(_ context.Context, hold string) (string, error) { return b.held[hold], nil },
	})
	return b
}

func onSQLite(t *testing.T) *bed {
	t.Helper()
	return newBed(t, "sqlite:"+filepath.Join(t.TempDir(), "p.db"))
}

func request(no string) Request {
	return Request{Merchant: "m", OrderNo: no, Buyer: "b", Amount: 100, Items: []inventory.Item{{SKU: "x", N: 1}}}
}

// open pays while the coordinator does not answer: the payment stays open.
func (b *bed) open(no string) *Payment {
	b.t.Helper()
	p, err := b.Pay(b.t.Context(), request(no), "")
	if err != nil || p.State != Processing {
		b.t.Fatalf("%+v, %v", p, err)
	}
	b.f.executed = nil
	return p
}

// A payment that was sent before is asked for, by its repeat and by the settling alike; only what neither the coordinator
// nor the ledger knows is executed again.
func TestAnOpenPaymentIsAskedForByItsGid(t *testing.T) {
	for name, tc := range map[string]struct {
		known  client.State
		held   string
		want   State
		reason string
		again  int
	}{
		"committed":                {ended(apipb.Phase_PHASE_COMMITTING, ""), "", Paid, "", 0},
		"aborted":                  {ended(apipb.Phase_PHASE_ABORTED, "stock_gone book (field items)"), "", Refused, "stock_gone", 0},
		"not decided":              {ended(apipb.Phase_PHASE_PREPARED, ""), "pending", Processing, "", 0},
		"forgotten, posted":        {client.State{}, "posted", Paid, "", 0},
		"forgotten, voided":        {client.State{}, "voided", Refused, "forgotten", 0},
		"never sent":               {client.State{}, "", Paid, "", 1},
		"held for nobody any more": {client.State{}, "pending", Paid, "", 1},
	} {
		for _, by := range []string{"repeat", "settling"} {
			t.Run(name+" by "+by, func(t *testing.T) {
				b := onSQLite(t)
				p := b.open("1")
				b.f.executes = ended(apipb.Phase_PHASE_COMMITTING, "")
				if tc.known.Transaction != nil {
					b.f.knows[p.Gid] = tc.known
				}
				b.held[ledger.HoldID(p.Gid, buyerBranch)] = tc.held
				b.Buyers = Branch{"http://elsewhere"} // it came back at another address
				var err error
				if by == "repeat" {
					_, err = b.Pay(t.Context(), request("1"), "")
				} else {
					err = b.settleOnce(t.Context(), time.Now().Add(time.Hour))
				}
				if err != nil {
					t.Fatal(err)
				}
				got, err := b.Get(t.Context(), p.ID)
				if err != nil || got.State != tc.want || got.Reason != tc.reason || len(b.f.executed) != tc.again {
					t.Errorf("%+v, %v; executed again %d times, want %d", got, err, len(b.f.executed), tc.again)
				}
			})
		}
	}
}

// A refund goes out once its payment is settled, also long after the coordinator has forgotten the payment; until then it
// stays open. A payment that is decided is never executed again.
func TestARefundWaitsForItsPaymentToSettle(t *testing.T) {
	for name, tc := range map[string]struct {
		payment client.State
		held    string
		want    State
	}{
		"settled":                 {ended(apipb.Phase_PHASE_COMMITTING, "", "done", "done"), "posted", Paid},
		"a confirm is on its way": {ended(apipb.Phase_PHASE_COMMITTING, "", "done", "pending"), "posted", Processing},
		"forgotten":               {client.State{}, "posted", Paid},
		"forgotten, not posted":   {client.State{}, "pending", Processing},
	} {
		t.Run(name, func(t *testing.T) {
			b := onSQLite(t)
			p := b.open("1")
			b.f.executes = ended(apipb.Phase_PHASE_COMMITTING, "", "done", "done")
			b.f.knows[p.Gid] = b.f.executes
			if p, err := b.Pay(t.Context(), request("1"), ""); err != nil || p.State != Paid {
				t.Fatalf("%+v, %v", p, err)
			}
			delete(b.f.knows, p.Gid)
			if tc.payment.Transaction != nil {
				b.f.knows[p.Gid] = tc.payment
			}
			b.held[ledger.HoldID(p.Gid, buyerBranch)] = tc.held
			r, err := b.Refund(t.Context(), p.ID, RefundRequest{RefundNo: "r", Amount: 10}, "")
			if err != nil || r.State != tc.want {
				t.Fatalf("%+v, %v; want %s", r, err, tc.want)
			}
			for _, sent := range b.f.executed {
				if sent.Gid == p.Gid {
					t.Error("the payment was executed again")
				}
			}
			// Once it is settled, the refund that stayed open goes out, under its gid.
			b.f.knows[p.Gid] = b.f.executes
			if err := b.settleOnce(t.Context(), time.Now().Add(time.Hour)); err != nil {
				t.Fatal(err)
			}
			if all, err := b.Refunds(t.Context(), p.ID); err != nil || len(all) != 1 || all[0].State != Paid || all[0].Gid != r.Gid || len(b.f.executed) != 1 {
				t.Errorf("%+v, %v; %d executed", all, err, len(b.f.executed))
			}
		})
	}
}
