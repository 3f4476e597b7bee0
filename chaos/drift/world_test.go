package drift

import (
	"context"
	crand "crypto/rand"
	"database/sql"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/lockstep-tx/lockstep/chaos/seed"
	"github.com/lockstep-tx/lockstep/coordinator/engine"
	"github.com/lockstep-tx/lockstep/coordinator/txn"
	"github.com/lockstep-tx/lockstep/participants/barrier"
	"github.com/lockstep-tx/lockstep/participants/branch"
	"github.com/lockstep-tx/lockstep/participants/ledger"
	"github.com/lockstep-tx/lockstep/participants/money"
	"github.com/lockstep-tx/lockstep/participants/sqldb"
	"github.com/lockstep-tx/lockstep/region/arbiter"
	"github.com/lockstep-tx/lockstep/region/journal"
	"github.com/lockstep-tx/lockstep/region/journal/sample"
	"github.com/lockstep-tx/lockstep/region/reconcile"
	"github.com/lockstep-tx/lockstep/region/registry"
	"github.com/lockstep-tx/lockstep/region/slot"
)

// databases make an empty one and give its address, by kind.
var databases = map[string]func(t *testing.T) string{
	"sqlite": func(t *testing.T) string { return "sqlite:" + t.TempDir() + "/world.db" },
}

const (
	epoch   = 101
	begin   = int64(1_790_000_000_000)
	deposit = int64(100_000_000)
)

// world is one region that has paid: wallets behind the kit's handlers, and a journal of what was decided.
type world struct {
	t       *testing.T
	db      *sql.DB
	d       sqldb.Dialect
	book    ledger.Wallets
	url     string
	j       *journal.Journal
	mux     *http.ServeMux
	served  *reconcile.Served
	rec     *reconcile.Reconciler
	arbiter *arbiter.Arbiter
	live    map[string]bool
	maker   sample.Maker
	schema  string // of the barrier
	name    string // makes gids differ between worlds
	n       int
	// committed and aborted are branches that a drift may be planted in.
	committed, aborted []seed.Target
	rows               []engine.Row
}

var accounts = []string{"ann", "bob", "cid", "dan", "eve", "fay"}

func newWorld(t *testing.T, kind string, a *arbiter.Arbiter) *world {
	t.Helper()
	ctx := t.Context()
	address := databases[kind](t)
	w := &world{t: t, arbiter: a, live: map[string]bool{}, maker: sample.Maker{Epoch: epoch}, name: strconv.FormatInt(time.Now().UnixNano(), 36), mux: http.NewServeMux()}
	var err error
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	w.db, w.d, err = sqldb.Open(ctx, address)
	must(err)
	t.Cleanup(func() { w.db.Close() })
	if w.d.Dialect == barrier.MySQL { // a database of the server, which others' epochs must not be read in
		w.schema = "barrier_" + strings.ToLower(crand.Text()[:12])
		t.Cleanup(func() {
			if _, err := w.db.Exec("DROP DATABASE " + w.schema); err != nil {
				t.Error(err)
			}
		})
	}
	must(barrier.MigrateSchema(ctx, w.db, w.d.Dialect, w.schema))
	must(ledger.Migrate(ctx, w.db, w.d.Dialect, ledger.Options{}))
	book, err := ledger.New(w.d.Dialect, ledger.Options{Now: func() time.Time { return time.UnixMilli(begin) }})
	must(err)
	w.book = ledger.Wallets{Ledger: book}
	for _, id := range accounts {
		must(w.book.OpenWallet(ctx, w.db, id, "CNY", deposit))
	}
	b, err := barrier.New(w.db, w.d.Dialect, barrier.Options{Schema: w.schema})
	must(err)
	kit := branch.New(b, branch.Options{})
	t.Cleanup(kit.Close)
	for name, d := range map[string]ledger.Direction{"wallet/pay": ledger.Pay, "wallet/receive": ledger.Receive} {
		branch.HandleTCC(kit, name, branch.TCC[money.Transfer]{
			Try: branch.Op[money.Transfer](w.book.Try(d)), Confirm: branch.Op[money.Transfer](w.book.Confirm(d)),
			Cancel: branch.Op[money.Transfer](w.book.Cancel(d)), Apply: branch.Op[money.Transfer](w.book.Apply(d)),
			Effect: func(m money.Transfer) ([]branch.Held, error) {
				m, err := m.Normal()
				return []branch.Held{{Account: m.Account, Amount: m.Minor, Currency: m.Currency, Debit: d == ledger.Pay}}, err
			},
		})
	}
	kit.Move(ledger.Slots{Ledger: book})
	srv := httptest.NewServer(kit.Handler())
	t.Cleanup(srv.Close)
	w.url = srv.URL
	where := address
	if kind == "sqlite" {
		where += "-journal.db"
	}
	w.j, err = journal.Open(ctx, where)
	must(err)
	t.Cleanup(func() { w.j.Close() })
	w.served = &reconcile.Served{Journal: w.j, Index: 1, Live: func(_ context.Context, gid string) (bool, error) { return w.live[gid], nil }}
	w.served.Mount(w.mux)
	owners := &slot.Map{}
	for n := range owners {
		owners[n] = slot.Owner{Region: "east", Epoch: epoch}
	}
	w.rec = &reconcile.Reconciler{Ask: w, Regions: []string{"east"}, Owners: owners, Table: registry.NewTable([]registry.Participant{
		{Name: "wallets", Endpoints: map[string]string{"east": srv.URL}, Can: &registry.Capabilities{Apply: true}}})}
	w.pay()
	return w
}

