// Package admin is the API of operators and of the command line: JSON over HTTP on the admin address.
//
// The law it keeps: every act is logged with who did it, every refusal says what to do next, and a list never leaves
// anything out in silence. It is tested through the command line.
package admin

import (
	"fmt"
	"sort"
	"strings"

	"github.com/lockstep-tx/lockstep/coordinator/engine"
	"github.com/lockstep-tx/lockstep/coordinator/record"
	"github.com/lockstep-tx/lockstep/coordinator/txn"
	"github.com/lockstep-tx/lockstep/region/slot"
)

// Transaction is a transaction as operators see it. Times are unix milliseconds, 0 where there is none.
type Transaction struct {
	Gid        string   `json:"gid"`
	Mode       string   `json:"mode"`
	Status     string   `json:"status"` // the phase, stopped or in-doubt
	Phase      string   `json:"phase"`
	Slot       int      `json:"slot"`
	Epoch      uint64   `json:"epoch"`
	BegunAt    int64    `json:"begun_at"`
	UpdatedAt  int64    `json:"updated_at"`
	DecidedAt  int64    `json:"decided_at,omitempty"`
	FinishedAt int64    `json:"finished_at,omitempty"`
	NextAt     int64    `json:"next_at,omitempty"` // when something is due next
	Reason     string   `json:"reason,omitempty"`
	Fails      int      `json:"fails"` // in a row, of the call that fails most
	Branches   []Branch `json:"branches,omitempty"`
	Timeline   []Moment `json:"timeline,omitempty"`
	Next       string   `json:"next,omitempty"` // a command to paste, where an act is called for
	// Bodies: false where only the outcome is still kept.
	Bodies bool `json:"bodies"`
}

// Decided is commit or abort; "" before either.
func (t *Transaction) Decided() string {
	switch p, _ := txn.ParsePhase(t.Phase); {
	case !p.Decided():
		return ""
	case p.Commit():
		return "commit"
	}
	return "abort"
}

// Branch is one participant's part.
type Branch struct {
	ID        string `json:"id"`
	Op        string `json:"op"` // what is owed or was done last
	URL       string `json:"url"`
	Status    string `json:"status"`
	Attempts  int    `json:"attempts"`
	Fails     int    `json:"fails"`
	NextAt    int64  `json:"next_at,omitempty"`
	LastError string `json:"last_error,omitempty"`
}

// Moment is one line of a transaction's story.
type Moment struct {
	At      int64  `json:"at"`
	What    string `json:"what"` // begun, called, decided, finished, taken over, missing, left out
	Branch  string `json:"branch,omitempty"`
	Op      string `json:"op,omitempty"`
	Attempt int    `json:"attempt,omitempty"`
	TookMS  int64  `json:"took_ms,omitempty"`
	TookUS  int64  `json:"took_us,omitempty"`
	Outcome string `json:"outcome,omitempty"`
	Text    string `json:"text,omitempty"`
}

// ViewOf makes the view of a transaction; full adds branches and the timeline.
func ViewOf(rep *engine.Reply, full bool) Transaction {
	s := &rep.State
	t := Transaction{
		Gid: string(s.Gid), Mode: s.Mode.String(), Status: s.Phase.String(), Phase: s.Phase.String(), Slot: slot.Of(string(s.Gid)), Epoch: s.Epoch,
		BegunAt: s.BegunAt, UpdatedAt: s.UpdatedAt, DecidedAt: s.DecidedAt, FinishedAt: s.FinishedAt, Reason: s.Reason, Fails: s.MaxFails(), Bodies: !rep.Trimmed,
	}
	if next := txn.NextWake(s); next > 1 {
		t.NextAt = next
	}
	if s.Stopped {
		t.Status = "stopped"
	}
	if s.InDoubt {
		t.Status = "in-doubt"
	}
	t.Next = next(s, full)
	if !full {
		return t
	}
	for i := range s.Branches {
		t.Branches = append(t.Branches, branchOf(s, i))
	}
	t.Timeline = timelineOf(rep)
	return t
}

// next is the command that the state calls for; shown says that its reader sees what fails already.
func next(s *txn.State, shown bool) string {
	switch stuck := s.Phase.Decided() && !s.Phase.Finished() && s.MaxFails() >= engine.StuckFails; {
	case s.InDoubt:
		return fmt.Sprintf("lockstep tx resolve %s --abort --reason TEXT  # or --commit; first docs/runbooks/in-doubt.md", word(string(s.Gid)))
	case s.Stopped:
		return "lockstep tx retry " + word(string(s.Gid))
	case stuck && shown:
		return fmt.Sprintf("lockstep tx retry %s  # once the participant that fails is mended", word(string(s.Gid)))
	case stuck:
		return fmt.Sprintf("lockstep tx show %s  # it says what fails", word(string(s.Gid)))
	}
	return ""
}

