package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/lockstep-tx/lockstep/region/arbiter"
	"github.com/lockstep-tx/lockstep/region/slot"
)

var updateGolden = flag.Bool("update", false, "write the transcripts in testdata anew")

// left is a world in which west lives, and a participant that holds something for a transaction of east's slots.
func left(t *testing.T) *world { return leftOf(t, 1) }

func leftOf(t *testing.T, members int) *world {
	w := newWorldOf(t, members)
	w.must("region", "init")
	part := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/lockstep/probe":
			fmt.Fprint(rw, `{"fenced":true,"batch":true,"apply":true,"movable":true,"tries":true,"settle":true}`)
		case "/lockstep/tries":
			fmt.Fprint(rw, `{"tries":[{"gid":"order-7","branch":"02","trans_type":"tcc","state":"tried","account":"alice","amount":1200,"currency":"CNY","debit":true}]}`)
		case "/lockstep/state":
			fmt.Fprint(rw, "[]")
		case "/lockstep/effects":
			var ask []struct{ Path string }
			if err := json.NewDecoder(r.Body).Decode(&ask); err != nil || len(ask) != 1 {
				t.Errorf("a question for %d effects: %v", len(ask), err)
				return
			}
			fmt.Fprintf(rw, `[{"known":true,"legs":[{"account":"%s","amount":1200,"currency":"CNY","debit":%t}]}]`,
				map[string]string{"/pay/confirm": "alice", "/receive/confirm": "bob"}[ask[0].Path], ask[0].Path == "/pay/confirm")
		}
	}))
	t.Cleanup(part.Close)
	plain := httptest.NewServer(http.NotFoundHandler())
	t.Cleanup(plain.Close)
	w.must("participant", "set", "wallet", "--endpoint", "east="+part.URL, "--endpoint", "west="+part.URL)
	w.must("participant", "set", "points", "--endpoint", "east="+plain.URL, "--endpoint", "west="+plain.URL)
	w.status("west", calm)
	handle := func(pattern, answer string) {
		w.admin["west"].HandleFunc(pattern, func(rw http.ResponseWriter, _ *http.Request) { fmt.Fprint(rw, answer) })
	}
	handle("GET /v1/region/exposure", `{"origin":"east","heard_ms":4200,"open":3,"unpublished":1,"unapplied":2,"slots":[{"slot":4,"applied":7,"head":9}]}`)
	w.admin["west"].HandleFunc("POST /v1/region/reached", w.reached)
	handle("POST /v1/region/canary", `{"took_ms":1}`)
	w.admin["west"].HandleFunc("POST /v1/region/freeze", func(rw http.ResponseWriter, r *http.Request) {
		if w.busy.Load() {
			http.Error(rw, "the store is busy\nnext: rm -rf /", http.StatusServiceUnavailable)
			return
		}
		var in struct {
			Slots []struct {
				Slot  int
				Epoch uint64
			}
		}
		if err := json.NewDecoder(r.Body).Decode(&in); err != nil {
			t.Error(err)
		}
		out := map[string]any{}
		var marks []map[string]any
		for _, s := range in.Slots {
			marks = append(marks, map[string]any{"slot": s.Slot, "epoch": s.Epoch, "seq": 7, "chain": strings.Repeat("ab", 32)})
		}
		out["marks"] = marks
		if err := json.NewEncoder(rw).Encode(out); err != nil {
			t.Error(err)
		}
	})
	return w
}

// masked takes out what differs from run to run.
func (w *world) masked(out string) string {
	out = strings.ReplaceAll(out, w.file, "regions.yaml")
	for _, m := range []struct{ pattern, by string }{
		{`127\.0\.0\.1:\d+`, "HOST:PORT"}, {`[0-9a-f]{8}-[0-9a-f]{4}`, "OPERATION"}, {`plan [0-9a-f]{16}`, "plan HASH"}, {`--plan [0-9a-f]{16}`, "--plan HASH"}, {`this one is [0-9a-f]{16}`, "this one is HASH"},
		{`it is [0-9a-f]{16} by now`, "it is HASH by now"}, {`after \d+ ms`, "after N ms"}, {`in \d+ ms`, "in N ms"}, {`slots moved in \d+ ms`, "slots moved in N ms"},
		{`a majority answers in \d+m?s`, "a majority answers in N ms"}, {`within \d+ ms`, "within N ms"},
		{`since \d{4}-[-0-9T:]+Z`, "since TIME"}, {`by \S+@\S+`, "by USER@HOST"}, {`hash [0-9a-f]{16}`, "hash HASH"},
	} {
		out = regexp.MustCompile(m.pattern).ReplaceAllString(out, m.by)
	}
	return out
}

