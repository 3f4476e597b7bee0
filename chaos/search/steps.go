package search

import (
	"fmt"
	"slices"

	"github.com/lockstep-tx/lockstep/coordinator/txn"
)

// step is one thing that can happen next.
type step struct {
	by string
	w  *world
}

var spec = txn.Spec{Mode: txn.ModeTCC, Digest: "d", Branches: []txn.Branch{
	{ID: "0", Try: "t", Confirm: "c", Cancel: "x"}, {ID: "1", Try: "t", Confirm: "c", Cancel: "x"},
}}

// steps lists everything that can happen next.
func (w *world) steps() (out []step) {
	add := func(by string, next *world) {
		if next != nil {
			out = append(out, step{by, next})
		}
	}
	for i := range w.h {
		if !w.h[i].has {
			continue
		}
		name := fmt.Sprintf("holder %d", i)
		if w.h[i].saving != nil {
			w.writes(i, name, add)
			continue
		}
		if w.h[i].mem.Phase == txn.PhaseNone && !w.begun {
			add("a client asks "+name, w.asked(i, true))
		} else if w.begun && w.told == 0 && i == w.term {
			add("a client asks again, of "+name, w.asked(i, false))
		}
		if txn.NextWake(&w.h[i].mem) != 0 && (i == w.term || attempts(&w.h[i].mem) < sleeperTries) {
			add(name+" does what is due", w.event(i, txn.Tick{At: early, Epoch: epoch(i)}))
			if w.past && w.h[i].mem.Phase == txn.PhaseRunning {
				add(name+" sees that the deadline has passed", w.event(i, txn.Tick{At: late, Epoch: epoch(i)}))
			}
		}
	}
	if !w.past && w.begun {
		next := w.clone()
		next.past = true
		add("the deadline passes", next)
	}
	w.network(add)
	if w.left.Takeovers > 0 && w.term == 0 {
		add("holder 1 takes the slot; holder 0 sleeps", w.takeover(false))
		add("holder 1 takes the slot; holder 0 is gone", w.takeover(true))
	}
	return out
}

// sleeperTries bounds how often a holder calls whose slot was taken: it is refused as stale every time.
const sleeperTries = 2

func attempts(s *txn.State) (most int) {
	for i := range s.Branches {
		most = max(most, s.Branches[i].One.Attempts, s.Branches[i].Two.Attempts)
	}
	return most
}

// epoch is a holder's: the second one has the slot in another epoch.
func epoch(i int) uint64 { return uint64(i + 1) }

func (w *world) asked(i int, first bool) *world {
	next := w.event(i, txn.Execute{At: early, Epoch: epoch(i), Spec: spec})
	if first && next != nil {
		next.begun = true
	}
	return next
}

// event has a holder make a step of the production core, and carries out its effects; nil where it changes nothing.
func (w *world) event(i int, ev txn.Event) *world {
	s, effects, err := txn.Step(w.h[i].mem, ev)
	if err != nil {
		return nil
	}
	next := w.clone()
	s = normal(s)
	if s.Gid == "" {
		s.Gid = "g"
	}
	next.h[i].mem = s
	next.run(i, effects)
	if err := txn.Check(&next.h[i].mem); err != nil {
		next.fault = err.Error()
	}
	return next
}

// run carries out effects in their order: what stands behind a save waits for it.
func (w *world) run(i int, effects []txn.Effect) {
	for k, e := range effects {
		switch e := e.(type) {
		case txn.Save:
			saved := w.h[i].mem
			w.h[i].saving, w.h[i].behind = &saved, effects[k+1:]
			if w.rules.CallsFirst {
				w.h[i].behind = nil
				w.run(i, effects[k+1:])
				w.h[i].saving = &saved
			}
			return
		case txn.Invoke:
			w.call(i, e)
		case txn.Answer:
			if e.Milestone == txn.Decided && w.told == 0 {
				w.told = txn.PhaseAborting
				if w.h[i].mem.Phase.Commit() {
					w.told = txn.PhaseCommitting
				}
			}
		}
	}
}

func (w *world) call(i int, e txn.Invoke) {
	at := slices.IndexFunc(spec.Branches, func(b txn.Branch) bool { return b.ID == e.Branch })
	w.calls = sorted(append(w.calls, message{branch: at, by: i, op: e.Op, attempt: e.Attempt, epoch: epoch(i)}))
}

func sorted(list []message) []message {
	slices.SortFunc(list, compare)
	return list
}

func without(list []message, at int) []message { return slices.Delete(slices.Clone(list), at, at+1) }

// writes are the ways in which a write can end: done, done with the answer lost, lost on the way, refused.
func (w *world) writes(i int, name string, add func(string, *world)) {
	if i != w.term && !w.rules.NoTerm {
		next := w.clone()
		next.h[i] = holder{} // it knows now that it has nothing
		add(name+"'s write is refused: the slot was taken", next)
		return
	}
	add(name+"'s write is durable", w.written(i, false))
	if w.left.Doubts == 0 {
		return
	}
	next := w.written(i, true)
	next.left.Doubts--
	add(name+"'s write is durable, and the answer is lost", next)
	next = w.clone()
	next.left.Doubts--
	next.doubt(i)
	add(name+"'s write is lost", next)
}

