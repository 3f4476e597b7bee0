package conformance

import (
	"context"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/dtm-labs/dtm/client/dtmgrpc/dtmgpb"

	rig "github.com/lockstep-tx/lockstep/coordinator/dtmwire/dtmwiretest"
	"github.com/lockstep-tx/lockstep/coordinator/engine"
	"github.com/lockstep-tx/lockstep/coordinator/store/memstore"
)

// Issue 3, point 13: too many branches, and branches too large together, also where they come one by one. A record that
// outgrows the store could never be saved again.
func TestRegisteredBranchesAreBoundedTogether(t *testing.T) {
	r, p := start(t)
	ids := make([]string, 500)
	for i := range ids {
		ids[i] = strconv.Itoa(i)
	}
	begin(t, r, p, "many", ids...)
	reg := func(gid, id, data string) (int, string) {
		code, body, _ := r.Post("/registerBranch", map[string]string{"gid": gid, "trans_type": "tcc", "branch_id": id, "data": data, "confirm": p.HTTP("c"), "cancel": p.HTTP("x")})
		return code, string(body)
	}
	if code, body := reg("many", "one more", "{}"); code != 400 || !strings.Contains(body, "500 branches") {
		t.Errorf("the 501st branch answered %d %s", code, body)
	}
	begin(t, r, p, "large", "01")
	big := strings.Repeat("d", 500<<10)
	if code, body := reg("large", "02", big); code != 200 {
		t.Fatalf("%d %s", code, body)
	}
	if code, body := reg("large", "03", big); code != 400 || !strings.Contains(body, "bytes") {
		t.Errorf("the branch too much answered %d %.200s", code, body)
	}
	for _, gid := range []string{"many", "large"} { // what was taken is finished
		post(t, r, "/submit", end(gid))
		r.Await(gid, succeed)
	}
	post(t, r, "/prepareWorkflow", map[string]any{"gid": "wf", "trans_type": "workflow", "query_prepared": p.HTTP("q"), "custom_data": `{"name":"w"}`})
	for i, want := range []int{200, 400} {
		if code, body, _ := r.Post("/registerBranch", map[string]string{"gid": "wf", "trans_type": "workflow", "branch_id": fmt.Sprint(i), "op": "action", "status": "succeed", "data": big}); code != want {
			t.Errorf("step %d answered %d %.200s", i, code, body)
		}
	}
}

// Issue 3, point 13, and D20: a full queue refuses begins, says when to come again, and finishes what was begun.
func TestOverloadRefusesBeginsAndFinishesWhatWasBegun(t *testing.T) {
	r, p := start(t, rig.Options{Engine: engine.Limits{LiveMax: 2}})
	begin(t, r, p, "a", "01")
	begin(t, r, p, "b", "01")
	saga := map[string]any{"gid": "c", "trans_type": "saga", "steps": []any{map[string]string{"action": p.HTTP("act")}}, "payloads": []string{"{}"}}
	for path, body := range map[string]any{"/prepare": end("c"), "/submit": saga} {
		code, out, h := r.Post(path, body)
		if wait, err := strconv.Atoi(h.Get("Retry-After")); code != http.StatusTooManyRequests || err != nil || wait < 1 || !strings.Contains(string(out), "overloaded, retry after") || strings.Contains(string(out), "FAILURE") {
			t.Errorf("%s answered %d %s with Retry-After %q", path, code, out, h.Get("Retry-After"))
		}
	}
	_, err := r.Client.Prepare(context.Background(), &dtmgpb.DtmRequest{Gid: "c", TransType: "tcc"})
	wantCode(t, err, "ResourceExhausted")
	if a := r.RPC("prepare", end("c")); a.Code != -32029 || a.HasResult {
		t.Errorf("JSON-RPC answered %+v", a)
	}
	// What was begun takes branches, submits and aborts.
	post(t, r, "/registerBranch", map[string]string{"gid": "a", "trans_type": "tcc", "branch_id": "02", "data": "{}", "confirm": p.HTTP("c"), "cancel": p.HTTP("x")})
	post(t, r, "/submit", end("a"))
	post(t, r, "/abort", end("b"))
	r.Await("a", succeed)
	r.Await("b", failed)
	if got := r.Status("c"); got != "" {
		t.Errorf("the refused begin was stored: %s", got)
	}
}

// Messages are shed before the rest: at half of what may wait to be saved.
func TestShedBeginsComeBackWhenThereIsRoom(t *testing.T) {
	r, p := start(t, rig.Options{Engine: engine.Limits{LiveMax: 8}})
	var wg sync.WaitGroup
	var mu sync.Mutex
	codes := map[int]int{}
	for i := range 64 {
		wg.Go(func() {
			gid := fmt.Sprintf("m%d", i)
			for {
				code, _, _ := r.Post("/submit", map[string]any{"gid": gid, "trans_type": "msg", "steps": []any{map[string]string{"action": p.HTTP("act")}}, "payloads": []string{"{}"}, "wait_result": true})
				mu.Lock()
				codes[code]++
				mu.Unlock()
				if code != http.StatusTooManyRequests {
					return
				}
			}
		})
	}
	wg.Wait()
	if codes[200] != 64 {
		t.Errorf("answers by code are %v, want 64 times 200 in the end", codes)
	}
	for i := range 64 {
		gid := fmt.Sprintf("m%d", i)
		if got := r.Status(gid); got != succeed || p.Count(gid, "01", "action") != 1 {
			t.Errorf("%s is %s after %d calls", gid, got, p.Count(gid, "01", "action"))
		}
	}
}

// Issue 3, point 13: a full quota refuses begins with 429, finishes what was begun, and takes begins again below 60 %.
func TestAFullQuotaRefusesBeginsAndFinishesWhatWasBegun(t *testing.T) {
	store := memstore.New()
	r, p := start(t, rig.Options{Store: store})
	begin(t, r, p, "begun", "01")
	store.Fill(engine.Usage{UsedBytes: 61 << 20, QuotaBytes: 100 << 20})
	n := 0
	try := func() (int, []byte, http.Header) {
		n++
		return r.Post("/prepare", end(fmt.Sprint("try", n)))
	}
	eventually(t, "begins are refused", func() bool { code, _, _ := try(); return code != 200 })
	code, out, h := try()
	if wait, err := strconv.Atoi(h.Get("Retry-After")); code != http.StatusTooManyRequests || err != nil || wait < 1 || !strings.Contains(string(out), "overloaded, retry after") || !strings.Contains(string(out), "full") {
		t.Errorf("answered %d %s with Retry-After %q", code, out, h.Get("Retry-After"))
	}
	post(t, r, "/registerBranch", map[string]string{"gid": "begun", "trans_type": "tcc", "branch_id": "02", "data": "{}", "confirm": p.HTTP("c"), "cancel": p.HTTP("x")})
	post(t, r, "/submit", end("begun"))
	r.Await("begun", succeed)
	store.Fill(engine.Usage{UsedBytes: 59 << 20, QuotaBytes: 100 << 20})
	eventually(t, "begins are taken again", func() bool { code, _, _ := try(); return code == 200 })
}
