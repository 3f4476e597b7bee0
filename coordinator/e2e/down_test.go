package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os/exec"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

func (c *coordinator) cli(args ...string) string {
	c.t.Helper()
	var out bytes.Buffer
	cmd := exec.Command(program, append(args, "--admin-addr", c.addr.Admin)...)
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Run(); err != nil {
		c.t.Fatalf("lockstep %v: %v\n%s", args, err, out.String())
	}
	return out.String()
}

func (c *coordinator) advance(by time.Duration) []string {
	c.t.Helper()
	resp, err := http.Post(fmt.Sprintf("http://%s/debug/clock/advance?by=%s", c.addr.Admin, by), "", nil)
	if err != nil {
		c.t.Fatal(err)
	}
	defer resp.Body.Close()
	var got struct{ Gids []string }
	if err := json.Unmarshal([]byte(readAll(c.t, resp)), &got); err != nil || resp.StatusCode != http.StatusOK {
		c.t.Fatalf("advance: %s, %v", resp.Status, err)
	}
	return got.Gids
}

// TestAParticipantThatIsDownForAnHour: the transaction is retried with pauses that stay bounded, shows up as stuck, in
// the list, the metric and at the webhook, and ends soon after the participant is back (G8).
func TestAParticipantThatIsDownForAnHour(t *testing.T) {
	var alerts, calls atomic.Int32
	hook := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		var a struct {
			Gid        string `json:"gid"`
			Branch     string `json:"branch"`
			RetryCount int    `json:"retry_count"`
		}
		if json.NewDecoder(r.Body).Decode(&a) == nil && a.Gid == "hour" && a.RetryCount >= 3 && a.Branch != "" {
			alerts.Add(1)
		}
	}))
	defer hook.Close()
	bank := newBank(t)
	var down atomic.Bool
	down.Store(true)
	front := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if calls.Add(1); down.Load() {
			w.WriteHeader(http.StatusInternalServerError)
			return
		}
		bank.ServeHTTP(w, r)
	}))
	defer front.Close()
	c := embedded(t, "--debug-clock", "--alert-webhook", hook.URL, "--breaker-pause", "1ms", "--breaker-fails", "1000000")
	post(t, c, "prepare", map[string]any{"gid": "hour", "trans_type": "tcc"})
	if code, text := post(t, c, "registerBranch", map[string]string{"gid": "hour", "trans_type": "tcc", "branch_id": "a", "data": "{}", "confirm": front.URL + "/confirm", "cancel": front.URL + "/cancel"}); code != 200 {
		t.Fatal(text)
	}
	if code, text := post(t, c, "submit", map[string]any{"gid": "hour", "trans_type": "tcc"}); code != 200 {
		t.Fatal(text)
	}
	for range 72 { // six minutes in steps of five seconds, then the rest of the hour in steps of two minutes
		c.advance(5 * time.Second)
	}
	early := calls.Load()
	for range 27 {
		if gids := c.advance(2 * time.Minute); len(gids) != 1 || gids[0] != "hour" {
			t.Fatalf("within two minutes nothing was retried: %v", gids)
		}
	}
	if n := calls.Load(); early < 8 || early > 20 || n != early+27 {
		t.Errorf("%d calls in six minutes, %d in the hour: the pauses are not 0.5, 1, 2, … 60 s", early, n)
	}
	if alerts.Load() == 0 {
		t.Error("the webhook was not called")
	}
	if out := c.cli("tx", "list", "--stuck"); !strings.Contains(out, "hour") || !strings.Contains(out, "next: lockstep tx show --admin-addr "+c.addr.Admin+" hour") {
		t.Errorf("tx list --stuck:\n%s", out)
	}
	eventually(t, 5*time.Second, "the metric shows it", func() bool { return c.metric("lockstep_transactions_stuck") == 1 })
	down.Store(false)
	c.cli("tx", "retry", "hour")
	eventually(t, 10*time.Second, "it ends", func() bool { return dtmStatus(t, c, "hour") == "succeed" })
	if e := bank.get("hour", "a"); e.confirmed != 1 {
		t.Errorf("%+v", e)
	}
}

// TestAForgottenAttemptIsMarkedAsMissing: a call that was under way when the coordinator was killed is shown as missing,
// and nothing is invented in its place.
func TestAForgottenAttemptIsMarkedAsMissing(t *testing.T) {
	bank := newBank(t)
	c := embedded(t)
	var once atomic.Bool
	killed := make(chan struct{})
	bank.hooks(func(_, branch, op string) {
		if branch == "a" && op == "confirm" && once.CompareAndSwap(false, true) {
			c.kill()
			close(killed)
		}
	}, nil)
	post(t, c, "prepare", map[string]any{"gid": "forgot", "trans_type": "tcc"})
	post(t, c, "registerBranch", map[string]string{"gid": "forgot", "trans_type": "tcc", "branch_id": "a", "data": "{}", "confirm": bank.base + "/confirm", "cancel": bank.base + "/cancel"})
	post(t, c, "submit", map[string]any{"gid": "forgot", "trans_type": "tcc"})
	<-killed
	c.restart()
	eventually(t, 20*time.Second, "it ends", func() bool { return dtmStatus(t, c, "forgot") == "succeed" })
	out := c.cli("tx", "show", "forgot")
	for _, want := range []string{"missing", "taken over", "finished"} {
		if !strings.Contains(out, want) {
			t.Errorf("tx show does not say %q:\n%s", want, out)
		}
	}
	// Once the journal has it, the story is the same.
	eventually(t, 10*time.Second, "the journal has it", func() bool { return c.metric("lockstep_transactions_live") == 0 })
	if again := c.cli("tx", "show", "forgot"); again != out {
		t.Errorf("out of the journal it reads otherwise:\n%s\nbefore:\n%s", again, out)
	}
}
