package conformance

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/dtm-labs/dtm/client/dtmcli/dtmimp"

	"github.com/lockstep-tx/lockstep/coordinator/dtmwire"
	rig "github.com/lockstep-tx/lockstep/coordinator/dtmwire/dtmwiretest"
	"github.com/lockstep-tx/lockstep/coordinator/engine"
	"github.com/lockstep-tx/lockstep/coordinator/invoke"
	"github.com/lockstep-tx/lockstep/coordinator/store/memstore"
)

// Each test here shows one defect of section 17 of the reference to be absent. Those of D5, D7, D33, D37, D39 and D43
// stand with the mode they concern, those of D26, D31, D38 and D40 among the bad input.

// post sends a body and wants 200.
func post(t *testing.T, r *rig.Rig, path string, body any) {
	t.Helper()
	if code, out, _ := r.Post(path, body); code != http.StatusOK {
		t.Fatalf("%s: %d %s", path, code, out)
	}
}

// begin prepares a TCC transaction and registers its branches by hand.
func begin(t *testing.T, r *rig.Rig, p *rig.Participant, gid string, branches ...string) {
	t.Helper()
	beginWith(t, r, p, gid, 0, branches...)
}

// beginWith gives it a retry interval in seconds: one that is longer than a test shows that something came at once.
func beginWith(t *testing.T, r *rig.Rig, p *rig.Participant, gid string, retry int, branches ...string) {
	t.Helper()
	post(t, r, "/prepare", map[string]any{"gid": gid, "trans_type": "tcc", "retry_interval": retry})
	for _, b := range branches {
		post(t, r, "/registerBranch", map[string]string{"gid": gid, "trans_type": "tcc", "branch_id": b, "data": "{}", "confirm": p.HTTP("confirm"), "cancel": p.HTTP("cancel")})
	}
}

func end(gid string) map[string]string { return map[string]string{"gid": gid, "trans_type": "tcc"} }

// D1: DTM runs a repeated submit over no branches and marks the transaction succeed without confirming.
func TestRepeatedSubmitConfirmsWhatIsPendingAndNothingTwice(t *testing.T) {
	r, p := start(t)
	beginWith(t, r, p, "g", 600, "01", "02")
	p.Once("02", "confirm", rig.Ongoing)
	post(t, r, "/submit", end("g"))
	r.PassOver("g")
	p.Once("02", "confirm", rig.Ongoing)
	post(t, r, "/submit", end("g"))
	p.Await("g", "02", "confirm", 2) // at once, without the pause
	r.PassOver("g")
	wantEnd(t, r, "g", submitted, prepared, succeed, prepared, prepared)
	post(t, r, "/submit", end("g"))
	r.Await("g", succeed)
	wantOpsUnordered(t, p, "g", "01 confirm", "02 confirm", "02 confirm", "02 confirm")
}

// D1: while the first pass is under way a repeat starts no second one beside it.
func TestRepeatedSubmitStartsNoSecondPass(t *testing.T) {
	r, p := start(t)
	begin(t, r, p, "g", "01")
	p.Once("01", "confirm", rig.Hang)
	post(t, r, "/submit", end("g"))
	p.Await("g", "01", "confirm", 1)
	for range 5 {
		post(t, r, "/submit", end("g"))
	}
	p.Release()
	r.Await("g", succeed)
	wantOps(t, p, "g", "01 confirm")
}

// D2: DTM reads the branches before it changes the status: one that is registered in between is never cancelled.
func TestBranchRegisteredWhileItTimesOutIsCancelledOrRefused(t *testing.T) {
	r, p := start(t)
	begin(t, r, p, "g", "first")
	r.Clock.Advance(34 * time.Second)
	var mu sync.Mutex
	taken := []string{"first cancel"}
	var wg sync.WaitGroup
	for i := range 64 {
		wg.Go(func() {
			id := fmt.Sprintf("b%02d", i)
			code, _, _ := r.Post("/registerBranch", map[string]string{"gid": "g", "trans_type": "tcc", "branch_id": id, "data": "{}", "confirm": p.HTTP("confirm"), "cancel": p.HTTP("cancel")})
			if code == 200 {
				mu.Lock()
				taken = append(taken, id+" cancel")
				mu.Unlock()
			}
			if i == 20 {
				r.Advance(2 * time.Second)
			}
		})
	}
	wg.Wait()
	r.Await("g", failed)
	wantOpsUnordered(t, p, "g", taken...)
}

