package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/lockstep-tx/lockstep/coordinator/bench/build"
	"github.com/lockstep-tx/lockstep/participants/payment"
	"github.com/lockstep-tx/lockstep/participants/payment/apitest"
)

// shop is the reference participants as a process of their own, with the payment API.
type shop struct {
	t    *testing.T
	args []string
	base string
	log  string
	mu   sync.Mutex
	cmd  *exec.Cmd
	done chan struct{}

	document func() (*apitest.Document, error)
}

// shopProgram builds the participants' binary once.
var shopProgram = sync.OnceValues(func() (string, error) {
	bin := filepath.Join(filepath.Dir(program), "lockstep-participants")
	cmd := build.ForTest("-o", bin, "../../participants/cmd/lockstep-participants")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	out, err := cmd.CombinedOutput()
	if err != nil {
		err = fmt.Errorf("build lockstep-participants: %w\n%s", err, out)
	}
	return bin, err
})

func newShop(t *testing.T, c *coordinator, db string, extra ...string) *shop {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0") // the address stays over restarts
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	l.Close()
	s := &shop{t: t, base: "http://" + addr, log: filepath.Join(t.TempDir(), "shop.log"), args: []string{"serve", "--listen", addr, "--coordinator", c.addr.GRPC, "--db", db, "--clean", "http://" + c.addr.Admin}}
	s.args = append(s.args, extra...)
	t.Cleanup(s.kill)
	s.restart()
	resp, err := http.Get(s.base + "/v1/openapi.json")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text := readAll(t, resp)
	s.document = sync.OnceValues(func() (*apitest.Document, error) { return apitest.Parse([]byte(text)) })
	return s
}

