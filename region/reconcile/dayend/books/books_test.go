package books_test

import (
	"context"
	"errors"
	"fmt"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/lockstep-tx/lockstep/coordinator/api/apipb"
	"github.com/lockstep-tx/lockstep/coordinator/api/client"
	"github.com/lockstep-tx/lockstep/participants/inventory"
	"github.com/lockstep-tx/lockstep/participants/merchant"
	"github.com/lockstep-tx/lockstep/participants/payment"
	"github.com/lockstep-tx/lockstep/participants/sqldb"
	"github.com/lockstep-tx/lockstep/region/reconcile/channelfile"
	"github.com/lockstep-tx/lockstep/region/reconcile/dayend"
	"github.com/lockstep-tx/lockstep/region/reconcile/dayend/books"
)

// coordinator is one that decides as the test says; what it has decided it remembers.
type coordinator struct {
	mu    sync.Mutex
	phase apipb.Phase // of what is executed; 0: it does not answer
	knows map[string]apipb.Phase
	began int
}

func (c *coordinator) Execute(_ context.Context, t client.Tx, _ client.Until) (client.State, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.phase == 0 {
		c.knows[t.Gid] = apipb.Phase_PHASE_RUNNING
		return client.State{}, status.Error(codes.Unavailable, "not now")
	}
	c.began++
	c.knows[t.Gid] = c.phase
	return state(c.phase), nil
}

func (c *coordinator) Watch(_ context.Context, gid string, each func(client.State) error) error {
	c.mu.Lock()
	p, ok := c.knows[gid]
	c.mu.Unlock()
	if !ok {
		return status.Error(codes.NotFound, "unknown")
	}
	if err := each(state(p)); err != nil {
		return err
	}
	return status.Error(codes.DeadlineExceeded, "it has not gone on")
}

func state(p apipb.Phase) client.State {
	return client.State{Transaction: &apipb.Transaction{Phase: p, Reason: "insufficient_funds b (field amount)", Branches: []*apipb.BranchState{{SecondStatus: "done"}}}}
}

// world is a channel, the payments with their API, and a book, at a time that the test sets.
type world struct {
	t   *testing.T
	now time.Time
	c   *coordinator
	s   *payment.Service
	our *books.Payments
	b   *dayend.Book
	m   *channelfile.Mapping
	dir string
}

const commit = apipb.Phase_PHASE_COMMITTING

func newWorld(t *testing.T, state, participants string) *world {
	t.Helper()
	ctx := t.Context()
	w := &world{t: t, c: &coordinator{phase: commit, knows: map[string]apipb.Phase{}}, dir: t.TempDir()}
	db, d, err := sqldb.Open(ctx, participants)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	if err := errors.Join(payment.Migrate(ctx, db, d), inventory.Migrate(ctx, db, d), merchant.Migrate(ctx, db, d)); err != nil {
		t.Fatal(err)
	}
	w.s = payment.New(payment.Config{
		DB: db, Dialect: d, Coordinator: w.c, Inventory: inventory.New(d, nil), InventoryDB: db, Now: func() time.Time { return w.now },
		HasMerchant: func(context.Context, string) (bool, error) { return true, nil },
		Held:        func(context.Context, string) (string, error) { return "", nil },
	})
	srv := httptest.NewServer(w.s.Handler())
	t.Cleanup(srv.Close)
	w.our = &books.Payments{DB: db, Dialect: d, API: srv.URL, Client: srv.Client()}
	if w.b, err = dayend.Open(ctx, state, filepath.Join(w.dir, "recon")); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.b.DB.Close() })
	w.b.Now = func() time.Time { return w.now }
	if w.m, err = channelfile.LoadMapping("../../../../deploy/example/recon-business.yaml"); err != nil {
		t.Fatal(err)
	}
	w.m.Signature = channelfile.Signature{Type: "none"}
	return w
}

func onSQLite(t *testing.T) *world {
	dir := t.TempDir()
	return newWorld(t, "sqlite:"+filepath.Join(dir, "recon.db"), "sqlite:"+filepath.Join(dir, "merchant.db"))
}