// D4: on its default store DTM loses branches where one gid is a prefix of another, or beyond 999 rows.
func TestGidsThatArePrefixesOfOneAnotherKeepTheirBranches(t *testing.T) {
	r, p := start(t)
	gids := []string{"order", "order0", "order00", "order001", "order01", "order-", "order/1", "order:", "o", "order\u00e9"}
	for _, g := range gids {
		begin(t, r, p, g, "01", "001", "0")
	}
	for i, g := range gids {
		if i%2 == 0 {
			post(t, r, "/submit", end(g))
		} else {
			post(t, r, "/abort", end(g))
		}
	}
	for i, g := range gids {
		op, status := "confirm", succeed
		if i%2 == 1 {
			op, status = "cancel", failed
		}
		r.Await(g, status)
		wantOpsUnordered(t, p, g, "01 "+op, "001 "+op, "0 "+op)
	}
}

// D4 and D36: a thousand rows, far more branches than the SDKs number, ids as opaque texts.
func TestFiveHundredBranchesAreAllConfirmed(t *testing.T) {
	r, p := start(t)
	ids := make([]string, 500)
	for i := range ids {
		ids[i] = fmt.Sprintf("a-long-and-opaque-branch-id/%d", i)
	}
	begin(t, r, p, "g", ids...)
	post(t, r, "/submit", end("g"))
	p.Await("g", "*", "confirm", len(ids))
	r.Await("g", succeed)
	if rows := r.Branches("g"); len(rows) != 1000 {
		t.Errorf("%d rows", len(rows))
	}
	for _, id := range ids {
		if n := p.Count("g", id, "confirm"); n != 1 {
			t.Errorf("branch %q was confirmed %d times", id, n)
		}
	}
}

// gated is a store whose commits wait.
type gated struct {
	engine.Store
	mu   sync.Mutex
	shut chan struct{}
}

func (g *gated) gate() chan struct{} {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.shut
}

