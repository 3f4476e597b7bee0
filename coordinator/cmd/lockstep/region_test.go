package main

import (
	"bytes"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/lockstep-tx/lockstep/region/arbiter"
	"github.com/lockstep-tx/lockstep/region/arbiter/arbitertest"
	"github.com/lockstep-tx/lockstep/region/failover"
	"github.com/lockstep-tx/lockstep/region/failover/conduct"
	"github.com/lockstep-tx/lockstep/region/reconcile"
	"github.com/lockstep-tx/lockstep/region/slot"
)

// world is an arbiter with the regions east and west, whose coordinators are handlers of the test.
type world struct {
	t       *testing.T
	arbiter *arbiter.Arbiter
	file    string
	admin   map[string]*http.ServeMux
	mu      sync.Mutex
	says    map[string]string // statuses, by region
	busy    atomic.Bool       // west does not freeze its journal
}

func newWorld(t *testing.T) *world {
	t.Helper()
	return newWorldOf(t, 1)
}

// newWorldOf has an arbiter of so many members.
func newWorldOf(t *testing.T, members int) *world {
	t.Helper()
	a, addrs := arbitertest.Cluster(t, members)
	w := &world{t: t, arbiter: a, file: filepath.Join(t.TempDir(), "regions.yaml"), admin: map[string]*http.ServeMux{}, says: map[string]string{}}
	text := fmt.Sprintf("arbiter: [%q]\nregions:\n", addrs[0])
	for _, region := range []string{"east", "west"} {
		w.admin[region] = http.NewServeMux()
		srv := httptest.NewServer(w.admin[region])
		t.Cleanup(srv.Close)
		text += fmt.Sprintf("  %s: {grpc: [%q], admin: [%q], kafka: [%q]}\n", region, arbitertest.FreeAddr(t), srv.URL, arbitertest.FreeAddr(t))
	}
	if err := os.WriteFile(w.file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return w
}

// command runs lockstep, and gives all that it wrote.
func (w *world) command(args ...string) (string, int) {
	w.t.Helper()
	var out bytes.Buffer
	code := run(w.t.Context(), append(args, "--context", w.file), &out, &out, noEnv)
	return out.String(), code
}

// must runs lockstep, which must succeed.
func (w *world) must(args ...string) string {
	w.t.Helper()
	out, code := w.command(args...)
	if code != exitOK {
		w.t.Fatalf("%v: %d\n%s", args, code, out)
	}
	return out
}

// give moves slots as a handover does.
func (w *world) give(to string, index int, slots ...int) {
	w.t.Helper()
	owners, err := w.arbiter.Owners(w.t.Context())
	if err != nil {
		w.t.Fatal(err)
	}
	for _, n := range slots {
		for _, step := range []func(slot.Owner) (slot.Owner, error){
			func(o slot.Owner) (slot.Owner, error) { return o.Drain(to, "op", time.Now().Add(time.Minute)) },
			func(o slot.Owner) (slot.Owner, error) { return o.Close(slot.SealOf(o.Epoch, 1, []byte{1})) },
			func(o slot.Owner) (slot.Owner, error) { return o.Give(index) },
		} {
			next, err := step(owners[n])
			if err == nil {
				err = w.arbiter.Change(w.t.Context(), arbiter.Change{Slot: n, From: owners[n], To: next})
			}
			if err != nil {
				w.t.Fatal(err)
			}
			owners[n] = next
		}
	}
}

// status lets a region answer with a status; once more: with another one.
func (w *world) status(region, text string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	_, has := w.says[region]
	w.says[region] = text
	if has {
		return
	}
	w.admin[region].HandleFunc("GET /v1/region/status", func(rw http.ResponseWriter, _ *http.Request) {
		w.mu.Lock()
		defer w.mu.Unlock()
		fmt.Fprint(rw, w.says[region])
	})
}

// TestFailbackMovesWhatTheTargetHadFirst: even slots are east's, odd ones west's; 0, 2 and 8 went west, and 2 came back.
func TestFailbackMovesWhatTheTargetHadFirst(t *testing.T) {
	w := newWorld(t)
	w.must("region", "init")
	w.give("west", 2, 0, 2, 8)
	w.give("east", 1, 2)
	w.give("east", 1, 3)
	out, _ := w.command("region", "failback", "--from", "west", "--to", "east", "--dry-run")
	if !strings.Contains(out, "failback of 2 slots from west to east") {
		t.Error(out)
	}
	out, code := w.command("region", "failback", "--from", "west", "--to", "east", "--slots", "0-7", "--dry-run")
	if code != exitUsage || !strings.Contains(out, "--slots: 1,5,7 were not east's first") || !strings.Contains(out, "next: lockstep region handover --from west --to east --slots 1,5,7 ") {
		t.Error(code, out)
	}
	if out, _ := w.command("region", "failback", "--from", "west", "--to", "east", "--slots", "0,8", "--dry-run"); !strings.Contains(out, "failback of 2 slots") {
		t.Error(out)
	}
	w.give("east", 1, 0, 8)
	if out, code := w.command("region", "failback", "--from", "west", "--to", "east", "--dry-run"); code != exitUsage || !strings.Contains(out, "none of those that west has were east's first") {
		t.Error(code, out)
	}
	if got := slotList([]int{0, 1, 2, 5, 7, 8}); got != "0-2,5,7-8" {
		t.Error(got)
	}
}

func (w *world) conductor() *conduct.Conductor {
	return &conduct.Conductor{Arbiter: w.arbiter, Who: "test"}
}

// audit is the audit's lines, "who act text" each.
func (w *world) audit() string {
	w.t.Helper()
	lines, err := w.conductor().History(w.t.Context())
	if err != nil {
		w.t.Fatal(err)
	}
	out := ""
	for _, l := range lines {
		out += l.Who + " " + l.Act + " " + l.Text + "\n"
	}
	return out
}

const calm = `{"arbiter_ms": 5, "origins": []}`

func TestAStoppedSlotIsLetGoOnFromTheCommandLine(t *testing.T) {
	w := newWorld(t)
	w.must("region", "init")
	w.status("east", calm)
	w.status("west", `{"arbiter_ms": 5, "origins": [{"region": "east", "stopped": [
		{"slot": 6, "applied": 3, "reason": "events 4 to 4 are missing in Kafka", "missing": true}, {"slot": 8, "applied": 41, "reason": "no event"}]}]}`)
	asked := ""
	w.admin["west"].HandleFunc("POST /v1/region/unstop", func(rw http.ResponseWriter, r *http.Request) {
		asked += r.URL.RawQuery + " after " + fmt.Sprint(strings.Count(w.audit(), "unstop")) + " lines;"
		fmt.Fprint(rw, `{"was_stopped": true}`)
	})
	if out := w.must("region", "status"); !strings.Contains(out, "next: lockstep region unstop --region west --origin east --slot 8 --why REASON --context "+w.file) || !strings.Contains(out, "slot-stopped.md") {
		t.Error(out)
	}
	unstop := []string{"region", "unstop", "--region", "west", "--origin", "east", "--why", "T-1", "--who", "ann", "--slot"}
	if out := w.must(append(unstop, "8", "--dry-run")...); asked != "" || !strings.Contains(out, "after event 41: no event; nothing was written") {
		t.Error(asked, out)
	}
	if out := w.must(append(unstop, "8")...); asked != "origin=east&slot=8 after 1 lines;" || !strings.Contains(out, "goes on in west from event 42") {
		t.Error(asked, out)
	}
	if got := w.audit(); !strings.Contains(got, "ann unstop T-1: slot 8 of east in west, stopped after event 41: no event") {
		t.Error(got)
	}
	for n, want := range map[string]string{"6": "goes on by itself when what is missing can be had", "9": "slot 9 of east is not stopped in west"} {
		if out, code := w.command(append(unstop, n)...); code != exitFailure || !strings.Contains(out, want) {
			t.Error(code, out)
		}
	}
	if out, code := w.command("region", "unstop", "--region", "west", "--origin", "north", "--slot", "8", "--why", "x"); code != exitUsage || !strings.Contains(out, "--origin:") {
		t.Error(code, out)
	}
}

// TestAPausedOperationIsSeen: it has no slots on their way, and holds the lock.
func TestAPausedOperationIsSeen(t *testing.T) {
	w := newWorld(t)
	w.must("region", "init")
	w.status("east", calm)
	w.status("west", calm)
	if out := w.must("region", "preflight", "--from", "east", "--to", "west"); !strings.Contains(out, "ok   operation: no other one is under way") {
		t.Error(out)
	}
	p := failover.Plan{ID: "held", Kind: failover.Handover, From: "east", To: "west", Slots: []int{0}, Batch: 1, DeadlineMillis: 5000, Who: "test"}
	at := time.Now()
	if err := w.conductor().Start(t.Context(), p, at); err != nil {
		t.Fatal(err)
	}
	held := "handover held by test since " + at.UTC().Format(time.RFC3339)
	w.refused(p, conduct.ErrBusy.Error()+": "+held+", of 1 slots from east to west")
	for _, text := range []string{held + " is on its way, or its tool was killed", held + " is paused"} {
		if out := w.must("region", "status"); !strings.Contains(out, "next: lockstep region resume --context "+w.file+"  # "+text) {
			t.Error(out)
		}
		if out, code := w.command("region", "preflight", "--from", "east", "--to", "west"); code != exitFailure || !strings.Contains(out, "FAIL operation: "+text+"; resume or abort it") {
			t.Error(code, out)
		}
		w.must("region", "pause")
	}
	if out, _ := w.command("region", "abort"); !strings.Contains(out, "handover held: aborted") {
		t.Error(out)
	}
	if out := w.must("region", "status"); strings.Contains(out, "next:") {
		t.Error(out)
	}
}

// refused starts another operation, past every look at what is under way: another operator was faster.
func (w *world) refused(p failover.Plan, says string) {
	w.t.Helper()
	p.ID = "late"
	m := &moveFlags{contextFile: contextFile{Context: w.file, Timeout: 10 * time.Second}}
	err := m.with(&env{ctx: w.t.Context(), getenv: noEnv}, func(e *env, o *opened) error { return m.start(e.ctx, m.conductor(e, o), p) })
	if !errors.Is(err, conduct.ErrBusy) || err.Error() != says {
		w.t.Errorf("%v, want %s", err, says)
	}
}

// TestPausingWhatHasEndedSaysSo: its tool was killed before it let the lock go, which the command makes good.
func TestPausingWhatHasEndedSaysSo(t *testing.T) {
	w := newWorld(t)
	w.must("region", "init")
	p := failover.Plan{ID: "held", Kind: failover.Handover, From: "east", To: "west", Slots: []int{0}, Batch: 1, DeadlineMillis: 5000, Who: "test"}
	if err := w.conductor().Start(t.Context(), p, time.Now()); err != nil {
		t.Fatal(err)
	}
	row, err := w.arbiter.Get(t.Context(), "op", "run/held")
	if err != nil {
		t.Fatal(err)
	}
	row.Value = bytes.Replace(row.Value, []byte(`"running"`), []byte(`"done"`), 1)
	if _, err := w.arbiter.Put(t.Context(), "op", row); err != nil {
		t.Fatal(err)
	}
	if out, code := w.command("region", "pause"); code != exitFailure || !strings.Contains(out, "operation held was done before it could be paused") || strings.Contains(out, "stops at its next batch") {
		t.Error(code, out)
	}
	if out, code := w.command("region", "pause"); code != exitFailure || !strings.Contains(out, "no operation is under way") {
		t.Error(code, out)
	}
}

// TestActsAreInTheAuditBeforeTheyAreDone: a tool that is killed in between has left a line.
func TestActsAreInTheAuditBeforeTheyAreDone(t *testing.T) {
	w := newWorld(t)
	w.must("region", "init", "--who", "ann")
	part := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, _ *http.Request) { fmt.Fprint(rw, "{}") }))
	defer part.Close()
	w.must("participant", "set", "bank", "--endpoint", "east="+part.URL, "--endpoint", "west="+part.URL, "--who", "bob")
	w.must("participant", "probe", "bank", "--who", "cyd")
	w.must("participant", "rm", "bank", "--who", "dan")
	got := w.audit()
	for _, want := range []string{"ann init regions east, west\n", "bob participant set bank: map[east:" + part.URL, "cyd participant set bank: ", "dan participant rm bank\n"} {
		if !strings.Contains(got, want) {
			t.Errorf("%q is not in\n%s", want, got)
		}
	}
	if out, code := w.command("region", "init", "--regions", "west", "--who", "eve"); code == exitOK || !strings.Contains(w.audit(), "eve init regions west: not done: ") {
		t.Error(code, out, w.audit())
	}
}

func TestARepairIsInTheAuditBeforeItIsDone(t *testing.T) {
	w := newWorld(t)
	w.must("region", "init")
	during := ""
	w.admin["east"].HandleFunc("POST /v1/drift/restore", func(rw http.ResponseWriter, _ *http.Request) {
		during = w.audit()
		fmt.Fprint(rw, `{"restored":true}`)
	})
	found := []reconcile.Finding{{ID: "f1", Class: reconcile.EventMissing, Status: reconcile.Open, Region: "east", Gid: "g", Repair: "fetch it", Evidence: []byte("{}")}}
	if _, err := reconcile.Save(t.Context(), w.arbiter, found, time.Now()); err != nil {
		t.Fatal(err)
	}
	w.must("drift", "apply", "--who", "ann")
	if !strings.Contains(during, "ann drift apply "+string(reconcile.EventMissing)) || strings.Contains(during, "drift applied") {
		t.Errorf("while it was repaired the audit had\n%s", during)
	}
	if after := w.audit(); !strings.Contains(after, "ann drift applied "+string(reconcile.EventMissing)) || !strings.Contains(after, ": done\n") {
		t.Error(after)
	}
}
