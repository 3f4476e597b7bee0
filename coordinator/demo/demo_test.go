package demo

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/lockstep-tx/lockstep/coordinator/bench/build"
)

// programs builds the programs that the demo starts.
func programs(t *testing.T) (lockstep, participants, chaos string) {
	t.Helper()
	dir := t.TempDir()
	const module = "github.com/lockstep-tx/lockstep/"
	cmd := build.ForTest("-ldflags", "-s -w", "-o", dir+"/", module+"coordinator/cmd/lockstep", module+"participants/cmd/lockstep-participants", module+"chaos/cmd/lockstep-chaos")
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
	for _, want := range []string{"The first payment was made", "SIGKILL", "lockstep region handover", "is asked for a payment of", "the link is healed", "D01 in east", "D06 in east", "drift verify looks again and finds nothing", "everything of east is killed", "exposure of east", "plan ", "first success", "returns from its disks", "worked off", "failback", "REGION LOST", "MONEY BEFORE", "not a cent is off"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("it does not say %q:\n%s", want, out)
		}
	}
	page, err := os.ReadFile(timeline)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{`"kind":"kill"`, `"kind":"handover"`, `"kind":"cut"`, `"kind":"heal"`, `"kind":"planted"`, `"kind":"found"`, `"kind":"repaired"`, `"kind":"lost"`, `"kind":"failover"`, `"kind":"first success"`, `"kind":"return"`, `"kind":"settled"`, `"kind":"failback"`, "REGION LOST", "MONEY BEFORE", `"rate":`} {
		if !strings.Contains(string(page), want) {
			t.Errorf("the timeline lacks %s", want)
		}
	}
	if strings.Contains(string(page), "http://") && strings.Count(string(page), "http://") != strings.Count(string(page), "http://www.w3.org/2000/svg") {
		t.Error("the timeline needs another file")
	}
	leftovers()

	cfg.Duration = 0
	d := fresh()
	d.patience = time.Second
	unwell := func(what string, err error, want ...string) {
		t.Helper()
		for _, w := range want {
			if err == nil || !strings.Contains(err.Error(), w) {
				t.Errorf("%s it ended with %v, without %q:\n%s", what, err, w, out)
			}
		}
	}
	if err := d.play(ctx, d.open, d.payWithDTM, func(ctx context.Context) error { return keeps(ctx, d, out) }, func(ctx context.Context) error {
		if err := d.parts.create(ctx, "buyer", "from-nowhere", 1); err != nil {
			return err
		}
		unwell("with a cent too much in the shop", d.countShop(ctx), "THE MONEY IS WRONG", "1 fen are missing or too many")
		d.drift = []*planted{{Class: "D06", Account: "wallet-05", Region: "east", found: true}}
		if _, err := d.world.chaos.seed(ctx, d.world.regions[1], "--class", "D06", "--account", "wallet-03", "--delta", "1"); err != nil {
			return err
		}
		unwell("with a cent too much in a wallet, and drift that nobody repaired", d.end(ctx), "THE MONEY IS WRONG", "west: wallet-03 has ¥10000.01", "drift D06 of wallet-05 was found: true, repaired: false")
		unwell("when something was found that nobody planted", d.matched([]finding{{Class: "D01", Region: "west", Gid: "g"}}), "found and not planted")
		if err := d.home().coord.kill(); err != nil {
			return err
		}
		unwell("without a coordinator", d.refuse(ctx), "was not refused but failed")
		return nil
	}); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
	if strings.Contains(out.String(), "not a cent is off") {
		t.Errorf("with wrong money it says:\n%s", out)
	}
	leftovers()
}

// keeps has the demo keep everything up, breaks what it says one may break, and waits until that is repaired.
func keeps(ctx context.Context, d *demo, out *lines) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	d.cfg.Keep, d.rested = true, time.Now()
	done := make(chan error, 1)
	go func() { done <- d.keep(ctx) }()
	defer func() { d.cfg.Keep = false }()
	pasted := false
	for deadline := time.Now().Add(time.Minute); !strings.Contains(out.String(), "drift verify finds nothing any more"); time.Sleep(100 * time.Millisecond) {
		if time.Now().After(deadline) {
			return errors.New("what was broken was not repaired within a minute")
		}
		if command := paste.FindString(out.String()); command != "" && !pasted {
			pasted = true
			if said, err := output(ctx, "sh", "-c", command); err != nil || said != "1 rows changed\n" {
				return fmt.Errorf("the command to paste, %s: %q, %w", command, said, err)
			}
		}
	}
	cancel()
	return <-done
}

var paste = regexp.MustCompile(`(?m)^  \S*lockstep-chaos poke .*$`)