// written makes a holder's write durable, and carries out what waited for it unless the answer is lost.
func (w *world) written(i int, lost bool) *world {
	next := w.clone()
	s := *next.h[i].saving
	was := next.durable.Phase
	if was.Decided() && (was.Commit() != s.Phase.Commit() || !s.Phase.Decided()) {
		next.fault = "a decision that was durable has changed (G1)"
	}
	next.durable = s
	if next.decided == 0 && s.Phase.Decided() {
		next.decided = s.Phase
	}
	if lost {
		next.doubt(i)
		return next
	}
	behind := next.h[i].behind
	next.h[i].saving, next.h[i].behind = nil, nil
	if s.Phase.Finished() {
		next.h[i].mem = s
	}
	next.run(i, behind)
	return next
}

// doubt is what a holder does that does not know whether its write happened: it takes a new term and reads what stands.
func (w *world) doubt(i int) {
	if w.rules.LostIsNo {
		// It goes on from before the write, and decides again.
		s := w.h[i].mem
		if s.Phase.Decided() {
			s.Phase, s.DecidedAt, s.FinishedAt = txn.PhaseRunning, 0, 0
			s.Branches = slices.Clone(s.Branches)
			for k := range s.Branches {
				s.Branches[k].Two = txn.OpState{}
			}
		}
		w.h[i] = holder{has: true, mem: s}
		return
	}
	w.load(i)
}

// load reads the store, as whoever takes a slot does.
func (w *world) load(i int) {
	w.h[i] = holder{has: true}
	if w.durable.Phase != txn.PhaseNone {
		w.h[i].mem = normal(txn.Reloaded(w.durable))
	}
}

func (w *world) takeover(gone bool) *world {
	next := w.clone()
	next.left.Takeovers--
	next.term = 1
	if gone {
		next.h[0] = holder{}
	}
	next.load(1)
	return next
}

// network is what can happen to calls and answers: they arrive in any order, calls arrive twice, both get lost.
func (w *world) network(add func(string, *world)) {
	for k, m := range w.calls {
		text := fmt.Sprintf("%s %d of branch %d from holder %d", m.op, m.attempt, m.branch, m.by)
		next := w.clone()
		next.calls = without(w.calls, k)
		next.arrive(m, false)
		add(text+" arrives", next)
		if w.left.Refusals > 0 && m.op == txn.OpTry && !w.part[m.branch].tried {
			next := w.clone()
			next.left.Refusals--
			next.calls = without(w.calls, k)
			next.arrive(m, true)
			add(text+" arrives and is refused", next)
		}
		if w.left.Repeats > 0 {
			next := w.clone()
			next.left.Repeats--
			next.arrive(m, false)
			add(text+" arrives, and will arrive again", next)
		}
		if w.left.Losses > 0 {
			next := w.clone()
			next.left.Losses--
			next.answer(m, txn.Unknown)
			add(text+" times out, and may still arrive", next)
		}
	}
	for k, m := range w.answers {
		text := fmt.Sprintf("the answer %s to %s %d of branch %d", m.outcome, m.op, m.attempt, m.branch)
		if next := w.answered(m); next != nil {
			next.answers = without(next.answers, k)
			add(text+" arrives", next)
		}
		if w.left.Losses > 0 && m.outcome != txn.Unknown {
			next := w.clone()
			next.left.Losses--
			next.answers = without(w.answers, k)
			next.answer(m, txn.Unknown)
			add(text+" is lost", next)
		}
	}
}

// answered hands an answer to the holder that called, if it is there and not waiting for a write; nil where it must wait.
func (w *world) answered(m message) *world {
	h := &w.h[m.by]
	switch {
	case !h.has || h.mem.Phase == txn.PhaseNone:
		return w.clone() // nobody waits for it
	case m.by != w.term && attempts(&h.mem) >= sleeperTries:
		return w.clone() // it would only call again
	case h.saving != nil:
		return nil
	}
	return w.event(m.by, txn.Reply{At: early, Epoch: epoch(m.by), Branch: spec.Branches[m.branch].ID, Op: m.op, Attempt: m.attempt, Outcome: m.outcome})
}

func (w *world) answer(m message, o txn.Outcome) {
	m.outcome = o
	w.answers = sorted(append(w.answers, m))
}

// arrive is a participant behind its barrier.
func (w *world) arrive(m message, refuse bool) {
	p := &w.part[m.branch]
	if m.epoch < p.fence {
		w.answer(m, txn.Stale)
		return
	}
	p.fence = m.epoch
	o := txn.Done
	switch m.op {
	case txn.OpTry:
		switch {
		case (p.tombstone || p.cancelled) && !w.rules.NoBarrier:
			o = txn.Refused
		case refuse:
			o = txn.Refused
		case !p.tried || w.rules.NoBarrier:
			p.tried = true
			p.held++
		}
	case txn.OpConfirm:
		p.opposite = p.opposite || p.cancelled || p.tombstone
		if !p.confirmed || w.rules.NoBarrier {
			p.confirmed = true
			p.spent++
		}
	case txn.OpCancel:
		p.opposite = p.opposite || p.confirmed
		switch {
		case w.rules.NoBarrier || p.tried && !p.cancelled:
			p.cancelled = true
			p.released++
		case !p.tried:
			p.tombstone = !w.rules.NoTombstone
		}
	}
	w.answer(m, o)
}
