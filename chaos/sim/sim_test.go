package sim_test

import (
	"flag"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/lockstep-tx/lockstep/chaos/sim"
)

var (
	seeds   = flag.Uint64("seeds", 100, "how many seeds the simulator runs in each mode")
	oneSeed = flag.Uint64("seed", 0, "run the simulator with this seed alone")
)

func seedsToRun() (out []uint64) {
	if *oneSeed != 0 {
		return []uint64{*oneSeed}
	}
	for seed := uint64(1); seed <= *seeds; seed++ {
		out = append(out, seed)
	}
	return out
}

// perSecondLeast is how many simulated transactions a second of processor time must bring, in the best ten seeds in a row: that is a
// second of wall time where nothing else runs, and other tests run beside these.
const perSecondLeast = 1000

// spent is the processor time that this process has taken.
func spent(t *testing.T) time.Duration {
	t.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		t.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// TestEverythingHoldsAndEnds runs the seeds in both modes: crashes, storms, cuts, stolen slots, handovers, and a region that is
// lost, taken over by force, and back.
func TestEverythingHoldsAndEnds(t *testing.T) {
	for _, mode := range []sim.Mode{sim.Safety, sim.Liveness} {
		t.Run(string(mode), func(t *testing.T) {
			start, best := time.Now(), 0.0
			ten, begun := spent(t), 0
			var sum sim.Result
			for i, seed := range seedsToRun() {
				r := sim.Run(seed, sim.Options{Mode: mode})
				if r.Err != nil {
					t.Fatalf("seed %d: %v\nits script:\n%s\nagain: go run ./chaos/cmd/lockstep-chaos replay --seed %d --mode %s", seed, r.Err, r.Script, seed, mode)
				}
				sum.Begun, sum.Committed, sum.Aborted, sum.Events = sum.Begun+r.Begun, sum.Committed+r.Committed, sum.Aborted+r.Aborted, sum.Events+r.Events
				sum.Moved, sum.Taken, sum.Doubts, sum.Returned = sum.Moved+r.Moved, sum.Taken+r.Taken, sum.Doubts+r.Doubts, sum.Returned+r.Returned
				sum.Millis += r.Millis
				if begun += r.Begun; i%10 == 9 {
					now := spent(t)
					best = max(best, float64(begun)/(now-ten).Seconds())
					ten, begun = now, 0
				}
			}
			rate := float64(sum.Begun) / time.Since(start).Seconds()
			t.Logf("%d transactions, %d committed, %d aborted, %d events in %d s of simulated time; %d slots moved, %d taken by force, %d in doubt, %d handed back; %.0f transactions a second of wall time, %.0f at best of processor time",
				sum.Begun, sum.Committed, sum.Aborted, sum.Events, sum.Millis/1000, sum.Moved, sum.Taken, sum.Doubts, sum.Returned, rate, best)
			if *oneSeed != 0 {
				return
			}
			if sum.Committed == 0 || sum.Aborted == 0 || sum.Moved == 0 || sum.Taken == 0 || sum.Doubts == 0 || mode == sim.Safety && sum.Returned == 0 {
				t.Error("too little was examined: something of the above did not happen at all")
			}
			if best < perSecondLeast && !raced {
				t.Errorf("%.0f simulated transactions a second; %d at least", best, perSecondLeast)
			}
		})
	}
}

// foundWithin bounds the seeds within which each shortcut must be found.
const foundWithin = 200

// found looks for the first seed that fails without a rule.
func found(t *testing.T, name string) (uint64, sim.Result) {
	t.Helper()
	rules, ok := sim.Shortcut(name)
	if !ok {
		t.Fatalf("there is no shortcut %s", name)
	}
	for seed := uint64(1); seed <= foundWithin; seed++ {
		if r := sim.Run(seed, sim.Options{Rules: rules}); r.Err != nil {
			return seed, r
		}
	}
	t.Fatalf("%d seeds without the rule found nothing: the rule or the checks are idle", foundWithin)
	return 0, sim.Result{}
}

// TestEveryShortcutIsFound switches one rule off at a time: cancel what was found tried, let copies spend before the seal is
// applied, seal at what the target has, serve before the seal is reached, and two rules more. A check that cannot fail proves
// nothing.
func TestEveryShortcutIsFound(t *testing.T) {
	for _, name := range sim.Shortcuts() {
		t.Run(name, func(t *testing.T) {
			seed, r := found(t, name)
			t.Logf("seed %d: %v", seed, r.Err)
			rules, _ := sim.Shortcut(name)
			if again := sim.Run(seed, sim.Options{Rules: rules}); again.Trace != r.Trace {
				t.Error("the failing run does not replay")
			}
			if with := sim.Run(seed, sim.Options{}); with.Err != nil {
				t.Errorf("with the rule the seed fails too: %v", with.Err)
			}
		})
	}
}

// TestAMoveUndoneWhileNobodyLivesLeavesNoGap: whoever closed the slot died before its journal had the seal, and the move was undone
// meanwhile. The slot's chain goes on behind the seal, so the seal must get into the journal all the same.
func TestAMoveUndoneWhileNobodyLivesLeavesNoGap(t *testing.T) {
	s := sim.Script{{Kind: sim.Handover, At: 3000, Slot: 1, To: 0}}
	for k := range 2 {
		s = append(s, sim.Fault{Kind: sim.Crash, At: 3262, For: 6000, Region: 1, Node: k})
	}
	s = append(s, sim.Fault{Kind: sim.Lose, At: 3300, For: 9000, Region: 2, To: 0}) // so that it is not tried again
	r := sim.Run(7, sim.Options{Script: s, Clients: 60, Keep: true})
	if r.Err != nil {
		t.Error(r.Err)
	}
	trace := strings.Join(r.Lines, "\n")
	if !strings.Contains(trace, "west0 seals slot 1 of epoch 102") || strings.Contains(trace, "west tells the seal of slot 1") {
		t.Error("the crash does not come between the closing and the journal any more: find its time anew")
	}
}

// TestASeedReplaysToTheByte: the trace is the same over two runs, on one processor and on two, though maps are walked in another
// order each time.
func TestASeedReplaysToTheByte(t *testing.T) {
	for seed := uint64(1); seed <= 12; seed++ {
		opt := sim.Options{Keep: true}
		if seed%2 == 0 {
			opt.Mode = sim.Liveness
		}
		was := runtime.GOMAXPROCS(1)
		one := sim.Run(seed, opt)
		runtime.GOMAXPROCS(2)
		two := sim.Run(seed, opt)
		runtime.GOMAXPROCS(was)
		if one.Trace == two.Trace && len(one.Lines) > 100 {
			continue
		}
		for i := range min(len(one.Lines), len(two.Lines)) {
			if one.Lines[i] != two.Lines[i] {
				t.Fatalf("seed %d differs at line %d:\n%s\n%s", seed, i, one.Lines[i], two.Lines[i])
			}
		}
		t.Fatalf("seed %d: %d lines and %d", seed, len(one.Lines), len(two.Lines))
	}
	if a, b := sim.Run(1, sim.Options{}), sim.Run(2, sim.Options{}); a.Trace == b.Trace {
		t.Error("two seeds have one trace")
	}
}

// TestShrinkLeavesWhatIsNeeded reduces the run that finds a shortcut: what is left fails, and no single fault of it can go.
func TestShrinkLeavesWhatIsNeeded(t *testing.T) {
	rules, _ := sim.Shortcut("cancel-tried")
	seed, full := found(t, "cancel-tried")
	s, failed := sim.Shrink(seed, sim.Options{Rules: rules})
	if !failed {
		t.Fatal("the run does not fail")
	}
	t.Logf("seed %d: %d faults became %d, %d transactions are enough, %d runs: %v\n%s", seed, len(full.Script), len(s.Script), s.Options.Clients, s.Runs, s.Err, s.Script)
	if len(s.Script) > len(full.Script) || !strings.Contains(s.Script.String(), string(sim.Lose)) {
		t.Errorf("what is left does not lose a region, or grew:\n%s", s.Script)
	}
	if again := sim.Run(seed, s.Options); again.Trace != s.Trace {
		t.Error("what is left does not replay")
	}
	for i := range s.Script {
		opt := s.Options
		opt.Script = append(append(sim.Script{}, s.Script[:i]...), s.Script[i+1:]...)
		if r := sim.Run(seed, opt); r.Err != nil {
			t.Errorf("without %q it fails too", s.Script[i])
		}
	}
	if _, failed := sim.Shrink(seed, sim.Options{}); failed {
		t.Error("a run that holds was shrunk")
	}
}

// BenchmarkTransactions prints how many simulated transactions a second of wall time brings.
func BenchmarkTransactions(b *testing.B) {
	begun := 0
	for seed := uint64(1); b.Loop(); seed++ {
		begun += sim.Run(seed, sim.Options{}).Begun
	}
	b.ReportMetric(float64(begun)/b.Elapsed().Seconds(), "tx/s")
}
