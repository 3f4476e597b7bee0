package main

import (
	"context"
	"os/exec"
	"runtime"
	"testing"
	"time"

	"github.com/lockstep-tx/lockstep/coordinator/bench/bed"
	"github.com/lockstep-tx/lockstep/coordinator/bench/build"
)

// TestARegionIsKilledAndMeasured is one whole run, short: every figure comes from what happened.
func TestARegionIsKilledAndMeasured(t *testing.T) {
	if _, err := exec.LookPath("taskset"); runtime.GOOS != "linux" {
		t.Skip("programs are held to cores by taskset, which only Linux has")
	} else if err != nil {
		t.Fatal("taskset (Debian: util-linux) is needed:", err)
	}
	bin := t.TempDir()
	const module = "github.com/lockstep-tx/lockstep/"
	cmd := build.ForTest("-ldflags", "-s -w", "-o", bin+"/", module+"coordinator/cmd/lockstep", module+"participants/cmd/lockstep-participants", module+"chaos/cmd/lockstep-chaos")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	o, err := run(ctx, options{rtt: 4 * time.Millisecond, rate: 20, global: 50, warm: time.Second, unheard: 3 * time.Second, dir: t.TempDir(), bin: bin})
	if err != nil {
		t.Fatal(err)
	}
	t.Log(o)
	if o.detect <= 0 || o.decide <= 0 || o.given <= 0 || o.served < o.given || o.first <= 0 || o.every < o.first {
		t.Errorf("the times contradict each other: %s", o)
	}
	if g := o.rpo[true]; g.told == 0 || g.lost != 0 {
		t.Errorf("of %d global payments %d are lost", g.told, g.lost)
	}
}

// TestMissedTargetsAreCounted: a bench that cannot fall short shows nothing.
func TestMissedTargetsAreCounted(t *testing.T) {
	good := func() *outcome {
		return &outcome{first: time.Second, rpo: map[bool]recovered{false: {told: 9, lost: 2, age: time.Second}, true: {told: 5}}}
	}
	late, lost, none := good(), good(), good()
	late.first = firstSuccess + time.Millisecond
	lost.rpo[true] = recovered{told: 5, lost: 1}
	none.rpo[true] = recovered{}
	for what, c := range map[string]struct {
		runs []*outcome
		want int
	}{
		"all is well": {[]*outcome{good(), good()}, 0}, "one run is late": {[]*outcome{good(), late, good()}, 1},
		"one global payment is lost": {[]*outcome{lost, good()}, 1}, "nothing was asked": {[]*outcome{none}, 1},
	} {
		if got := report(c.runs); got != c.want {
			t.Errorf("%s: %d targets are missed, not %d", what, got, c.want)
		}
	}
}

// TestWithoutAStatusNothingIsMissed: nobody may be failed over because the one who asks is cut off.
func TestWithoutAStatusNothingIsMissed(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	if err := missed(ctx, &bed.Region{Admin: "127.0.0.1:1"}, time.Second); err == nil {
		t.Error("a status that nobody answers says that a region is missed")
	}
}
