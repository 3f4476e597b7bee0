package search

import (
	"cmp"
	"crypto/sha256"
	"fmt"
	"slices"

	"github.com/lockstep-tx/lockstep/coordinator/txn"
)

// Times are two: before the deadline and past it.
const (
	early = 1_000
	late  = 10_000_000
)

// holder is one coordinator. What it believes may be old: another one may have taken the slot.
type holder struct {
	has bool // it has the slot, as far as it knows
	mem txn.State
	// saving is the write under way, nil for none; what waits for it comes behind.
	saving *txn.State
	behind []txn.Effect
}

// message is a call on its way to a participant, or its answer on the way back.
type message struct {
	branch, by int // by: the holder
	op         txn.Op
	attempt    int
	epoch      uint64
	outcome    txn.Outcome // of an answer
}

func compare(a, b message) int {
	return cmp.Or(cmp.Compare(a.branch, b.branch), cmp.Compare(a.by, b.by), cmp.Compare(a.op, b.op), cmp.Compare(a.attempt, b.attempt),
		cmp.Compare(a.epoch, b.epoch), cmp.Compare(a.outcome, b.outcome))
}

// participant is one branch's side: its barrier rows, its effect, and the highest epoch that it has seen.
type participant struct {
	tried, confirmed, cancelled, tombstone bool // rows
	held, spent                            int  // effects: a correct one is 0 or 1
	released                               int
	fence                                  uint64
	opposite                               bool // it was asked for confirm and cancel
}

// world is one state. It is a value but for its slices, which are never changed in place.
type world struct {
	rules   Rules
	left    Bounds
	begun   bool // a client has asked for it
	past    bool // its deadline has passed
	durable txn.State
	decided txn.Phase // the first decision that was durable
	term    int       // who holds the slot
	h       [2]holder
	calls   []message
	answers []message
	part    [2]participant
	told    txn.Phase // what a client was told
	fault   string    // a rule that a step broke
}

func newWorld(rules Rules, b Bounds) *world {
	w := &world{rules: rules, left: b}
	w.h[0].has = true
	for i := range w.part {
		w.part[i].fence = 1
	}
	return w
}

func (w *world) clone() *world {
	c := *w
	c.calls, c.answers = slices.Clone(w.calls), slices.Clone(w.answers)
	return &c
}

// key tells states apart. Times, texts and what was counted for people alone are not in it.
func (w *world) key() [16]byte {
	b := make([]byte, 0, 256)
	put := func(list ...int) {
		for _, n := range list {
			b = append(b, byte(n))
		}
	}
	l := &w.left
	put(bit(w.begun), bit(w.past), int(w.decided), int(w.told), w.term, l.Losses, l.Repeats, l.Refusals, l.Takeovers, l.Doubts)
	for i := range w.part {
		p := &w.part[i]
		put(bit(p.tried), bit(p.confirmed), bit(p.cancelled), bit(p.tombstone), p.held, p.spent, p.released, int(p.fence), bit(p.opposite))
	}
	b = appendState(b, &w.durable)
	for i := range w.h {
		h := &w.h[i]
		put(bit(h.has), len(h.behind), bit(h.saving != nil))
		b = appendState(b, &h.mem)
		if h.saving == nil {
			continue
		}
		b = appendState(b, h.saving)
		for _, e := range h.behind {
			switch e := e.(type) {
			case txn.Invoke:
				b = append(append(b, e.Branch...), byte(e.Op), byte(e.Attempt))
			case txn.Answer:
				put(200, int(e.Milestone))
			default:
				put(201)
			}
		}
	}
	for _, list := range [][]message{w.calls, w.answers} {
		put(len(list))
		for _, m := range list {
			put(m.branch, m.by, int(m.op), m.attempt, int(m.epoch), int(m.outcome))
		}
	}
	h := sha256.Sum256(append(b, w.fault...))
	return [16]byte(h[:16])
}

func bit(yes bool) int {
	if yes {
		return 1
	}
	return 0
}

func appendState(b []byte, s *txn.State) []byte {
	b = append(b, byte(s.Phase), byte(s.Epoch), byte(s.Retries))
	for i := range s.Branches {
		for _, o := range []*txn.OpState{&s.Branches[i].One, &s.Branches[i].Two} {
			b = append(b, byte(o.Status), byte(bit(o.InFlight)), byte(o.Attempts), byte(o.Fails))
		}
	}
	return b
}

// ended says that everything has come to its end: it is finished in the store, and nothing is held or under way.
func (w *world) ended() bool {
	if !w.durable.Phase.Finished() || len(w.calls)+len(w.answers) > 0 {
		return false
	}
	for i := range w.part {
		p := &w.part[i]
		if p.held != p.spent+p.released || w.durable.Phase.Commit() != (p.spent == 1) {
			return false
		}
	}
	return true
}

// broken names a rule that the state breaks; "" for none.
func (w *world) broken() string {
	if w.fault != "" {
		return w.fault
	}
	spent, released := 0, 0
	for i := range w.part {
		p := &w.part[i]
		spent += min(p.spent, 1)
		if p.released > 0 || p.cancelled || p.tombstone {
			released++
		}
		switch {
		case p.opposite:
			return fmt.Sprintf("branch %d was asked to confirm and to cancel", i)
		case p.spent > 1 || p.released > 1 || p.held > 1:
			return fmt.Sprintf("branch %d: an effect happened twice", i)
		case p.spent > p.held:
			return fmt.Sprintf("branch %d was confirmed and never tried", i)
		}
	}
	switch {
	case spent > 0 && released > 0:
		return "one branch is confirmed and the other is not to be (G1)"
	case spent > 0 && w.durable.Phase.Decided() && !w.durable.Phase.Commit():
		return "a branch is confirmed and the decision is abort (G1)"
	case w.told == txn.PhaseCommitting && w.durable.Phase.Decided() && !w.durable.Phase.Commit(), w.told == txn.PhaseAborting && w.durable.Phase.Commit():
		return "a client was told otherwise (G2)"
	case w.told != 0 && !w.durable.Phase.Decided():
		return "a client was told of a decision that is not durable (G2)"
	}
	if w.durable.Phase.Finished() && len(w.calls)+len(w.answers) == 0 && !w.h[0].has && !w.h[1].has {
		for i := range w.part {
			if p := &w.part[i]; p.held > p.spent+p.released {
				return fmt.Sprintf("branch %d holds for ever", i)
			}
		}
	}
	return ""
}

// normal takes out of a state what does not matter here: times but whether they are past, and texts.
func normal(s txn.State) txn.State {
	s.Branches = slices.Clone(s.Branches)
	for i := range s.Branches {
		for _, o := range []*txn.OpState{&s.Branches[i].One, &s.Branches[i].Two} {
			o.NextAt, o.LastError, o.Fails = min(o.NextAt, early), "", min(o.Fails, 1)
			o.DoneAt = min(o.DoneAt, early)
		}
	}
	s.UpdatedAt, s.DecidedAt, s.FinishedAt = min(s.UpdatedAt, early), min(s.DecidedAt, early), min(s.FinishedAt, early)
	s.Retries = min(s.Retries, 1)
	return s
}