// Get is reconcile.Asker's.
func (w *world) Get(ctx context.Context, _, path string) ([]byte, error) {
	return w.ask(ctx, http.MethodGet, path, "")
}

// Post is reconcile.Asker's.
func (w *world) Post(ctx context.Context, _, path string, body []byte) ([]byte, error) {
	return w.ask(ctx, http.MethodPost, path, string(body))
}

func (w *world) ask(ctx context.Context, method, path, body string) ([]byte, error) {
	rec := httptest.NewRecorder()
	w.mux.ServeHTTP(rec, httptest.NewRequest(method, path, strings.NewReader(body)).WithContext(ctx))
	raw, err := io.ReadAll(rec.Result().Body)
	if rec.Code != http.StatusOK {
		err = fmt.Errorf("%s %s: %d %s", method, path, rec.Code, raw)
	}
	return raw, err
}

// pay makes transactions in every state: committed, aborted, and on every account some that are still open.
func (w *world) pay() {
	for i := range 12 {
		w.transact(accounts[i%6], accounts[(i+1+i/6)%6], int64(1+i%9)*100, true)
	}
	for i := range 8 {
		w.transact(accounts[i%6], accounts[(i+2)%6], int64(1+i%9)*100, false)
	}
	for i, from := range accounts { // what D04 lets go once more must be held by somebody
		gid := w.gid()
		w.live[gid] = true
		w.call("wallet/pay", "try", gid, "01", from, 5_000)
		w.call("wallet/receive", "try", gid, "02", accounts[(i+1)%6], 5_000)
	}
	if err := w.j.Append(w.t.Context(), w.rows); err != nil {
		w.t.Fatal(err)
	}
	applied := map[[2]int]uint64{}
	for i := range w.rows {
		applied[[2]int{1, w.rows[i].Slot}] = w.rows[i].Finish.Seq
	}
	if err := w.j.SetApplied(w.t.Context(), applied); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) gid() string {
	w.n++
	return fmt.Sprintf("%s-%d", w.name, w.n)
}

func (w *world) transact(from, to string, amount int64, commit bool) {
	gid := w.gid()
	op := map[bool]string{true: "confirm", false: "cancel"}[commit]
	var branches []txn.Branch
	for i, side := range []struct{ name, account string }{{"wallet/pay", from}, {"wallet/receive", to}} {
		id := fmt.Sprintf("%02d", i+1)
		w.call(side.name, "try", gid, id, side.account, amount)
		w.call(side.name, op, gid, id, side.account, amount)
		branches = append(branches, txn.Branch{ID: txn.BranchID(id), Confirm: "lockstep://wallets/" + side.name + "/confirm", Cancel: "lockstep://wallets/" + side.name + "/cancel",
			Account: side.account, Payload: payload(side.account, amount), Two: txn.OpState{Status: txn.OpDone, Attempts: 1, DoneAt: begin}})
		at := seed.Target{Schema: w.schema, Gid: gid, Branch: id, Account: side.account, Commit: commit, Other: map[bool]string{true: to, false: from}[side.account == from]}
		if commit {
			w.committed = append(w.committed, at)
		} else {
			w.aborted = append(w.aborted, at)
		}
	}
	w.rows = append(w.rows, w.maker.Row(sample.Payment{Gid: txn.Gid(gid), Abort: !commit, BegunAt: begin + int64(w.n), Branches: branches}))
}

