package txn

import (
	"errors"
	"fmt"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

// world drives one transaction with random events that fit it, and with some that do not.
type world struct {
	s        State
	now      int64
	inFlight map[Invoke]bool
}

func newSpec(t *rapid.T) (Event, int) {
	n := rapid.IntRange(0, 4).Draw(t, "branches")
	mode := rapid.SampledFrom(Modes).Draw(t, "mode")
	sp := Spec{Mode: mode, QueryURL: "http://q", Digest: "d"}
	if rapid.Bool().Draw(t, "timeout") {
		sp.Opt.Timeout = 3e9
	}
	sp.Opt.RetryLimit = rapid.SampledFrom([]int{0, 0, 2}).Draw(t, "limit")
	for i := range n {
		b := Branch{ID: BranchID(fmt.Sprintf("%02d", i+1)), Confirm: "http://c", Cancel: "http://x"}
		switch mode {
		case ModeSaga:
			b.Try, b.Confirm = "http://t", ""
		case ModeMsg:
			b.Cancel = ""
		case ModeTCC, ModeXA, ModeWorkflow:
		}
		if i > 0 && (mode == ModeSaga || mode == ModeMsg) && rapid.Bool().Draw(t, "after") {
			b.After = []int{rapid.IntRange(0, i-1).Draw(t, "on")}
		}
		sp.Branches = append(sp.Branches, b)
	}
	switch {
	case mode == ModeTCC && n > 0 && rapid.Bool().Draw(t, "driven"):
		for i := range sp.Branches {
			sp.Branches[i].Try = "http://t"
		}
		if rapid.Bool().Draw(t, "message") {
			sp.Branches = append(sp.Branches, Branch{ID: "m", Confirm: "http://m", Message: true})
		}
		return Execute{At: t0, Epoch: 1, Spec: sp}, n
	case mode == ModeSaga || (mode == ModeMsg && rapid.Bool().Draw(t, "at once")):
		return Submit{At: t0, Epoch: 1, Spec: sp}, n
	case mode == ModeWorkflow || mode == ModeXA:
		sp.Branches = nil
	}
	return Prepare{At: t0, Epoch: 1, Spec: sp}, n
}

// event draws the next event: mostly an answer to something in flight, sometimes a client, the clock, an operator.
func (w *world) event(t *rapid.T) Event {
	w.now += rapid.Int64Range(0, 4000).Draw(t, "pass")
	if len(w.inFlight) > 0 && rapid.IntRange(0, 3).Draw(t, "answer") > 0 {
		var calls []Invoke
		for _, e := range Owed(w.s) {
			if inv, ok := e.(Invoke); ok && w.inFlight[inv] {
				calls = append(calls, inv)
			}
		}
		for i := range w.s.Branches { // forward calls still in flight after the decision
			b := &w.s.Branches[i]
			if inv := (Invoke{b.ID, w.s.ForwardOp(), b.One.Attempts}); b.One.InFlight && w.s.Phase.Decided() {
				calls = append(calls, inv)
			}
		}
		if len(calls) > 0 {
			inv := rapid.SampledFrom(calls).Draw(t, "call")
			delete(w.inFlight, inv)
			out := rapid.SampledFrom([]Outcome{Done, Done, Done, Refused, Ongoing, Unknown, Stale, Deferred}).Draw(t, "outcome")
			return Reply{At: w.now, Epoch: 1, Branch: inv.Branch, Op: inv.Op, Attempt: inv.Attempt, Outcome: out, Text: "x", RetryAfterMillis: 50}
		}
	}
	id := BranchID(fmt.Sprintf("%02d", rapid.IntRange(1, 5).Draw(t, "id")))
	return rapid.SampledFrom([]Event{
		Tick{At: w.now, Epoch: 1}, Tick{At: w.now, Epoch: 1}, Tick{At: w.now + 40_000, Epoch: 1},
		Submit{At: w.now, Epoch: 1, Spec: Spec{Mode: w.s.Mode, Digest: "d"}}, Submit{At: w.now, Epoch: 2, Spec: Spec{Mode: w.s.Mode}},
		Abort{At: w.now, Epoch: 1}, Stop{At: w.now, Epoch: 1}, Retry{At: w.now, Epoch: 1}, Retry{At: w.now, Epoch: 1},
		Register{At: w.now, Epoch: 1, Mode: w.s.Mode, Branch: Branch{ID: id, Confirm: "http://c", Cancel: "http://x"}},
		RegisterStep{At: w.now, Epoch: 1, Step: WorkflowStep{Branch: id, Op: "action"}},
		EndWorkflow{At: w.now, Epoch: 1, Commit: true}, EndWorkflow{At: w.now, Epoch: 1},
		Reply{At: w.now, Epoch: 1, Branch: id, Op: OpConfirm, Attempt: 7, Outcome: Done},
		Reply{At: w.now, Epoch: 1, Branch: id, Op: OpAction, Attempt: 0, Outcome: Refused},
	}).Draw(t, "event")
}

// TestStepKeepsItsRules walks random transactions and checks after every step: the state is sound (Check); a decision
// never changes (G1); no confirm or cancel leaves before its decision's Save in the list (G2); what is emitted is
// contained in Owed; the state that was given is not changed; an error changes nothing.
func TestStepKeepsItsRules(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		begin, _ := newSpec(t)
		w := &world{s: State{Gid: "g"}, now: t0, inFlight: map[Invoke]bool{}}
		ev := begin
		for range rapid.IntRange(1, 40).Draw(t, "steps") {
			before, copyOf := w.s, deepCopy(w.s)
			next, effects, err := Step(w.s, ev)
			if diff := cmp.Diff(copyOf, before); diff != "" {
				t.Fatalf("%T changed the state that it was given (-before +after):\n%s", ev, diff)
			}
			if err != nil {
				var te *Error
				if !errors.As(err, &te) || len(effects) > 0 || !cmp.Equal(next, before) {
					t.Fatalf("%T was refused with %v, effects %v", ev, err, effects)
				}
			}
			if err := Check(&next); err != nil {
				t.Fatalf("after %#v: %v\n%+v", ev, err, next)
			}
			if before.Phase.Decided() && (!next.Phase.Decided() || next.Phase.Commit() != before.Phase.Commit() || next.DecidedAt != before.DecidedAt || next.Reason != before.Reason) {
				t.Fatalf("%#v changed the decision: %s to %s", ev, before.Phase, next.Phase)
			}
			checkEffects(t, before, next, effects)
			for _, e := range effects {
				if inv, ok := e.(Invoke); ok {
					w.inFlight[inv] = true
				}
			}
			w.s = next
			if rapid.IntRange(0, 15).Draw(t, "crash") == 0 && w.s.Phase != PhaseNone {
				w.s = Reloaded(w.s)
				clear(w.inFlight)
			}
			ev = w.event(t)
		}
	})
}