func (g *gated) Commit(ctx context.Context, b *engine.Batch) error {
	if ch := g.gate(); ch != nil {
		select {
		case <-ch:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return g.Store.Commit(ctx, b)
}

// D6: DTM executes transactions that it could not store. Here nothing is called before the record is durable, and the
// caller is told that nothing is known.
func TestNothingIsCalledBeforeItsRecordIsDurable(t *testing.T) {
	st := &gated{Store: memstore.New()}
	r, p := start(t, rig.Options{Store: st, Wire: dtmwire.Limits{Wait: 100 * time.Millisecond}})
	begin(t, r, p, "tcc", "01")
	ch := make(chan struct{})
	st.mu.Lock()
	st.shut = ch
	st.mu.Unlock()
	saga := map[string]any{"gid": "saga", "trans_type": "saga", "steps": []any{map[string]string{"action": p.HTTP("act")}}, "payloads": []string{"{}"}}
	for path, body := range map[string]any{"/submit": saga, "/abort": end("tcc")} {
		if code, out, h := r.Post(path, body); code != 503 || h.Get("Retry-After") == "" || strings.Contains(string(out), "SUCCESS") {
			t.Errorf("%s answered %d %s", path, code, out)
		}
	}
	if n := p.Count("*", "*", "*"); n != 0 {
		t.Errorf("%d calls left before their record was durable: %v", n, p.Ops("*"))
	}
	close(ch)
	r.Await("saga", succeed)
	r.Await("tcc", failed)
}

// D8: DTM takes the word FAILURE anywhere, even in the page of a proxy's error, for the participant's No.
func TestOnlyTheParticipantsOwnNoIsARefusal(t *testing.T) {
	for name, a := range map[string]rig.Answer{
		"500 page":       {Status: 500, Body: "<h1>FAILURE of the upstream</h1>"},
		"502 page":       {Status: 502, Body: "ONGOING maintenance, FAILURE"},
		"404 page":       {Status: 404, Body: "FAILURE"},
		"login redirect": {Status: 302, Location: "/login?FAILURE"},
		"401 page":       {Status: 401, Body: `{"dtm_result":"FAILURE"}`},
	} {
		t.Run(name, func(t *testing.T) {
			r, p := start(t)
			gid := newGid(r)
			s, _ := sagaClients[0].make(r, p, gid, 1)
			if a.Location != "" {
				a.Status = 0
				a.Location = p.HTTP("elsewhere")
				p.Once("01", "action", rig.Answer{Status: 502, Body: "FAILURE"})
			} else {
				p.Once("01", "action", a)
			}
			noErr(t, s.Submit())
			r.PassOver(gid)
			wantEnd(t, r, gid, submitted, prepared, prepared)
			r.Advance(errorPause)
			r.Await(gid, succeed)
		})
	}
}

// D10 and section 9: a submit that says only gid and mode keeps what prepare said; what it says itself wins.
func TestSubmitMergesItsOptionsIntoThoseOfPrepare(t *testing.T) {
	r, p := start(t)
	post(t, r, "/prepare", map[string]any{"gid": "g", "trans_type": "tcc", "branch_headers": map[string]string{"Tenant": "7"}, "retry_interval": 70, "request_timeout": 9, "wait_result": true})
	created, _ := r.Query("g")
	post(t, r, "/registerBranch", map[string]string{"gid": "g", "trans_type": "tcc", "branch_id": "01", "data": "{}", "confirm": p.HTTP("c"), "cancel": p.HTTP("x")})
	p.Once("01", "confirm", rig.Ongoing)
	if code, body, _ := r.Post("/submit", map[string]any{"gid": "g", "trans_type": "tcc", "request_timeout": 5}); code != 425 {
		t.Errorf("the wait_result of prepare was forgotten: %d %s", code, body)
	}
	tx, _ := r.Query("g")
	if tx.RetryInterval != 70 || tx.RequestTimeout != 5 || tx.BranchHeaders["Tenant"] != "7" || tx.CreateTime != created.CreateTime {
		t.Errorf("the transaction shows %+v", tx)
	}
	if h := p.Calls("g", "01", "confirm")[0].Header.Get("Tenant"); h != "7" {
		t.Errorf("the first pass lost the header: %q", h)
	}
	r.Advance(60 * time.Second)
	wantOps(t, p, "g", "01 confirm")
	r.Advance(11 * time.Second)
	r.Await("g", succeed)
}

// D14: on redis and boltdb DTM's resetNextCronTime has no effect.
func TestResetNextCronTimeMakesATransactionDueNow(t *testing.T) {
	r, p := start(t)
	beginWith(t, r, p, "g", 600, "01")
	p.Once("01", "confirm", rig.Ongoing, rig.Ongoing)
	post(t, r, "/submit", end("g"))
	r.PassOver("g")
	post(t, r, "/resetNextCronTime", map[string]string{"gid": "g"})
	p.Await("g", "01", "confirm", 2)
	r.PassOver("g")
	if code, body, _ := r.Get("/resetCronTime?timeout=1&limit=10"); code != 200 || string(body) != `{"has_remaining":false,"succeed_count":1}` {
		t.Errorf("resetCronTime answered %d %s", code, body)
	}
	r.Await("g", succeed)
	if code, body, _ := r.Get("/resetCronTime"); code != 200 || string(body) != `{"has_remaining":false,"succeed_count":0}` {
		t.Errorf("resetCronTime answered %d %s", code, body)
	}
}

// D9 and D15: DTM's back-off grows without bound or jitter, and Redis forgets what is unfinished after seven days.
func TestBackOffIsCappedAndSpreadAndNothingUnfinishedExpires(t *testing.T) {
	r, p := start(t, rig.Options{Invoke: invoke.Config{BreakerFails: 1 << 30}}) // the breaker's pauses are not the subject
	gids := []string{"a", "b", "c", "d"}
	p.Always("01", "confirm", rig.Broken)
	pauses := map[int64]bool{}
	for _, g := range gids {
		begin(t, r, p, g, "01")
		post(t, r, "/submit", end(g))
	}
	for range 12 {
		for _, g := range gids {
			r.PassOver(g)
			s := r.State(g)
			pause := s.Branches[0].Two.NextAt - s.UpdatedAt
			if pause > 72_000 || pause < 300 {
				t.Errorf("pause of %d ms after %d failures", pause, s.Branches[0].Two.Fails)
			}
			pauses[pause] = true
		}
		r.Advance(errorPause)
	}
	if len(pauses) < 24 {
		t.Errorf("%d different pauses of 48: they are not spread", len(pauses))
	}
	r.Advance(30 * 24 * time.Hour)
	p.Always("01", "confirm", rig.Success)
	for _, g := range gids {
		r.PassOver(g)
		r.Advance(errorPause)
		r.Await(g, succeed)
	}
}

// D15: DTM retries a saga with retry_limit without any pause.
func TestRetryLimitDoesNotRetryWithoutPause(t *testing.T) {
	r, p := start(t)
	gid := newGid(r)
	s, o := sagaClients[0].make(r, p, gid, 1)
	p.Always("01", "action", rig.Broken)
	o.RetryInterval = 60
	o.WithRetryLimit(5)
	noErr(t, s.Submit())
	r.PassOver(gid)
	wantOps(t, p, gid, "01 action")
}

// D18: DTM's topics are a map that is read and written at once.
func TestTopicsTakeConcurrentChanges(t *testing.T) {
	r, _ := start(t)
	const n = 20
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() {
			if code, body, _ := r.Get(fmt.Sprintf("/subscribe?topic=t&url=http://dtm/test%d", i)); code != 200 {
				t.Errorf("subscribe: %d %s", code, body)
			}
		})
	}
	wg.Wait()
	for i := range n {
		wg.Go(func() {
			if code, body, _ := r.Get(fmt.Sprintf("/unsubscribe?topic=t&url=http://dtm/test%d", i)); code != 200 {
				t.Errorf("unsubscribe: %d %s", code, body)
			}
		})
	}
	wg.Wait()
	if _, body, _ := r.Get("/queryKV?cat=topics&key=t"); !strings.Contains(string(body), fmt.Sprintf(`"version":%d`, 2*n)) || !strings.Contains(string(body), `"v":"[]"`) {
		t.Errorf("the topic is %s", body)
	}
}