func (s *shop) restart() {
	s.t.Helper()
	bin, err := shopProgram()
	if err != nil {
		s.t.Fatal(err)
	}
	log, err := os.OpenFile(s.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		s.t.Fatal(err)
	}
	defer log.Close()
	cmd := exec.Command(bin, s.args...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	done := make(chan struct{})
	go func() { _ = cmd.Wait(); close(done) }()
	s.mu.Lock()
	s.cmd, s.done = cmd, done
	s.mu.Unlock()
	eventually(s.t, 20*time.Second, "the participants serve", func() bool {
		resp, err := http.Get(s.base + "/healthz")
		if err != nil {
			return false
		}
		resp.Body.Close()
		return resp.StatusCode == http.StatusOK
	})
}

func (s *shop) kill() {
	s.mu.Lock()
	cmd, done := s.cmd, s.done
	s.mu.Unlock()
	if cmd != nil {
		_ = cmd.Process.Kill() // it may be dead already
		<-done
	}
}

// answer is what the API answers: a payment, an order, a refund or a problem.
type answer struct {
	status int
	ID     string `json:"id"`
	State  string `json:"state"`
	Type   string `json:"type"`
	Field  string `json:"field"`
	Gid    string `json:"gid"`
	Next   string `json:"next"`

	Refunded int64    `json:"refunded"`
	Payments []answer `json:"payments"`
}

func (s *shop) call(method, path string, body any, headers ...string) (answer, error) {
	raw, err := json.Marshal(body)
	if err != nil {
		return answer{}, err
	}
	req, err := http.NewRequest(method, s.base+path, bytes.NewReader(raw))
	if err != nil {
		return answer{}, err
	}
	for i := 0; i+1 < len(headers); i += 2 {
		req.Header.Set(headers[i], headers[i+1])
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return answer{}, err
	}
	defer resp.Body.Close()
	out := answer{status: resp.StatusCode}
	text, err := io.ReadAll(resp.Body)
	if err == nil && len(text) > 0 && resp.Header.Get("Content-Type") != "" {
		_ = json.Unmarshal(text, &out) // what is no JSON has its status alone
	}
	if strings.HasPrefix(path, "/v1/") && err == nil {
		s.described(apitest.Exchange{Method: method, Path: path, RequestHeader: req.Header, RequestBody: raw, Status: resp.StatusCode, Header: resp.Header, Body: text})
	}
	return out, err
}

// described holds what was said against the API's document.
func (s *shop) described(e apitest.Exchange) {
	d, err := s.document()
	if err == nil {
		_, err = d.Check(e)
	}
	if err != nil {
		s.t.Error(err)
	}
}

func (s *shop) must(method, path string, body any, status int, headers ...string) answer {
	s.t.Helper()
	a, err := s.call(method, path, body, headers...)
	if err != nil || a.status != status {
		s.t.Fatalf("%s %s %v: %+v, %v; want %d", method, path, body, a, err, status)
	}
	return a
}

type m = map[string]any

func order(no string, with m) m {
	o := m{"merchant": "shop", "order_no": no, "buyer": "alice", "amount": 100, "items": []m{{"sku": "book", "n": 1}}}
	for k, v := range with {
		if v == nil {
			delete(o, k)
		} else {
			o[k] = v
		}
	}
	return o
}

// money is the state as the databases have it.
type money struct {
	Buyer     struct{ Balance, Frozen, Spent int64 }
	Merchant  struct{ Pending, Posted, Refunded int64 }
	Inventory struct {
		Articles []struct{ Free, Held, Sold int64 }
	}
	Messages struct{ Notices, Sales, Insured int64 }
	Points   struct{ Points int64 }
	Settled  bool
	Faults   []string
}

func (s *shop) money() (out money) {
	s.t.Helper()
	resp, err := http.Get(s.base + "/state")
	if err != nil {
		s.t.Fatal(err)
	}
	defer resp.Body.Close()
	if err := json.Unmarshal([]byte(readAll(s.t, resp)), &out); err != nil {
		s.t.Fatal(err)
	}
	return out
}

// settled waits until nothing is open and the messages of so many payments, over so many points, have arrived.
func (s *shop) settled(payments, points int64) money {
	s.t.Helper()
	var got money
	eventually(s.t, 60*time.Second, "everything is settled", func() bool {
		got = s.money()
		return got.Settled && got.Messages.Insured == payments && got.Messages.Notices == payments && got.Messages.Sales == payments && got.Points.Points == points
	})
	if len(got.Faults) > 0 {
		s.t.Errorf("faults: %v", got.Faults)
	}
	return got
}

func (s *shop) stock(buyers int) {
	s.t.Helper()
	for i := range buyers {
		id := "alice"
		if i > 0 {
			id = fmt.Sprintf("alice%d", i)
		}
		s.must("POST", "/accounts", m{"kind": "buyer", "id": id, "balance": 100_000}, 204)
	}
	s.must("POST", "/accounts", m{"kind": "merchant", "id": "shop"}, 204)
	s.must("POST", "/accounts", m{"kind": "article", "id": "book", "balance": 1000}, 204)
}

func TestPaymentsOnSQLite(t *testing.T) { payments(t, "sqlite:"+t.TempDir()) }

// payments walks through the API: what is paid, what is refused and why, what a repeat gives, and what the databases have
// in the end.
func payments(t *testing.T, db string) {
	c := embedded(t)
	s := newShop(t, c, db)
	s.stock(1)
	paid := s.must("POST", "/v1/payments", order("1", m{"amount": 3000}), 200, "Idempotency-Key", "k1")
	for _, tc := range []struct {
		name   string
		body   m
		status int
		typ    string
		field  string
	}{
		{"too little money", order("2", m{"amount": 1_000_000}), 422, "insufficient_funds", "amount"},
		{"too little stock", order("3", m{"items": []m{{"sku": "book", "n": 100_000}}}), 422, "stock_gone", "items"},
		{"no such article", order("4", m{"items": []m{{"sku": "cd", "n": 1}}}), 422, "no_article", "items"},
		{"no such merchant", order("5", m{"merchant": "nobody"}), 422, "no_merchant", "merchant"},
		{"no such buyer", order("6", m{"buyer": "zoe"}), 422, "no_account", "buyer"},
		{"another currency", order("7", m{"currency": "EUR"}), 422, "wrong_currency", "currency"},
		{"no currency of ISO 4217", order("7", m{"currency": "ABC"}), 400, "invalid", "currency"},
		{"the order again, for another amount", order("1", m{"amount": 3001}), 409, "duplicate_order", "order_no"},
		{"no amount", order("8", m{"amount": nil}), 400, "invalid", "amount"},
	} {
		for range 2 { // a repeat gets the same answer
			if a := s.must("POST", "/v1/payments", tc.body, tc.status); a.Type != "/problems/"+tc.typ || a.Field != tc.field {
				t.Errorf("%s: %+v", tc.name, a)
			}
		}
	}
	if a := s.must("POST", "/v1/payments", order("9", nil), 409, "Idempotency-Key", "k1"); a.Type != "/problems/key_reused" {
		t.Errorf("a key with another body: %+v", a)
	}
	if again := s.must("POST", "/v1/payments", order("1", m{"amount": 3000}), 200, "Idempotency-Key", "k1"); again.ID != paid.ID || again.Gid != paid.Gid {
		t.Errorf("a repeat is another payment: %+v", again)
	}
	if got := s.settled(1, 30); got.Buyer.Frozen != 0 || got.Buyer.Spent != 3000 || got.Merchant.Posted != 3000 || got.Inventory.Articles[0].Free != 999 {
		t.Errorf("after one payment and many refusals: %+v", got)
	}
	s.refunds(paid.ID)
	s.orders()
	if got := s.settled(3, 32); got.Merchant.Refunded != 3000 || got.Inventory.Articles[0].Held != 0 || got.Inventory.Articles[0].Sold != 5 {
		t.Errorf("in the end: %+v", got)
	}
	openBook(t, db).posted()
	var all []string
	for after := ""; ; {
		page := s.must("GET", "/v1/payments?limit=3&merchant=shop&after="+after, nil, 200)
		for _, p := range page.Payments {
			all = append(all, p.State)
		}
		if after = page.Next; after == "" {
			break
		}
	}
	if len(all) != 9 {
		t.Errorf("%d payments are listed: %v", len(all), all)
	}
}

func (s *shop) refunds(id string) {
	s.t.Helper()
	path := "/v1/payments/" + id + "/refunds"
	for range 2 {
		s.must("POST", path, m{"refund_no": "r1", "amount": 1000}, 200)
	}
	if a := s.must("POST", path, m{"refund_no": "r1", "amount": 999}, 409); a.Type != "/problems/duplicate_refund" {
		s.t.Errorf("%+v", a)
	}
	if a := s.must("POST", path, m{"refund_no": "r2", "amount": 2001}, 422); a.Type != "/problems/refund_exceeds_payment" || a.Field != "amount" {
		s.t.Errorf("%+v", a)
	}
	s.must("POST", path, m{"refund_no": "r3", "amount": 2000}, 200)
	if a := s.must("GET", "/v1/payments/"+id, nil, 200); a.Refunded != 3000 {
		s.t.Errorf("%+v", a)
	}
	s.must("POST", "/v1/payments/pay_unknown/refunds", m{"refund_no": "r1", "amount": 1}, 404)
}

func (s *shop) orders() {
	s.t.Helper()
	body := m{"merchant": "shop", "order_no": "20", "items": []m{{"sku": "book", "n": 3}}}
	o := s.must("POST", "/v1/orders", body, 200)
	if got := s.money(); got.Inventory.Articles[0].Held != 3 {
		s.t.Errorf("reserved: %+v", got.Inventory)
	}
	s.must("POST", "/v1/orders", body, 200)
	// A payment that is refused gives the order its reservation back.
	if a := s.must("POST", "/v1/payments", order("20", m{"order": o.ID, "items": nil, "amount": 1_000_000}), 422); a.Type != "/problems/insufficient_funds" {
		s.t.Errorf("%+v", a)
	}
	eventually(s.t, 20*time.Second, "the order is reserved again", func() bool { return s.must("GET", "/v1/orders/"+o.ID, nil, 200).State == "reserved" })
	again := m{"merchant": "shop", "order_no": "24", "items": []m{{"sku": "book", "n": 1}}}
	retried := s.must("POST", "/v1/orders", again, 200)
	s.must("POST", "/v1/payments", order("24", m{"order": retried.ID, "items": nil, "buyer": "zoe"}), 422)
	eventually(s.t, 20*time.Second, "the order is reserved again", func() bool { return s.must("GET", "/v1/orders/"+retried.ID, nil, 200).State == "reserved" })
	s.must("POST", "/v1/payments", order("24", m{"order": retried.ID, "items": nil}), 200) // another buyer pays it
	s.must("POST", "/v1/payments", order("24", m{"order": retried.ID, "items": nil, "buyer": "zoe"}), 422)
	other := s.must("POST", "/v1/orders", m{"merchant": "shop", "order_no": "21", "items": []m{{"sku": "book", "n": 3}}}, 200)
	s.must("POST", "/v1/payments", order("21", m{"order": other.ID, "items": nil}), 200)
	if a := s.must("POST", "/v1/orders/"+other.ID+"/cancel", nil, 409); a.Type != "/problems/order_taken" {
		s.t.Errorf("%+v", a)
	}
	for range 2 {
		if a := s.must("POST", "/v1/orders/"+o.ID+"/cancel", nil, 200); a.State != "released" {
			s.t.Errorf("%+v", a)
		}
	}
	if a := s.must("POST", "/v1/orders", m{"merchant": "nobody", "order_no": "22", "items": []m{{"sku": "book", "n": 1}}}, 422); a.Type != "/problems/no_merchant" || a.Field != "merchant" {
		s.t.Errorf("%+v", a)
	}
	if a := s.must("POST", "/v1/orders", m{"merchant": "shop", "order_no": "22", "items": []m{{"sku": "book", "n": 100_000}}}, 422); a.Field != "items" {
		s.t.Errorf("%+v", a)
	}
	lapsing := s.must("POST", "/v1/orders", m{"merchant": "shop", "order_no": "23", "items": []m{{"sku": "book", "n": 1}}, "ttl_seconds": 1}, 200)
	eventually(s.t, 30*time.Second, "the unpaid order lapses", func() bool { return s.must("GET", "/v1/orders/"+lapsing.ID, nil, 200).State == "released" })
}

func TestPaymentsSurviveKillsOnSQLite(t *testing.T) { paymentsUnderKills(t, "sqlite:"+t.TempDir()) }

// paymentsUnderKills pays while coordinator and participants are killed in turn: what was answered stands, every payment
// ends, and the money is right (G1, G5, G7, G10).
func paymentsUnderKills(t *testing.T, db string) {
	c := embedded(t)
	p := newBatchProxy(t)
	s := newShop(t, c, db, "--base-url", p.url)
	p.to.Store(&s.base)
	const buyers, each = 8, 12
	s.stock(buyers)
	told := make([]map[string]string, buyers)
	var wg sync.WaitGroup
	progress := make(chan struct{}, buyers*each)
	for b := range buyers {
		told[b] = map[string]string{}
		wg.Go(func() {
			for i := range each {
				no := fmt.Sprintf("%d-%d", b, i)
				with := m{"buyer": "alice"}
				if b > 0 {
					with["buyer"] = fmt.Sprintf("alice%d", b)
				}
				if i%4 == 3 {
					with["amount"] = 1_000_000 // refused
				}
				deadline := time.Now().Add(60 * time.Second)
				for time.Now().Before(deadline) {
					a, err := s.call("POST", "/v1/payments", order(no, with), "Prefer", "wait=1")
					if err == nil && (a.status == 200 || a.status == 422) {
						told[b][no] = fmt.Sprint(a.status)
						break
					}
					if err == nil && a.status != 202 && a.status < 500 {
						t.Errorf("%s: %+v", no, a)
						break
					}
					time.Sleep(20 * time.Millisecond)
				}
				if i%4 == 1 {
					s.refundOf(told[b], no, deadline)
				}
				progress <- struct{}{}
			}
		})
	}
	for n, kill := range []func(){
		func() { s.kill(); s.restart() }, func() { c.kill(); c.restart() }, func() { s.kill(); c.kill(); c.restart(); s.restart() }, func() { s.kill(); s.restart() },
	} {
		for range buyers * each / 6 {
			<-progress
		}
		began := time.Now()
		kill()
		t.Logf("kill %d: all back after %s", n+1, time.Since(began).Round(time.Millisecond))
	}
	wg.Wait()
	if t.Logf("%d batches with %d calls", p.batches.Load(), p.calls.Load()); p.calls.Load() <= p.batches.Load() {
		t.Error("no calls shared a batch: the kills say nothing about that")
	}
	paid, refunded := int64(0), int64(0)
	for b := range told {
		if len(told[b]) != each+each/4 {
			t.Errorf("buyer %d was told of %d payments", b, len(told[b]))
		}
		for _, status := range told[b] {
			switch status {
			case "200":
				paid++
			case "refunded":
				refunded++
			}
		}
	}
	if want := int64(buyers * each * 3 / 4); paid != want {
		raw, _ := os.ReadFile(s.log)
		t.Errorf("%d were told to be paid, want %d; the participants' log:\n%s", paid, want, raw)
	}
	got := s.settled(paid, paid)
	if want := int64(buyers * each / 4); refunded != want || got.Merchant.Refunded != 40*want {
		t.Errorf("%d refunds of 40 were told to be paid, want %d: %+v", refunded, want, got)
	}
	openBook(t, db).posted()
	if got.Buyer.Spent != 100*paid || got.Merchant.Posted != 100*paid || got.Inventory.Articles[0].Sold != paid || got.Inventory.Articles[0].Held != 0 || got.Buyer.Balance != buyers*100_000-100*paid+40*refunded {
		t.Errorf("%d payments of 100: %+v", paid, got)
	}
}

// refundOf gives 40 of a payment back, repeating it until it is told to be done.
func (s *shop) refundOf(told map[string]string, no string, deadline time.Time) {
	for time.Now().Before(deadline) {
		a, err := s.call("POST", "/v1/payments/"+payment.PaymentID("shop", no)+"/refunds", m{"refund_no": "r", "amount": 40}, "Prefer", "wait=1", "Idempotency-Key", "refund-"+no)
		if err == nil && a.status == 200 {
			told[no+" refund"] = "refunded"
			return
		}
		if err == nil && a.status != 202 && a.status < 500 {
			s.t.Errorf("refund of %s: %+v", no, a)
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
}
