package drift

import (
	"context"
	"errors"
	"math/rand/v2"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"github.com/lockstep-tx/lockstep/chaos/seed"
	"github.com/lockstep-tx/lockstep/region/arbiter"
	"github.com/lockstep-tx/lockstep/region/arbiter/arbitertest"
	"github.com/lockstep-tx/lockstep/region/reconcile"
	"github.com/lockstep-tx/lockstep/region/registry"
	"github.com/lockstep-tx/lockstep/region/slot"
)

// TestARepairOfAnOlderEpochIsRefused: what the reconciler knew before the slots moved repairs nothing.
func TestARepairOfAnOlderEpochIsRefused(t *testing.T) {
	a, _ := arbitertest.Start(t)
	for _, class := range []seed.Class{seed.D02, seed.D03, seed.D06, seed.D07, seed.D11, seed.D12} {
		w := newWorld(t, "sqlite", a)
		at := w.committed[3]
		if class == seed.D02 {
			at = w.aborted[3]
		}
		w.plant(class, at, rand.New(rand.NewPCG(1, 1)))
		found := reconcile.Plan(w.look())
		if len(found) == 0 {
			t.Fatalf("%s: nothing to repair", class)
		}
		spoiled := w.whole()
		for n := range w.rec.Owners {
			w.rec.Owners[n].Epoch = epoch - 100
		}
		for i := range found {
			if err := w.rec.Apply(t.Context(), a, &found[i], w.now()); err == nil || !strings.Contains(err.Error(), "412") || w.whole() != spoiled {
				t.Errorf("%s: a repair at an older epoch: %v", class, err)
			}
		}
	}
}

// TestARowIsThereAgainBeforeARetry (D11): after the repair a repeated confirm is a repeat, and runs nothing.
func TestARowIsThereAgainBeforeARetry(t *testing.T) {
	a, _ := arbitertest.Start(t)
	w := newWorld(t, "sqlite", a)
	at := w.committed[0]
	before := w.whole()
	w.plant(seed.D11, at, rand.New(rand.NewPCG(1, 1)))
	// Beside one whose confirm is to be sent again: the row comes first.
	w.plant(seed.D01, w.committed[2], rand.New(rand.NewPCG(1, 1)))
	plan := reconcile.Plan(w.look())
	if len(plan) != 2 || plan[0].Class != reconcile.RowMissing {
		t.Fatalf("%s", text(plan))
	}
	w.apply(plan)
	w.call("wallet/pay", "confirm", at.Gid, at.Branch, at.Account, 100)
	if w.whole() != before {
		t.Error("a retry after the repair did something")
	}
}

// TestAPersonDecidesWhatNobodyCanProve: a phantom hold is accepted, and stays so in the next look; another is cancelled, with
// and without a barrier row; what is no option is refused.
func TestAPersonDecidesWhatNobodyCanProve(t *testing.T) {
	a, _ := arbitertest.Start(t)
	w := newWorld(t, "sqlite", a)
	rnd := rand.New(rand.NewPCG(7, 7))
	for i := range 6 {
		before := w.whole()
		w.plant(seed.D10, w.committed[i], rnd)
		found := w.look()
		f := &found[0]
		d := reconcile.Decision{What: "reverse", Reason: "asked the shop", Who: "ann", At: begin}
		if err := w.rec.Decide(t.Context(), a, f, d); err == nil {
			t.Fatal("an invented decision was done")
		}
		d.What = reconcile.Cancel
		if err := w.rec.Decide(t.Context(), a, f, d); err != nil || f.Status != reconcile.Repaired || f.Decision.Who != "ann" {
			t.Fatalf("%s, %v", text(f), err)
		}
		if again := w.look(); len(again) != 0 || w.whole() != before {
			t.Fatalf("after it was cancelled: %s", text(again))
		}
		w.sound()
	}
	w.plant(seed.D10, w.committed[0], rnd)
	found := w.look()
	if err := w.rec.Decide(t.Context(), a, &found[0], reconcile.Decision{What: reconcile.Accept, Reason: "known", Who: "bob"}); err != nil {
		t.Fatal(err)
	}
	if again := w.look(); len(again) != 1 || again[0].Status != reconcile.Accepted || again[0].Decision == nil || again[0].Decision.Reason != "known" {
		t.Fatalf("what was accepted: %s", text(again))
	}
}

// TestWhatNobodyKnowsAnyMoreIsFoundWhereItWasPosted: a region was lost with all its disks, and what it had committed and told
// another region's wallets stands there without a record. No total tells, and nobody may undo it by a guess.
func TestWhatNobodyKnowsAnyMoreIsFoundWhereItWasPosted(t *testing.T) {
	for kind := range databases {
		t.Run(kind, func(t *testing.T) {
			a, _ := arbitertest.Start(t)
			w := newWorld(t, kind, a)
			if found := w.look(); len(found) != 0 {
				t.Fatalf("before: %s", text(found))
			}
			gid := w.gid()
			w.call("wallet/pay", "try", gid, "01", "ann", 700)
			w.call("wallet/pay", "confirm", gid, "01", "ann", 700)
			found := w.look()
			if len(found) != 1 || found[0].Class != reconcile.TxMissing || found[0].Status != reconcile.Quarantined || found[0].Gid != gid || found[0].Account != "ann" ||
				found[0].Participant != "wallets" || found[0].Repair != "" {
				t.Fatalf("%s", text(found))
			}
			if options := found[0].Options(); !slices.Equal(options, []string{reconcile.Accept}) {
				t.Errorf("a person may %v", options)
			}
			w.live[gid] = true // it is under way somewhere: its record comes later
			rep, err := w.rec.Detect(t.Context(), begin-1000, begin+1_000_000)
			if err != nil || len(rep.Findings) != 0 {
				t.Errorf("while it is under way: %s, %v", text(rep.Findings), err)
			}
			w.live[gid], w.served.Keeps = false, time.Hour // its row may be one that was trimmed
			rep, err = w.rec.Detect(t.Context(), begin-1000, begin+1_000_000)
			if err != nil || len(rep.Findings) != 0 || len(rep.Skipped) != 1 || !strings.Contains(rep.Skipped[0], "--keep-outcomes") {
				t.Errorf("further back than outcomes are kept: %s, skipped %v, %v", text(rep.Findings), rep.Skipped, err)
			}
		})
	}
}