// word is a gid as an argument of a command: behind -- where it would pass for a flag.
func word(gid string) string {
	if strings.HasPrefix(gid, "-") {
		return "-- " + quote(gid)
	}
	return quote(gid)
}

// quote makes a word that a shell takes as one.
func quote(s string) string {
	plain := s != ""
	for _, r := range s {
		if !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '-' || r == '_' || r == '.' || r == ':' || r == '/') {
			plain = false
		}
	}
	if plain {
		return s
	}
	out := "'"
	for _, r := range s {
		if r == '\'' {
			out += `'\''`
		} else {
			out += string(r)
		}
	}
	return out + "'"
}

func branchOf(s *txn.State, i int) Branch {
	b := &s.Branches[i]
	out := Branch{ID: string(b.ID)}
	op, st := &b.Two, ""
	if s.Phase.Decided() {
		out.Op, out.URL = s.SecondOp(i, s.Phase.Commit()).String(), s.SecondURL(i)
		if b.Two.Status == txn.OpSkipped {
			op, out.Op, out.URL = &b.One, s.ForwardOp().String(), b.Try
		}
	} else {
		op, out.Op, out.URL = &b.One, s.ForwardOp().String(), b.Try
		if s.Phase == txn.PhasePrepared {
			st = "registered"
		}
	}
	out.Status, out.Attempts, out.Fails, out.NextAt, out.LastError = op.Status.String(), op.Attempts, op.Fails, op.NextAt, op.LastError
	if op.InFlight {
		out.Status = "calling"
	}
	if st != "" {
		out.Status = st
	}
	return out
}

// timelineOf tells the story in order. A call that was counted and whose answer nobody remembers is missing: the
// coordinator crashed before it was saved. It is marked, never invented.
func timelineOf(rep *engine.Reply) []Moment {
	s, tl := &rep.State, &rep.Timeline
	out := []Moment{{At: s.BegunAt, What: "begun"}}
	type key struct {
		b  txn.BranchID
		op txn.Op
	}
	seen := map[key]map[int]bool{}
	for _, a := range tl.Attempts {
		k := key{a.Branch, a.Op}
		if seen[k] == nil {
			seen[k] = map[int]bool{}
		}
		seen[k][a.Number] = true
		out = append(out, Moment{
			At: a.StartedAt, What: "called", Branch: string(a.Branch), Op: a.Op.String(), Attempt: a.Number, TookMS: a.Took.Milliseconds(),
			TookUS: a.Took.Microseconds(), Outcome: a.Outcome.String(), Text: a.Text,
		})
	}
	missing := func(b txn.BranchID, op txn.Op, st *txn.OpState, after int64) {
		for n := 1; n <= st.Attempts && tl.Dropped == 0; n++ {
			if !seen[key{b, op}][n] && !(st.InFlight && n == st.Attempts) {
				out = append(out, Moment{At: takeoverAfter(tl, after), What: "missing", Branch: string(b), Op: op.String(), Attempt: n, Text: "the call may have been made; a crash forgot its answer"})
			}
		}
	}
	for i := range s.Branches {
		b := &s.Branches[i]
		if b.One.Attempts > 0 {
			missing(b.ID, s.ForwardOp(), &b.One, s.BegunAt)
		}
		if b.Two.Attempts > 0 {
			missing(b.ID, s.SecondOp(i, s.Phase.Commit()), &b.Two, s.DecidedAt)
		}
	}
	if tl.Dropped > 0 {
		out = append(out, Moment{At: s.UpdatedAt, What: "left out", Text: fmt.Sprintf("%d calls in the middle are not kept", tl.Dropped)})
	}
	for _, t := range tl.Takeovers {
		out = append(out, Moment{At: t.At, What: "taken over", Text: "by coordinator " + t.Holder + "; calls made since the last save before are not known"})
	}
	if s.DecidedAt != 0 {
		word := "abort"
		if s.Phase.Commit() {
			word = "commit"
		}
		out = append(out, Moment{At: s.DecidedAt, What: "decided", Outcome: word, Text: s.Reason})
	}
	sort.SliceStable(out, func(i, j int) bool { return out[i].At < out[j].At })
	if s.FinishedAt != 0 {
		out = append(out, Moment{At: s.FinishedAt, What: "finished", Outcome: s.Phase.String()})
	}
	return out
}

// takeoverAfter is when the coordinator came that found a call without an answer.
func takeoverAfter(tl *record.Timeline, after int64) int64 {
	for _, t := range tl.Takeovers {
		if t.At >= after {
			return t.At
		}
	}
	return after
}