func payload(account string, amount int64) []byte {
	return fmt.Appendf(nil, `{"account":%q,"amount":%d,"currency":"CNY"}`, account, amount)
}

// call makes a branch call as a coordinator does.
func (w *world) call(name, op, gid, id, account string, amount int64) {
	w.t.Helper()
	if status, text := w.tell(name, op, gid, id, account, amount, epoch); status != http.StatusOK {
		w.t.Fatalf("%s %s of %s: %d %s", name, op, gid, status, text)
	}
}

func (w *world) tell(name, op, gid, id, account string, amount int64, epoch int) (int, string) {
	w.t.Helper()
	req, err := http.NewRequestWithContext(w.t.Context(), http.MethodPost, fmt.Sprintf("%s/%s/%s?gid=%s&trans_type=tcc&branch_id=%s&op=%s", w.url, name, op, gid, id, op),
		strings.NewReader(string(payload(account, amount))))
	if err != nil {
		w.t.Fatal(err)
	}
	for k, v := range map[string]int{"Slot": slot.Of(gid), "Epoch": epoch, "Account-Slot": slot.Of(account), "Account-Epoch": epoch} {
		req.Header.Set("Lockstep-"+k, strconv.Itoa(v))
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		w.t.Fatal(err)
	}
	defer resp.Body.Close()
	raw, _ := io.ReadAll(resp.Body)
	return resp.StatusCode, string(raw)
}

// look detects, and writes down what was found.
func (w *world) look() []reconcile.Finding {
	w.t.Helper()
	rep, err := w.rec.Detect(w.t.Context(), begin-1000, begin+1_000_000)
	if err != nil || len(rep.Skipped) > 0 || rep.Branches != 2*len(w.rows) || rep.Books != 1 {
		w.t.Fatalf("it has not looked: %+v, %v", rep, err)
	}
	found, err := reconcile.Save(w.t.Context(), w.arbiter, rep.Findings, time.UnixMilli(begin))
	if err != nil {
		w.t.Fatal(err)
	}
	return found
}

// apply repairs what has a repair, each twice: a repair may be repeated.
func (w *world) apply(found []reconcile.Finding) {
	w.t.Helper()
	for _, f := range reconcile.Plan(found) {
		for range 2 {
			if err := w.rec.Apply(w.t.Context(), w.arbiter, &f, time.UnixMilli(begin)); err != nil {
				w.t.Fatalf("%v\n%s", err, f.Text)
			}
		}
	}
}

// whole reads everything of the world's books but what a repair may add.
func (w *world) whole() string {
	w.t.Helper()
	var all strings.Builder
	for i, at := range append(append([]seed.Target{}, w.committed...), w.aborted...) {
		image, err := seed.Image(w.t.Context(), w.db, w.d, at)
		if err != nil {
			w.t.Fatal(err)
		}
		fmt.Fprintf(&all, "%d %s", i, image)
	}
	return all.String()
}

func (w *world) plant(class seed.Class, at seed.Target, rnd *rand.Rand) seed.Planted {
	w.t.Helper()
	p, err := seed.Plant(w.t.Context(), w.db, w.d, class, at, rnd)
	if err != nil {
		w.t.Fatal(err)
	}
	return p
}

func text(v any) string {
	raw, _ := json.Marshal(v)
	return string(raw)
}

func (w *world) now() time.Time { return time.UnixMilli(begin) }

// sound has the ledger audit its own book.
func (w *world) sound() {
	w.t.Helper()
	if faults, err := w.book.Audit(w.t.Context(), w.db); err != nil || len(faults) > 0 {
		w.t.Fatalf("the book: %v, %v", faults, err)
	}
}