// D22: DTM confirms one branch after another: a stuck one blocks the rest.
func TestStuckConfirmHoldsUpNoOther(t *testing.T) {
	r, p := start(t)
	begin(t, r, p, "g", "01", "02", "03")
	for _, b := range []string{"01", "03"} {
		p.Once(b, "confirm", rig.Hang)
	}
	post(t, r, "/submit", map[string]any{"gid": "g", "trans_type": "tcc", "request_timeout": 20})
	p.Await("g", "01", "confirm", 1)
	p.Await("g", "02", "confirm", 1)
	p.Await("g", "03", "confirm", 1)
	r.Runner.Ask(context.Background(), func(*engine.Core, int64) {})
	p.Release()
	r.Await("g", succeed)
}

// D34: DTM's columns end at 1024 characters, and an overflow fails the status change.
func TestLongTextsAreKeptOrCutAndNeverFatal(t *testing.T) {
	r, p := start(t)
	begin(t, r, p, "g", "01")
	long := strings.Repeat("reason é ", 3000)
	post(t, r, "/abort", map[string]string{"gid": "g", "trans_type": "tcc", "rollback_reason": long})
	r.Await("g", failed)
	if tx, _ := r.Query("g"); len(tx.RollbackReason) < 1024 || !strings.HasPrefix(long, tx.RollbackReason[:1024]) {
		t.Errorf("the reason kept is %d bytes", len(tx.RollbackReason))
	}
	gid := newGid(r)
	s, o := sagaClients[0].make(r, p, gid, 2)
	o.CustomData = `{"concurrent":true,"note":"` + strings.Repeat("n", 100_000) + `"}`
	o.BranchHeaders = map[string]string{"Long": strings.Repeat("h", 4000)}
	o.WaitResult = true
	noErr(t, s.Submit())
	if tx, _ := r.Query(gid); tx.CustomData != o.CustomData {
		t.Errorf("custom_data has %d bytes", len(tx.CustomData))
	}
	gid = newGid(r)
	p.Always("01", "action", rig.Answer{Status: 409, Body: strings.Repeat("no é ", 50_000)})
	s, _ = sagaClients[0].make(r, p, gid, 1)
	noErr(t, s.Submit())
	r.Await(gid, failed)
}

