package main

import (
	"encoding/json"
	"fmt"
	"net"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/lockstep-tx/lockstep/region/slot"
)

// silent is an address that takes connections and never answers, as a host does whose packets are dropped on the way back.
func silent(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l.Addr().String()
}

// hush lets all of east be silent, and a third region north, which has a participant, and the target's first coordinator.
func (w *world) hush() {
	w.t.Helper()
	raw, err := os.ReadFile(w.file)
	if err != nil {
		w.t.Fatal(err)
	}
	two := func() string { return fmt.Sprintf(`admin: ["http://%s", "http://%s"]`, silent(w.t), silent(w.t)) }
	text := regexp.MustCompile(`(east: .*)admin: \[[^]]+\]`).ReplaceAllString(string(raw), "${1}"+two())
	text = regexp.MustCompile(`(west: .*)admin: \[`).ReplaceAllString(text, fmt.Sprintf(`${1}admin: ["http://%s", `, silent(w.t)))
	text += fmt.Sprintf("  north: {grpc: [%q], %s, kafka: [%q]}\n", silent(w.t), two(), silent(w.t))
	if err := os.WriteFile(w.file, []byte(text), 0o600); err != nil {
		w.t.Fatal(err)
	}
	w.must("region", "init", "--regions", "east,west,north")
	row, err := w.arbiter.Get(w.t.Context(), "participant", "wallet")
	if err != nil || row.Rev == 0 {
		w.t.Fatal(row, err)
	}
	var part map[string]any
	if err := json.Unmarshal(row.Value, &part); err != nil {
		w.t.Fatal(err)
	}
	part["endpoints"].(map[string]any)["north"] = "http://" + silent(w.t)
	if row.Value, err = json.Marshal(part); err == nil {
		_, err = w.arbiter.Put(w.t.Context(), "participant", row)
	}
	if err != nil {
		w.t.Fatal(err)
	}
}

// hushed is how long a step may take beside regions that say nothing. Asked one after the other they take 5 s per address.
const hushed = 3 * time.Second

// TestAFailoverWaitsForNobodyWhoSaysNothing: it needs the arbiter and the target alone, also where packets are dropped instead of
// refused: at the lost region, at a third one, at a participant there, and at one of the target's own coordinators.
func TestAFailoverWaitsForNobodyWhoSaysNothing(t *testing.T) {
	w := left(t)
	w.hush()
	began := time.Now()
	out := w.must("region", "failover", "--from", "east", "--to", "west", "--at-risk", "block", "--dry-run")
	if took := time.Since(began); took > hushed {
		t.Errorf("the dry run took %v", took)
	}
	for _, want := range []string{"north does not answer: region north said nothing for 1.5s", "west heard it last 4200 ms ago", "order-7: wallet branch 02 tried", "do not answer: wallet in north"} {
		if !strings.Contains(out, want) {
			t.Errorf("%q is not in\n%s", want, out)
		}
	}
	began = time.Now()
	out = w.must("region", "failover", "--from", "east", "--to", "west", "--at-risk", "block", "--fenced-by", "power", "--confirm-region", "east", "--plan", "any")
	if took := time.Since(began); took > 3*hushed || w.owned("east") != 0 {
		t.Errorf("the failover took %v, east has %d slots\n%s", took, w.owned("east"), out)
	}
}

// TestTheFreezeWaitsForNobodyWhoSaysNothing: by then the epochs have changed, and nobody serves the slots.
func TestTheFreezeWaitsForNobodyWhoSaysNothing(t *testing.T) {
	w := left(t)
	w.hush()
	c := &contextFile{Context: w.file, Timeout: 10 * time.Second}
	e := &env{ctx: t.Context(), getenv: noEnv}
	err := c.with(e, func(e *env, o *opened) error {
		began := time.Now()
		seals, err := c.asker(e, o).Freeze(e.ctx, "east", "west", map[int]slot.Epoch{4: 101, 6: 101})
		if took := time.Since(began); took > hushed || len(seals) != 2 {
			t.Errorf("after %v: %v", took, seals)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

// TestACoordinatorThatAnsweredIsAskedFirst: beside a silent one only the first question waits.
func TestACoordinatorThatAnsweredIsAskedFirst(t *testing.T) {
	w := left(t)
	w.hush()
	c := &contextFile{Context: w.file, Timeout: 10 * time.Second}
	err := c.with(&env{ctx: t.Context(), getenv: noEnv}, func(e *env, o *opened) error {
		a := c.asker(e, o)
		var later []time.Duration
		for i := range 6 {
			began := time.Now()
			if err := a.Canary(e.ctx, "west", 4); err != nil {
				return err
			}
			if i > 0 {
				later = append(later, time.Since(began))
			}
		}
		if slices.Min(later) > stagger/2 { // a busy machine makes some of them late, the silent one all
			t.Errorf("the questions after the first took %v", later)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}