// on is a time of November 2026 in the channel's zone.
func on(day int, clock string) time.Time {
	at, err := time.ParseInLocation("2006-01-02 15:04:05", fmt.Sprintf("2026-11-%02d %s", day, clock), shanghai)
	if err != nil {
		panic(err)
	}
	return at
}

var shanghai = time.FixedZone("CST", 8*3600)

func order(no string, amount int64) payment.Request {
	return payment.Request{Merchant: "m", OrderNo: no, Buyer: "b", Amount: amount, Currency: "CNY", Items: []inventory.Item{{SKU: "x", N: 1}}}
}

// pay pays an order at a time; with the coordinator silent it stays open.
func (w *world) pay(at time.Time, no string, amount int64) *payment.Payment {
	w.t.Helper()
	w.now = at
	p, err := w.s.Pay(w.t.Context(), order(no, amount), "")
	if err != nil {
		w.t.Fatal(err)
	}
	return p
}

// line is a line of the channel's.
func line(no string, amount int64, state string, at time.Time) string {
	return fmt.Sprintf("m,%s,,%d.%02d,CNY,%s,%s", no, amount/100, amount%100, state, at.In(shanghai).Format("2006-01-02 15:04:05"))
}

// file writes a day's file with right totals, whose lines are so many minor units.
func (w *world) file(day int, lines ...string) string {
	w.t.Helper()
	var sum int64
	for _, l := range lines {
		f := strings.Split(l, ",")
		var whole, cents int64
		if len(f) > 3 {
			if _, err := fmt.Sscanf(f[3], "%d.%d", &whole, &cents); err == nil {
				sum += whole*100 + cents
			}
		}
	}
	path := filepath.Join(w.dir, fmt.Sprintf("acme_202611%02d.csv", day))
	text := fmt.Sprintf("H,202611%02d,2026-11-%02d 22:00:00\nmerchant,order,refund,amount,currency,state,time\n", day, day) + strings.Join(append(lines, ""), "\n") + fmt.Sprintf("T,%d,%d.%02d\n", len(lines), sum/100, sum%100)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		w.t.Fatal(err)
	}
	return path
}

// day loads and compares a day, two minutes after its cut.
func (w *world) day(day int, lines ...string) *dayend.Run {
	w.t.Helper()
	w.now = on(day, "22:02:00")
	if _, err := w.b.Load(w.t.Context(), w.m, w.file(day, lines...)); err != nil {
		w.t.Fatal(err)
	}
	return w.run(day)
}

func (w *world) run(day int) *dayend.Run {
	w.t.Helper()
	r, _, err := w.b.Run(w.t.Context(), w.m, w.our, fmt.Sprintf("202611%02d", day), dayend.Options{})
	if err != nil {
		w.t.Fatal(err)
	}
	return r
}

// found are the findings of a day, as class/status by order number.
func (w *world) found(day int) map[string]string {
	w.t.Helper()
	names := map[string]string{}
	for i := range 40 {
		names[payment.PaymentID("m", fmt.Sprint(i))] = fmt.Sprint(i)
	}
	out := map[string]string{}
	if err := w.b.Each(w.t.Context(), dayend.Filter{Day: fmt.Sprintf("202611%02d", day)}, func(f dayend.Finding) error {
		no := names[f.Key]
		if no == "" {
			no = fmt.Sprintf("%s line %d", f.Key, f.Line)
		}
		out[no] += string(f.Class) + "/" + string(f.Status)
		return nil
	}); err != nil {
		w.t.Fatal(err)
	}
	return out
}

func (w *world) want(day int, want map[string]string) {
	w.t.Helper()
	if got := w.found(day); fmt.Sprint(got) != fmt.Sprint(want) {
		w.t.Errorf("day %d: found %v, want %v", day, got, want)
	}
}

// A day with one difference of each class ends as it must, and the days after it know what was done.
func TestADayEndsAsTheChannelSays(t *testing.T) { w := onSQLite(t); theDays(w) }

