package demo

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// programs builds the programs that the demo starts.
func programs(t *testing.T) (lockstep, participants, chaos string) {
	t.Helper()
	dir := t.TempDir()
	const module = "github.com/lockstep-tx/lockstep/"
	cmd := exec.Command("go", "build", "-o", dir+"/", module+"coordinator/cmd/lockstep", module+"participants/cmd/lockstep-participants", module+"chaos/cmd/lockstep-chaos")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return filepath.Join(dir, "lockstep"), filepath.Join(dir, "lockstep-participants"), filepath.Join(dir, "lockstep-chaos")
}

// lines is an output that several goroutines write to.
type lines struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *lines) Write(b []byte) (int, error) { l.mu.Lock(); defer l.mu.Unlock(); return l.buf.Write(b) }
func (l *lines) String() string              { l.mu.Lock(); defer l.mu.Unlock(); return l.buf.String() }

// The whole demo, shortened; and what it says when the money is not right, or a refusal is none: a demo that cannot fail
// shows nothing.
func TestDemo(t *testing.T) {
	lockstep, participants, chaos := programs(t)
	tmp, timeline := t.TempDir(), filepath.Join(t.TempDir(), "timeline.html")
	t.Setenv("TMPDIR", tmp)
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	out := &lines{}
	cfg := Config{Out: out, Lockstep: lockstep, Participants: participants, Chaos: chaos, Regions: 2, Duration: 15 * time.Second, Rate: 10, Timeline: timeline}
	fresh := func() *demo { out = &lines{}; cfg.Out = out; return newDemo(cfg) }
	leftovers := func() {
		t.Helper()
		if left, err := os.ReadDir(tmp); err != nil || len(left) > 0 {
			t.Errorf("it left %v behind, %v", left, err)
		}
	}

	if err := Run(ctx, cfg); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for _, want := range []string{"The first payment was made", "SIGKILL", "lockstep region handover", "is asked for a payment of", "the link is healed", "D01 in east", "D06 in east", "drift verify looks again and finds nothing", "MONEY BEFORE", "not a cent is off"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("it does not say %q:\n%s", want, out)
		}
	}
	page, err := os.ReadFile(timeline)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{`"kind":"kill"`, `"kind":"handover"`, `"kind":"cut"`, `"kind":"heal"`, `"kind":"planted"`, `"kind":"found"`, `"kind":"repaired"`, "MONEY BEFORE", `"rate":`} {
		if !strings.Contains(string(page), want) {
			t.Errorf("the timeline lacks %s", want)
		}
	}
	if strings.Contains(string(page), "http://") && strings.Count(string(page), "http://") != strings.Count(string(page), "http://www.w3.org/2000/svg") {
		t.Error("the timeline needs another file")
	}
	leftovers()

	d := fresh()
	err = d.play(ctx, d.open, d.payWithDTM, func(ctx context.Context) error { return d.parts.create(ctx, "buyer", "from-nowhere", 1) }, func(ctx context.Context) error {
		d.patience = time.Second
		return d.countShop(ctx)
	}, func(ctx context.Context) error { t.Error("it went on"); return nil })
	if err == nil || !strings.Contains(err.Error(), "THE MONEY IS WRONG") || !strings.Contains(err.Error(), "1 fen are missing or too many") {
		t.Errorf("with a cent too much in the shop it ended with %v:\n%s", err, out)
	}
	leftovers()

	d = fresh()
	err = d.play(ctx, d.open, func(ctx context.Context) error {
		d.patience = time.Second
		if _, err := d.world.chaos.seed(ctx, d.world.regions[1], "--class", "D06", "--account", d.load.accounts[3], "--delta", "1"); err != nil {
			return err
		}
		return d.end(ctx)
	})
	if err == nil || !strings.Contains(err.Error(), "THE MONEY IS WRONG") || !strings.Contains(err.Error(), "west: wallet-03 has ¥10000.01") {
		t.Errorf("with a cent too much in a wallet it ended with %v:\n%s", err, out)
	}
	leftovers()

	d = fresh()
	err = d.play(ctx, d.open, func(context.Context) error { return d.home().coord.kill() }, d.refuse)
	if err == nil || !strings.Contains(err.Error(), "was not refused but failed") {
		t.Errorf("without a coordinator the refusal ended with %v:\n%s", err, out)
	}
	leftovers()
}