// noted is one region without anything in it, that notes which windows it was asked for.
type noted struct{ asked func(path string) }

func (n noted) Get(_ context.Context, _, path string) ([]byte, error) {
	n.asked(path)
	switch {
	case strings.HasPrefix(path, "/v1/drift/sums"):
		return make([]byte, slot.Count*20), nil
	case strings.HasPrefix(path, "/v1/drift/heads"):
		return nil, nil
	}
	return []byte("{}"), nil
}

func (noted) Post(context.Context, string, string, []byte) ([]byte, error) { return []byte("{}"), nil }

func watching(a *arbiter.Arbiter, share float64, asked func(string)) *reconcile.Watch {
	rec := &reconcile.Reconciler{Ask: noted{asked}, Regions: []string{"east"}, Table: registry.NewTable(nil), Owners: &slot.Map{}}
	return &reconcile.Watch{Rec: rec, Arbiter: a, Share: share, Window: time.Minute, From: begin}
}

// TestWatchChild is the process that is killed in the next test.
func TestWatchChild(t *testing.T) {
	addr := os.Getenv("DRIFT_WATCH_ARBITER")
	if addr == "" {
		t.Skip("it is run by TestAWatchThatIsKilledGoesOnWhereItWas")
	}
	cli, err := clientv3.New(clientv3.Config{Endpoints: []string{addr}, Logger: zap.NewNop()})
	if err != nil {
		t.Fatal(err)
	}
	defer cli.Close()
	if err := watching(arbiter.New(cli, nil), 0.5, func(string) {}).Run(t.Context(), 0); err != nil {
		t.Fatal(err)
	}
}

func TestAWatchThatIsKilledGoesOnWhereItWas(t *testing.T) {
	a, addr := arbitertest.Start(t)
	last := reconcile.Checkpoint{}
	for range 3 {
		cmd := exec.Command(os.Args[0], "-test.run=^TestWatchChild$")
		cmd.Env = append(os.Environ(), "DRIFT_WATCH_ARBITER="+addr)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(5 * time.Millisecond) {
			at, err := reconcile.LoadCheckpoint(t.Context(), a)
			if err != nil || time.Now().After(deadline) {
				t.Fatalf("%+v, %v", at, err)
			}
			if at.Looks > last.Looks+2 {
				break
			}
		}
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		_ = cmd.Wait() // it was killed
		at, err := reconcile.LoadCheckpoint(t.Context(), a)
		// Every look is one window, and none is left out or looked at twice.
		if err != nil || at.To != begin+int64(at.Looks)*60_000 || at.Looks <= last.Looks {
			t.Fatalf("%+v after %+v, %v", at, last, err)
		}
		last = at
	}
}

// TestAWatchUsesItsShare: with a tenth it rests nine times as long as it looked.
func TestAWatchUsesItsShare(t *testing.T) {
	a, _ := arbitertest.Start(t)
	var busy, rested atomic.Int64
	w := watching(a, 0.1, func(path string) {
		if strings.HasPrefix(path, "/v1/drift/sums") {
			time.Sleep(20 * time.Millisecond)
			busy.Add(20)
		}
	})
	w.Looked = func(_ *reconcile.Report, _, _ int64, rest time.Duration) { rested.Add(rest.Milliseconds()) }
	start := time.Now()
	if err := w.Run(t.Context(), 4); err != nil {
		t.Fatal(err)
	}
	if busy.Load() < 80 || rested.Load() < 9*busy.Load() || time.Since(start).Milliseconds() < 10*busy.Load() {
		t.Errorf("busy %d ms, rested %d ms of %v", busy.Load(), rested.Load(), time.Since(start))
	}
}

// TestAWatchGoesOnBesideAnother: whoever changes the checkpoint or a finding meanwhile does not end it, and what it looks with is
// renewed before each look.
func TestAWatchGoesOnBesideAnother(t *testing.T) {
	a, _ := arbitertest.Start(t)
	w := watching(a, 1, func(string) {})
	rec, renewed := w.Rec, 0
	w.Renew = func(context.Context) (*reconcile.Reconciler, error) {
		if renewed++; renewed == 2 {
			return nil, errors.New("the arbiter is away")
		}
		return rec, nil
	}
	looks, refused := 0, 0
	w.Looked = func(rep *reconcile.Report, _, _ int64, _ time.Duration) {
		if looks++; looks == 1 {
			if err := reconcile.ResetCheckpoint(t.Context(), a, begin+3*60_000); err != nil {
				t.Error(err)
			}
		}
		if len(rep.Skipped) > 0 {
			refused++
		}
	}
	if err := w.Run(t.Context(), 4); err != nil {
		t.Fatal(err)
	}
	at, err := reconcile.LoadCheckpoint(t.Context(), a)
	if err != nil || renewed != 4 || refused != 2 || at.To != begin+4*60_000 {
		t.Errorf("%+v, %v: %d looks, renewed %d times, %d were not compared", at, err, looks, renewed, refused)
	}
}