// TestTheTranscriptOfALostRegion holds every line that an operator reads at 3 a.m. to the letter: refusals and statuses end with
// a command to paste.
func TestTheTranscriptOfALostRegion(t *testing.T) {
	w := left(t)
	tr := &transcript{w: w}
	step := tr.step
	failover := func(more ...string) []string {
		return append([]string{"region", "failover", "--from", "east", "--to", "west"}, more...)
	}
	step("a limit without its amount", failover()...)
	step("to the lost region itself", "region", "failover", "--from", "east", "--to", "east", "--at-risk", "block")
	step("what is exposed, and what would be done", failover("--at-risk", "limit", "--cap", "5000", "--dry-run")...)
	step("without a word of how it is fenced", failover("--at-risk", "block")...)
	step("without the consent", failover("--at-risk", "block", "--fenced-by", "power")...)
	step("consent to another plan", failover("--at-risk", "block", "--fenced-by", "power", "--confirm-region", "east", "--plan", "0123456789abcdef")...)
	step("consent to no plan in particular", failover("--at-risk", "block", "--fenced-by", "power", "--confirm-region", "east")...)
	step("consent to losing another region", failover("--at-risk", "block", "--fenced-by", "power", "--confirm-region", "west", "--plan", "any")...)
	step("two regions, and nobody in a third failure domain", failover("--at-risk", "block", "--may-spend", "--confirm-region", "east", "--plan", "any")...)
	step("the region is watched", "region", "watch", "--from", "east", "--to", "west", "--once")
	if m := w.owned("east"); m != slot.Count/2 {
		t.Fatalf("east has %d slots before anybody consented", m)
	}
	step("done", failover("--at-risk", "block", "--fenced-by", "power", "--confirm-region", "east", "--plan", "any", "--slots", "0-9", "--on-switch", `test "$LOCKSTEP_TO" = west`)...)
	step("the status after it", "region", "status")
	step("again: these slots are taken", failover("--at-risk", "block", "--fenced-by", "power", "--confirm-region", "east", "--plan", "any", "--slots", "0-9")...)
	step("outside traffic does not move", failover("--at-risk", "block", "--fenced-by", "power", "--confirm-region", "east", "--plan", "any", "--slots", "10", "--on-switch", "exit 3")...)
	w.diverge()
	step("the lost region is back, and says otherwise", "region", "divergence")
	step("it gets nothing back by plan before that", "region", "failback", "--from", "west", "--to", "east")
	step("one that is open yet is not settled outside", "region", "divergence", "settle", "order-7", "--text", "settled as payment 12")
	step("one that both have alike is not settled outside either", "region", "divergence", "settle", "order-11", "--text", "settled as payment 12")
	step("one that aborted where nobody else knew of it is none", "region", "divergence", "settle", "order-10", "--text", "settled as payment 12")
	step("one that stands both ways is", "region", "divergence", "settle", "order-8", "--text", "settled as payment 12")
	step("a region that answers is not lost", failover("--at-risk", "block", "--fenced-by", "power", "--confirm-region", "east", "--plan", "any")...)
	tr.hold(t, "region-lost.golden")
}

// transcript is commands with all that they wrote.
type transcript struct {
	w    *world
	text strings.Builder
}

func (tr *transcript) step(why string, args ...string) {
	out, code := tr.w.command(args...)
	fmt.Fprintf(&tr.text, "# %s\n$ lockstep %s\n%s[exit code %d]\n\n", why, strings.Join(args, " "), tr.w.masked(out), code)
}