func theDays(w *world) {
	t := w.t
	noon := on(20, "12:00:00")
	w.pay(noon, "1", 100)
	w.pay(noon, "2", 200)
	w.pay(noon, "3", 300)               // long
	w.pay(on(20, "21:50:00"), "4", 400) // straddles: the channel has it on the 21st
	w.pay(on(20, "22:00:00"), "5", 500) // straddles: the channel has it on the 20th
	w.pay(noon, "8", 800)               // failed there
	w.c.phase = 0
	lost := w.pay(noon, "6", 600)
	if lost.State != payment.Processing {
		t.Fatal(lost)
	}
	w.c.knows[lost.Gid] = commit
	w.c.phase = commit
	r := w.day(20, line("1", 100, "SUCCESS", noon), line("2", 201, "SUCCESS", noon), line("5", 500, "SUCCESS", on(20, "21:59:00")),
		line("6", 600, "SUCCESS", noon), line("7", 700, "SUCCESS", noon), line("8", 800, "FAIL", noon), line("9", 900, "FAIL", noon))
	w.want(20, map[string]string{"2": "amount/open", "3": "long/ended", "6": "lost-answer/ended", "7": "short/open", "8": "state/open"})
	if r.Matched != 2 || r.ToPool != 1 || r.Differences() != 3 {
		t.Errorf("%+v", r)
	}
	if p, err := w.s.Get(t.Context(), payment.PaymentID("m", "3")); err != nil || p.Refunded != 300 {
		t.Errorf("what is long was not given back: %+v, %v", p, err)
	}
	if p, err := w.s.Get(t.Context(), payment.PaymentID("m", "6")); err != nil || p.State != payment.Paid {
		t.Errorf("the lost answer was not recovered: %+v, %v", p, err)
	}
	began := w.c.began
	if again := w.run(20); fmt.Sprint(again) != fmt.Sprint(r) || w.c.began != began {
		t.Errorf("again: %+v, began %d", again, w.c.began-began)
	}
	w.book("7")
	w.want(20, map[string]string{"2": "amount/open", "3": "long/ended", "6": "lost-answer/ended", "7": "short/ended", "8": "state/open"})

	// The next day has the other side of what straddled; what was recovered, booked or reversed is no difference there.
	r = w.day(21, line("4", 400, "SUCCESS", on(20, "22:00:01")), line("3", 300, "SUCCESS", on(20, "22:10:00")))
	w.want(21, map[string]string{"3": "late-original/open"})
	if r.Ours != 3 || r.FromPool != 4 || r.ToPool != 0 || r.Matched != 1 {
		t.Errorf("%+v", r)
	}
	if _, broken, err := w.b.Audit(t.Context()); err != nil || broken != 0 {
		t.Errorf("the audit is broken at line %d, %v", broken, err)
	}
}

// book ends the short case of an order as a person does.
func (w *world) book(no string) {
	w.t.Helper()
	for _, f := range w.cases() {
		if f.Key != payment.PaymentID("m", no) {
			continue
		}
		if f.OrderNo != no || f.Merchant != "m" || !strings.Contains(f.Raw, "m,"+no+",") {
			w.t.Errorf("the case does not show the channel's line: %+v", f)
		}
		how := dayend.Missing{Buyer: "b", Items: map[string]int64{"x": 1}, Who: "ann", Reason: "the receipt is there"}
		got, err := w.b.Book(w.t.Context(), w.our, f.ID, how)
		if err != nil || got.Status != dayend.StatusEnded {
			w.t.Fatalf("%+v, %v", got, err)
		}
		if _, err := w.b.Book(w.t.Context(), w.our, f.ID, how); err == nil {
			w.t.Error("a case that is ended was booked again")
		}
		return
	}
	w.t.Fatalf("order %s has no case", no)
}

func (w *world) cases() (out []dayend.Finding) {
	w.t.Helper()
	if err := w.b.Each(w.t.Context(), dayend.Filter{Standing: true}, func(f dayend.Finding) error { out = append(out, f); return nil }); err != nil {
		w.t.Fatal(err)
	}
	return out
}