func checkEffects(t *rapid.T, before, next State, effects []Effect) {
	owed := map[Effect]bool{}
	for _, e := range Owed(next) {
		owed[e] = true
	}
	saved := before.Phase.Decided()
	for i, e := range effects {
		switch f := e.(type) {
		case Save:
			saved = saved || f.Decision
			if f.Decision && before.Phase.Decided() {
				t.Fatalf("a second decision was saved: %s", showEffects(effects))
			}
		case Invoke:
			if f.Op != OpTry && f.Op != OpQuery && f.Op != OpCallback && !(f.Op == OpAction && next.Mode == ModeSaga) && !saved {
				t.Fatalf("%s/%s leaves before the decision is saved: %s", f.Branch, f.Op, showEffects(effects))
			}
			if !owed[e] {
				t.Fatalf("%s is emitted and not owed; owed: %s", showEffects(effects[i:i+1]), showEffects(Owed(next)))
			}
		case Wake:
			if !owed[e] {
				t.Fatalf("%s is emitted and not owed; owed: %s", showEffects(effects[i:i+1]), showEffects(Owed(next)))
			}
		case Note, Answer:
		}
	}
	if before.Phase != next.Phase && next.Phase != PhasePrepared {
		found := false
		for _, e := range effects {
			_, ok := e.(Save)
			found = found || ok
		}
		if !found {
			t.Fatalf("%s to %s without a save", before.Phase, next.Phase)
		}
	}
}