// hold compares the transcript with a golden file, or writes that.
func (tr *transcript) hold(t *testing.T, name string) {
	t.Helper()
	file := filepath.Join("testdata", name)
	if *updateGolden {
		if err := os.WriteFile(file, []byte(tr.text.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(string(want), tr.text.String()); d != "" {
		t.Errorf("the transcript is not testdata/%s (-file +now); if it should be: go test ./coordinator/cmd/lockstep -run TestTheTranscript -update\n%s", name, d)
	}
}

// taking are the arguments of a forced failover of east with all that is to be said.
func taking(more ...string) []string {
	return append([]string{"region", "failover", "--from", "east", "--to", "west", "--at-risk", "block", "--fenced-by", "power", "--confirm-region", "east", "--plan", "any"}, more...)
}

// TestTheTranscriptOfAWholeRegion: from the watch to the end, with a tool that stops on the way and a second operator.
func TestTheTranscriptOfAWholeRegion(t *testing.T) {
	w := left(t)
	for _, region := range []string{"east", "west"} {
		w.admin[region].HandleFunc("GET /v1/region/epochs", func(rw http.ResponseWriter, _ *http.Request) { fmt.Fprint(rw, `{}`) })
	}
	w.status("west", `{"arbiter_ms": 5, "origins": [{"region": "east", "heard_ms": 11038, "lag_events": 2, "stopped": [{"slot": 4, "applied": 7, "reason": "events 8 to 9 are missing", "missing": true}]}]}`)
	tr := &transcript{w: w}
	tr.step("it is silent, and nobody has said that it was lost", "region", "verify")
	tr.step("the watch finds it dead", "region", "watch", "--from", "east", "--to", "west", "--dead-for", "1ms", "--every", "50ms", "--at-risk", "limit", "--cap", "5", "--on-switch", "dns move")
	w.busy.Store(true)
	tr.step("all of it; the target's store is busy", taking("--who", "ann")...)
	tr.step("another operator, meanwhile", taking("--who", "bob")...)
	tr.step("the status meanwhile", "region", "status")
	tr.step("it cannot be paused", "region", "pause")
	tr.step("what resume would do", "region", "resume", "--dry-run")
	w.busy.Store(false)
	tr.step("somebody goes on with it", "region", "resume", "--who", "bob")
	tr.step("and once more", "region", "resume")
	tr.step("the status after it", "region", "status")
	tr.step("is it served?", "region", "verify")
	tr.step("its disks are gone", "region", "settle", "--from", "east", "--why", "disks shredded")
	tr.step("what that gives up", "region", "settle", "--from", "east", "--why", "disks shredded", "--confirm-region", "east", "--dry-run")
	tr.step("it is given up", "region", "settle", "--from", "east", "--why", "disks shredded", "--confirm-region", "east")
	tr.step("the arbiter was restored from a backup: what would be done", "region", "restored", "--who", "ann", "--dry-run")
	tr.step("it is done", "region", "restored", "--who", "ann")
	tr.hold(t, "region-whole.golden")
}

// TestTheTranscriptOfAnAbortAndADrill: there is no way back from a slot that is taken; a drill takes slots of a region that lives, which
// hands back what it has.
func TestTheTranscriptOfAnAbortAndADrill(t *testing.T) {
	w := left(t)
	tr := &transcript{w: w}
	w.busy.Store(true)
	tr.step("some slots; the target's store is busy", taking("--slots", "0-9")...)
	w.busy.Store(false)
	tr.step("it is aborted", "region", "abort", "--why", "second thoughts")
	w.must("region", "settle", "--from", "east", "--why", "done", "--confirm-region", "east")
	w.must("participant", "rm", "points") // it cannot be moved
	w.lives(t)
	tr.step("east lives: a handover, looked at", "region", "handover", "--from", "west", "--to", "east", "--slots", "0,2", "--pause", "0s", "--why", "it's time", "--dry-run")
	tr.step("a forced drill, looked at", "region", "drill", "--forced", "--from", "east", "--to", "west", "--slots", "10-13", "--dry-run")
	tr.step("a forced drill", "region", "drill", "--forced", "--from", "east", "--to", "west", "--slots", "10-13")
	tr.hold(t, "region-drill.golden")
}

// TestTheTranscriptOfADeadTarget: neither region answers.
func TestTheTranscriptOfADeadTarget(t *testing.T) {
	w := newWorld(t)
	tr := &transcript{w: w}
	w.must("region", "init")
	tr.step("the target is dead too", taking()...)
	tr.step("the status", "region", "status")
	tr.hold(t, "region-target.golden")
}

// lives has both regions' coordinators at work: they close what is drained, and hand back what was taken.
func (w *world) lives(t *testing.T) {
	w.status("east", calm)
	for _, pattern := range []string{"POST /v1/region/canary", "GET /v1/region/divergence"} {
		answer := map[bool]string{true: "[]", false: "{}"}[strings.HasPrefix(pattern, "GET")]
		w.admin["east"].HandleFunc(pattern, func(rw http.ResponseWriter, _ *http.Request) { fmt.Fprint(rw, answer) })
	}
	w.admin["east"].HandleFunc("POST /v1/region/reached", w.reached)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	t.Cleanup(func() { cancel(); <-done })
	go func() {
		defer close(done)
		w.arbiter.Follow(ctx, func(m *slot.Map) {
			for n, o := range m {
				var next slot.Owner
				var err error
				switch {
				case o.Status == slot.Draining:
					next, err = o.Close(slot.SealOf(o.Epoch, 1, []byte{1}))
				case o.Status == slot.Active && o.Lost != 0:
					next, err = o.Settled()
				default:
					continue
				}
				if err == nil {
					err = w.arbiter.Change(ctx, arbiter.Change{Slot: n, From: o, To: next})
				}
				if err != nil && ctx.Err() == nil && !errors.Is(err, arbiter.ErrChanged) {
					t.Errorf("slot %d: %v", n, err)
				}
			}
		}, nil)
	}()
}

// reached answers that a region has everything.
func (w *world) reached(rw http.ResponseWriter, r *http.Request) {
	var in struct{ Seals map[int]any }
	if err := json.NewDecoder(r.Body).Decode(&in); err != nil {
		w.t.Error(err)
	}
	_ = json.NewEncoder(rw).Encode(map[string]any{"reached": slices.Collect(maps.Keys(in.Seals))})
}

// diverge has east be back with a transaction in doubt here, one that was aborted meanwhile, one that was committed as it had said,
// one that it aborted and nobody else knows, and one that is alike but waits for an account.
func (w *world) diverge() {
	branches := ""
	for i, name := range []string{"pay", "receive"} {
		branches += fmt.Sprintf(`,{"id":"0%d","confirm":"lockstep://wallet/%s/confirm","payload":"e30="}`, i+1, name)
	}
	event := func(id int, gid, decided string) string {
		return fmt.Sprintf(`{"id":%d,"origin":"east","slot":%d,"seq":9,"gid":%q,"kind":"decision","decided":%q,"branches":[%s]}`, id, slot.Of(gid), gid, decided, branches[1:])
	}
	w.status("east", strings.Replace(calm, "{", `{"diverged":[{"gid":"order-11","why":"account acct-7 has 3.00 too little"}],`, 1))
	w.admin["east"].HandleFunc("GET /v1/region/divergence", func(rw http.ResponseWriter, _ *http.Request) {
		fmt.Fprintf(rw, "[%s,%s,%s,%s,%s]", event(1, "order-7", "commit"), event(2, "order-8", "commit"), event(3, "order-9", "commit"),
			event(4, "order-10", "abort"), event(5, "order-11", "commit"))
	})
	w.admin["west"].HandleFunc("GET /v1/region/divergence", func(rw http.ResponseWriter, _ *http.Request) { fmt.Fprint(rw, "[]") })
	stands := map[string]string{"order-7": `"status":"in-doubt","phase":"prepared"`, "order-8": `"status":"aborted","phase":"aborted"`, "order-9": `"status":"committed","phase":"committed"`,
		"order-11": `"status":"committed","phase":"committed"`}
	for _, mux := range w.admin {
		mux.HandleFunc("GET /v1/transaction", func(rw http.ResponseWriter, r *http.Request) {
			text, known := stands[r.URL.Query().Get("gid")]
			if !known {
				rw.WriteHeader(http.StatusNotFound)
				return
			}
			fmt.Fprintf(rw, "{%s}", text)
		})
	}
	w.admin["east"].HandleFunc("POST /v1/region/divergence/settle", func(rw http.ResponseWriter, r *http.Request) {
		var in struct {
			ID   int64
			Text string
		}
		if err := json.NewDecoder(r.Body).Decode(&in); err != nil || in.ID != 2 || in.Text != "settled as payment 12" {
			w.t.Errorf("settled: %+v, %v", in, err)
		}
		fmt.Fprint(rw, `{"settled":true}`)
	})
}

// owned counts a region's slots.
func (w *world) owned(region string) (n int) {
	w.t.Helper()
	m, err := w.arbiter.Owners(w.t.Context())
	if err != nil {
		w.t.Fatal(err)
	}
	for _, o := range m {
		if o.Region == region {
			n++
		}
	}
	return n
}

// TestADeadRegionIsOneThatNobodyHears: two vantage points, and the way from here may be what is cut.
func TestADeadRegionIsOneThatNobodyHears(t *testing.T) {
	const limit = time.Minute
	for name, c := range map[string]struct {
		s    sight
		here time.Duration
		dead bool
		why  string
	}{
		"nobody hears it":                  {sight{true, map[string]time.Duration{"west": 2 * limit, "north": limit}}, limit, true, ""},
		"it answers here":                  {sight{false, nil}, 0, false, "it answers here"},
		"not long enough":                  {sight{true, map[string]time.Duration{"west": 2 * limit}}, limit / 2, false, "does not answer here for 30s"},
		"another region hears it":          {sight{true, map[string]time.Duration{"west": 2 * limit, "north": time.Second}}, limit, false, "region north heard it 1s ago"},
		"nobody else answers this process": {sight{true, map[string]time.Duration{"west": -1}}, limit, false, "this process may be the one that is cut off"},
		"one of two does not answer":       {sight{true, map[string]time.Duration{"west": limit, "north": -1}}, limit, true, ""},
	} {
		if dead, why := c.s.dead(c.here, limit); dead != c.dead || !strings.Contains(why, c.why) {
			t.Errorf("%s: %v, %q", name, dead, why)
		}
	}
}

// TestNothingFailsOverByItselfPastAGuard: each guard by itself stands in the way.
func TestNothingFailsOverByItselfPastAGuard(t *testing.T) {
	good := func() guards { return guards{Members: 3, Dead: []string{"east"}, Forced: time.Now().Add(-time.Hour)} }
	g := good()
	if got := g.against(30 * time.Minute); len(got) != 0 {
		t.Fatalf("%v", got)
	}
	for want, spoil := range map[string]func(*guards){
		"no witness": func(g *guards) { g.Members = 2 }, "one at most": func(g *guards) { g.Dead = append(g.Dead, "north") },
		"must pass": func(g *guards) { g.Forced = time.Now().Add(-time.Minute) }, "is on its way": func(g *guards) { g.Running = "handover x is on its way" },
		"chains do not go on": func(g *guards) { g.Stopped = 1 }, "findings of drift": func(g *guards) { g.Drift = 2 }, "not worked off": func(g *guards) { g.Taken = 5 },
	} {
		g := good()
		spoil(&g)
		if got := g.against(30 * time.Minute); len(got) != 1 || !strings.Contains(got[0], want) {
			t.Errorf("%s: %v", want, got)
		}
	}
}

// TestTheWatchFailsOverOnlyWhenItIsToldTo: by default it says what to run; with --auto the guards decide, and a fence that fails
// stops it.
func TestTheWatchFailsOverOnlyWhenItIsToldTo(t *testing.T) {
	w := left(t)
	watch := func(more ...string) (string, int) {
		return w.command(append([]string{"region", "watch", "--from", "east", "--to", "west", "--dead-for", "1s", "--every", "50ms"}, more...)...)
	}
	if out, code := watch(); code != exitOK || !strings.Contains(out, "east is dead") || !strings.Contains(out, "next: lockstep region failover --from east --to west") {
		t.Fatal(code, out)
	}
	if out, code := watch("--auto"); code != exitUsage || !strings.Contains(out, "--fence-cmd:") {
		t.Fatal(code, out)
	}
	// The world's arbiter has one member: no witness.
	if out, code := watch("--auto", "--fence-cmd", "touch "+filepath.Join(t.TempDir(), "fenced")); code != exitFailure || !strings.Contains(out, "no witness") || w.owned("east") != slot.Count/2 {
		t.Fatal(code, out)
	}
	raw, err := os.ReadFile(w.file)
	if err != nil {
		t.Fatal(err)
	}
	addr := regexp.MustCompile(`arbiter: \["([^"]+)"\]`).FindStringSubmatch(string(raw))[1]
	if err := os.WriteFile(w.file, []byte(strings.Replace(string(raw), fmt.Sprintf("[%q]", addr), fmt.Sprintf("[%q, %q, %q]", addr, addr, addr), 1)), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, code := watch("--auto", "--fence-cmd", "true"); code != exitFailure || !strings.Contains(out, "no witness") || w.owned("east") != slot.Count/2 {
		t.Fatal("one member that is listed three times passes for three:", code, out)
	}
	if out, code := w.command("region", "failover", "--from", "east", "--to", "west", "--at-risk", "block", "--may-spend", "--dry-run"); code != exitFailure || !strings.Contains(out, "fewer than three members that vote") {
		t.Fatal("one member that is listed three times passes for three:", code, out)
	}
	w = leftOf(t, 3) // and one address of it in the file
	if out, code := w.command("region", "failover", "--from", "east", "--to", "west", "--at-risk", "block", "--may-spend", "--dry-run"); code != exitOK {
		t.Fatal(code, out)
	}
	if out, code := watch("--auto", "--fence-cmd", "exit 1"); code != exitFailure || !strings.Contains(out, "may still spend") || w.owned("east") != slot.Count/2 {
		t.Fatal(code, out)
	}
	if out, code := watch("--auto", "--fence-cmd", `test "$LOCKSTEP_REGION" = east`); code != exitOK || w.owned("west") != slot.Count {
		t.Fatal(code, out)
	}
	if !strings.Contains(w.audit(), "watch: unheard for 1s") {
		t.Error(w.audit())
	}
}