// D41: DTM panics on every attempt of a JSON-RPC call without a payload.
func TestJSONRPCBranchWithoutPayloadIsCalledWithItsIdentity(t *testing.T) {
	r, p := start(t)
	for i, data := range []string{"", "null", " ", "{}"} {
		gid := fmt.Sprintf("g%d", i)
		post(t, r, "/submit", map[string]any{"gid": gid, "trans_type": "saga", "protocol": "json-rpc", "wait_result": true,
			"steps": []any{map[string]string{"action": p.RPC("act")}}, "payloads": []string{data}})
		if c := p.Calls(gid, "01", "action"); len(c) != 1 || c[0].Protocol != "json-rpc" || c[0].TransType != "saga" {
			t.Errorf("payload %q: calls are %+v", data, c)
		}
	}
}

// D42 and deviation 13: DTM aborts by the request's mode, so that `tcc` moves a workflow or a saga to aborting.
func TestAbortGoesByTheStoredMode(t *testing.T) {
	r, p := start(t)
	steps := []any{map[string]string{"action": p.HTTP("act")}}
	post(t, r, "/prepare", map[string]any{"gid": "saga", "trans_type": "saga", "steps": steps, "payloads": []string{"{}"}})
	post(t, r, "/prepare", map[string]any{"gid": "msg", "trans_type": "msg", "steps": steps, "payloads": []string{"{}"}, "query_prepared": p.HTTP("q")})
	post(t, r, "/prepareWorkflow", map[string]any{"gid": "workflow", "trans_type": "workflow", "query_prepared": p.HTTP("q"), "custom_data": `{"name":"w"}`})
	begin(t, r, p, "tcc", "01")
	for _, gid := range []string{"saga", "msg", "workflow", "tcc"} {
		for _, mode := range []string{"tcc", "xa", "saga", "msg", "workflow"} {
			if mode == gid && (gid == "tcc" || gid == "msg") {
				continue
			}
			if code, body, _ := r.Post("/abort", map[string]string{"gid": gid, "trans_type": mode}); code != 409 {
				t.Errorf("abort of %s as %s answered %d %s", gid, mode, code, body)
			}
			if got := r.Status(gid); got != prepared {
				t.Fatalf("abort of %s as %s left it %s", gid, mode, got)
			}
		}
	}
	if code, body, _ := r.Post("/abort", map[string]string{"gid": "unknown", "trans_type": "tcc"}); code != 500 || !strings.Contains(string(body), "no TransGlobal with gid: unknown found") {
		t.Errorf("abort of an unknown gid answered %d %s", code, body)
	}
}

// D30: DTM's label holds the query string: one series per gid.
func TestMetricLabelsAreRouteNames(t *testing.T) {
	known := map[string]bool{"json-rpc": true, "ping": true, "other": true}
	for _, n := range dtmwire.Routes {
		known[n] = true
		if got := dtmwire.RouteOf(dtmwire.Prefix + "/" + n); got != n {
			t.Errorf("the label of %s is %s", n, got)
		}
	}
	for _, path := range []string{"/", "", "/api/json-rpc", "/api/ping", "/api/dtmsvr/topic/some-gid", "/api/dtmsvr/gid-4711", "/api/dtmsvr/query/x?gid=1", "/api/dtmsvr/", "/api/other"} {
		if got := dtmwire.RouteOf(path); !known[got] {
			t.Errorf("the label of %q is %q", path, got)
		}
	}
}

// Deviation 5: an exact repeat of a registration is 200, another content under the same id 409; neither adds a branch.
func TestRepeatedRegistrationIsAnsweredOnce(t *testing.T) {
	r, p := start(t)
	begin(t, r, p, "g", "01", "01")
	if code, body, _ := r.Post("/registerBranch", map[string]string{"gid": "g", "trans_type": "tcc", "branch_id": "01", "data": "{}", "confirm": p.HTTP("other"), "cancel": p.HTTP("cancel")}); code != 409 || !strings.Contains(string(body), "confirm") {
		t.Errorf("another content answered %d %s", code, body)
	}
	if code, body, _ := r.Post("/registerBranch", map[string]string{"gid": "g", "trans_type": "xa", "branch_id": "02", "url": p.HTTP("x")}); code != 409 {
		t.Errorf("another mode answered %d %s", code, body)
	}
	noErr(t, dtmimp.TransCallDtm(dtmimp.NewTransBase("g", "tcc", r.DTM, ""), "submit"))
	r.Await("g", succeed)
	wantOps(t, p, "g", "01 confirm")
}