func deepCopy(s State) State {
	out := s
	out.Branches = append([]Branch(nil), s.Branches...)
	for i := range out.Branches {
		out.Branches[i].After = append([]int(nil), s.Branches[i].After...)
	}
	out.Steps = append([]WorkflowStep(nil), s.Steps...)
	return out
}

// TestEveryTransactionEnds is G8 for the core: whatever happened before, when participants answer Done and nobody stops
// it, a decided transaction ends; an undecided one is decided by its deadline.
func TestEveryTransactionEnds(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		begin, _ := newSpec(t)
		w := &world{s: State{Gid: "g"}, now: t0, inFlight: map[Invoke]bool{}}
		ev := begin
		for range rapid.IntRange(1, 25).Draw(t, "steps") {
			if next, effects, err := Step(w.s, ev); err == nil {
				w.s = next
				for _, e := range effects {
					if inv, ok := e.(Invoke); ok {
						w.inFlight[inv] = true
					}
				}
			}
			ev = w.event(t)
		}
		if w.s.Phase == PhaseNone || w.s.Mode == ModeWorkflow || (w.s.Mode == ModeSaga && w.s.Phase == PhasePrepared) {
			return // a workflow's client ends it; a saga that was only prepared waits for its submit
		}
		// A restart, then good weather.
		w.s = Reloaded(w.s)
		step := func(ev Event) []Effect {
			next, effects, err := Step(w.s, ev)
			if err != nil {
				t.Fatalf("%#v: %v", ev, err)
			}
			w.s = next
			return effects
		}
		var pending []Effect
		if w.s.Stopped {
			pending = step(Retry{At: w.now, Epoch: 1})
		}
		for range 200 {
			if w.s.Phase.Finished() {
				return
			}
			var calls []Effect
			for _, e := range pending {
				if inv, ok := e.(Invoke); ok {
					calls = append(calls, step(Reply{At: w.now, Epoch: 1, Branch: inv.Branch, Op: inv.Op, Attempt: inv.Attempt, Outcome: Done})...)
				}
			}
			if pending = calls; len(pending) == 0 {
				w.now += 60_000
				pending = step(Tick{At: w.now, Epoch: 1})
			}
		}
		t.Fatalf("it does not end: %+v", w.s)
	})
}

// FuzzStep feeds the core from raw bytes: whatever comes, no panic, and the state stays sound.
func FuzzStep(f *testing.F) {
	f.Add([]byte{1, 2, 3, 4, 5, 6, 7, 8, 9})
	f.Fuzz(rapid.MakeFuzz(func(t *rapid.T) {
		w := &world{s: State{Gid: "g"}, now: t0, inFlight: map[Invoke]bool{}}
		ev, _ := newSpec(t)
		for range 30 {
			next, effects, err := Step(w.s, ev)
			if err == nil {
				checkEffects(t, w.s, next, effects)
			}
			if bad := Check(&next); bad != nil {
				t.Fatalf("after %#v: %v", ev, bad)
			}
			w.s = next
			ev = w.event(t)
		}
	}))
}

func TestBackoffGrowsToItsCapWithinItsJitter(t *testing.T) {
	for n := 1; n < 20; n++ {
		want := min(int64(BackoffBaseMillis)<<(n-1), BackoffCapMillis)
		seen := map[int64]bool{}
		for seed := range uint64(50) {
			d := Backoff(n, 0, seed)
			if d < want*8/10 || d > want*12/10 {
				t.Errorf("failure %d: %d ms, want %d ± 20 %%", n, d, want)
			}
			seen[d] = true
		}
		if len(seen) < 20 {
			t.Errorf("failure %d: only %d different pauses for 50 transactions", n, len(seen))
		}
	}
	if d := Backoff(3, 120_000, 1); d < 96_000 || d > 144_000 {
		t.Errorf("a retry_interval above the cap stays as it is: %d", d)
	}
}
