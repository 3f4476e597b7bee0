package txn

import "fmt"

// Owed is what a state still has to do, recomputed from nothing but the state: an Invoke for every call that is in
// flight or waits for its time, in order of registration, and the Wake at which the earliest waiting one is due. So
// recovery and retry are one path: a state that was read back after a crash owes what it owed before it.
func Owed(s State) []Effect {
	if s.halted() || s.Phase == PhaseNone || s.Phase.Finished() {
		return nil
	}
	var out []Effect
	add := func(id BranchID, op Op, st *OpState) {
		n := st.Attempts
		if !st.InFlight {
			n++
		}
		out = append(out, Invoke{Branch: id, Op: op, Attempt: n})
	}
	switch s.Phase {
	case PhasePrepared:
		if s.Query.Status == OpPending {
			add(CheckBackBranch, s.queryOp(), &s.Query)
		}
	case PhaseRunning:
		for i := range s.Branches {
			b := &s.Branches[i]
			if b.One.Status == OpPending && b.Try != "" && forwardReady(&s, i) {
				add(b.ID, s.ForwardOp(), &b.One)
			}
		}
	case PhaseCommitting, PhaseAborting:
		blocked := secondBlocked(&s)
		for i := range s.Branches {
			b := &s.Branches[i]
			if b.Two.Status == OpPending && !b.One.InFlight && !emptyCall(&s, i) && (blocked == nil || !blocked[i]) {
				add(b.ID, s.SecondOp(i, s.Phase.Commit()), &b.Two)
			}
		}
	case PhaseNone, PhaseCommitted, PhaseAborted:
	}
	if at := NextWake(&s); at != 0 {
		out = append(out, Wake{At: at})
	}
	return out
}

// NextWake is the earliest time at which something of s is due that is not in flight, in unix milliseconds; 0 when
// only answers can move it.
func NextWake(s *State) int64 {
	if s.halted() || s.Phase == PhaseNone || s.Phase.Finished() {
		return 0
	}
	var next int64
	earliest := func(at int64) {
		if at < 1 {
			at = 1 // due at once; 0 means never
		}
		if next == 0 || at < next {
			next = at
		}
	}
	switch s.Phase {
	case PhasePrepared:
		if d := s.Deadline(); d != 0 && s.Mode != ModeMsg && s.Mode != ModeSaga {
			earliest(d)
		}
		if s.Query.Status == OpPending && !s.Query.InFlight {
			earliest(s.Query.NextAt)
		}
	case PhaseRunning:
		if d := s.Deadline(); d != 0 {
			earliest(d)
		}
		open := false
		for i := range s.Branches {
			one := &s.Branches[i].One
			open = open || one.Status == OpPending
			if one.Status == OpPending && !one.InFlight && forwardReady(s, i) {
				earliest(one.NextAt)
			}
		}
		if !open {
			earliest(0) // all done, and not decided: as below
		}
	case PhaseCommitting, PhaseAborting:
		blocked, open := secondBlocked(s), false
		for i := range s.Branches {
			b := &s.Branches[i]
			open = open || b.Two.Status == OpPending || b.One.InFlight
			if b.Two.Status == OpPending && !b.Two.InFlight && !b.One.InFlight && (blocked == nil || !blocked[i]) {
				earliest(b.Two.NextAt)
			}
		}
		if !open {
			earliest(0) // carried out, and the end not written: an adopted transaction can stand so
		}
	case PhaseNone, PhaseCommitted, PhaseAborted:
	}
	return next
}

// Reloaded is s as it stands after it was read back: nothing is in flight, and everything owed is due at once, but
// for a check-back's, a callback's and a delayed message's own time.
func Reloaded(s State) State {
	w := work{s: s}
	w.own()
	for i := range w.s.Branches {
		b := &w.s.Branches[i]
		b.One.InFlight, b.Two.InFlight = false, false
		b.One.NextAt, b.Two.NextAt = 0, 0
		if w.s.Mode == ModeMsg && w.s.Phase == PhaseCommitting && w.s.Opt.Delay > 0 {
			b.Two.NextAt = w.s.BegunAt + w.s.Opt.Delay.Milliseconds()
		}
	}
	q := &w.s.Query
	q.InFlight = false
	if w.s.Phase == PhasePrepared && q.Status == OpPending && q.NextAt == 0 {
		if w.s.Mode == ModeMsg {
			q.NextAt = w.s.Deadline()
		} else {
			q.NextAt = w.s.UpdatedAt + w.s.retryInterval()
		}
	}
	return w.s
}

// NotAhead is s as it stands for who holds it now, by a clock that shows at. An undecided transaction that was begun in its future was
// begun by a clock that was ahead of this one: it counts as begun now. Else it would keep what it has reserved until that future is
// over, however short its timeout. What is decided is as it was decided.
func NotAhead(s State, at int64) State {
	if s.Phase.Decided() || s.BegunAt <= at {
		return s
	}
	ahead := s.BegunAt - at
	s.BegunAt, s.UpdatedAt = at, min(s.UpdatedAt, at)
	if s.Query.NextAt > at {
		s.Query.NextAt = max(at, s.Query.NextAt-ahead)
	}
	return s
}

// Check says which rule s breaks; nil when it is sound. Fuzzing and the simulator call it after every step.
func Check(s *State) error {
	bad := func(format string, args ...any) error {
		return fmt.Errorf("transaction %q in phase %s: %s", string(s.Gid), s.Phase, fmt.Sprintf(format, args...))
	}
	if s.Phase == PhaseNone {
		return nil
	}
	if s.Phase.Decided() != (s.DecidedAt != 0) {
		return bad("decided at %d", s.DecidedAt)
	}
	if s.Phase.Finished() != (s.FinishedAt != 0) {
		return bad("finished at %d", s.FinishedAt)
	}
	if s.InDoubt && s.Phase.Decided() {
		return bad("in doubt after its decision")
	}
	seen := make(map[BranchID]bool, len(s.Branches))
	for i := range s.Branches {
		b := &s.Branches[i]
		if seen[b.ID] {
			return bad("branch %q stands twice", string(b.ID))
		}
		seen[b.ID] = true
		if !s.Phase.Decided() && (b.Two.InFlight || b.Two.Attempts > 0 || b.Two.Status != OpPending) {
			return bad("branch %q was confirmed or cancelled before the decision", string(b.ID))
		}
		if s.Phase.Finished() && (b.Two.Status == OpPending || b.Two.InFlight || b.One.InFlight) {
			return bad("branch %q is still owed", string(b.ID))
		}
		if s.Phase.Commit() && s.Mode != ModeMsg && b.One.Status == OpRefused {
			return bad("branch %q refused and the decision is commit", string(b.ID))
		}
		for _, op := range []*OpState{&b.One, &b.Two} {
			if op.Attempts < 0 || (op.InFlight && (op.Attempts == 0 || op.Status != OpPending)) {
				return bad("branch %q has an impossible call state", string(b.ID))
			}
		}
		for _, j := range b.After {
			if j < 0 || j >= len(s.Branches) || j == i {
				return bad("branch %q waits for step %d", string(b.ID), j)
			}
		}
	}
	return nil
}
