package txn

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"text/tabwriter"

	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "write testdata/transitions.golden and docs/state-machine.md anew")

// matrixState is one representative of every mode and phase that can occur.
type matrixState struct {
	name string
	s    State
}

const (
	t0 = int64(1_000_000)
	t1 = t0 + 1_000
)

func mustStep(s State, evs ...Event) State {
	for _, ev := range evs {
		next, _, err := Step(s, ev)
		if err != nil {
			panic(fmt.Sprintf("%T: %v", ev, err))
		}
		s = next
	}
	return s
}

func gidState(gid Gid) State { return State{Gid: gid} }

func branchOf(id BranchID) Branch {
	return Branch{ID: id, Confirm: "http://p/" + string(id) + "/confirm", Cancel: "http://p/" + string(id) + "/cancel"}
}

func tried(id BranchID) Branch {
	b := branchOf(id)
	b.Try = "http://p/" + string(id) + "/try"
	return b
}

func sagaSpec() Spec {
	a, b := Branch{ID: "01", Try: "http://p/1", Cancel: "http://p/1c"}, Branch{ID: "02", Try: "http://p/2", Cancel: "http://p/2c", After: []int{0}}
	return Spec{Mode: ModeSaga, Branches: []Branch{a, b}}
}

func msgSpec() Spec {
	return Spec{Mode: ModeMsg, QueryURL: "http://p/query", Branches: []Branch{{ID: "01", Confirm: "http://p/1"}}}
}

func matrixStates() []matrixState {
	var out []matrixState
	add := func(name string, s State) State { out = append(out, matrixState{name, s}); return s }
	add("none", gidState("g"))
	for _, m := range []Mode{ModeTCC, ModeXA} {
		name := m.String()
		bare := add(name+" prepared, no branch", mustStep(gidState("g"), Prepare{At: t0, Epoch: 1, Spec: Spec{Mode: m}}))
		p := add(name+" prepared", mustStep(bare, Register{At: t0, Epoch: 1, Mode: m, Branch: branchOf("01")}))
		add(name+" prepared, stopped", mustStep(p, Stop{At: t0}))
		c := add(name+" committing", mustStep(p, Submit{At: t0, Epoch: 1, Spec: Spec{Mode: m}}))
		add(name+" committing, stopped", mustStep(c, Stop{At: t0}))
		add(name+" committed", mustStep(c, Reply{At: t0, Epoch: 1, Branch: "01", Op: c.SecondOp(0, true), Attempt: 1, Outcome: Done}))
		a := add(name+" aborting", mustStep(p, Abort{At: t0, Epoch: 1, Reason: "no"}))
		add(name+" aborted", mustStep(a, Reply{At: t0, Epoch: 1, Branch: "01", Op: a.SecondOp(0, false), Attempt: 1, Outcome: Done}))
	}
	ex := add("tcc running (driven)", mustStep(gidState("g"), Execute{At: t0, Epoch: 1, Spec: Spec{Mode: ModeTCC, Digest: "d", Branches: []Branch{tried("01")}}}))
	add("tcc running, other epoch", func() State { s := ex; s.Epoch = 0; return s }())
	add("saga prepared", mustStep(gidState("g"), Prepare{At: t0, Epoch: 1, Spec: sagaSpec()}))
	sr := add("saga running", mustStep(gidState("g"), Submit{At: t0, Epoch: 1, Spec: sagaSpec()}))
	add("saga aborting", mustStep(sr, Reply{At: t0, Epoch: 1, Branch: "01", Op: OpAction, Attempt: 1, Outcome: Refused, Text: "no"}))
	add("saga committed", mustStep(sr, Reply{At: t0, Epoch: 1, Branch: "01", Op: OpAction, Attempt: 1, Outcome: Done}, Reply{At: t0, Epoch: 1, Branch: "02", Op: OpAction, Attempt: 1, Outcome: Done}))
	mp := add("msg prepared", mustStep(gidState("g"), Prepare{At: t0, Epoch: 1, Spec: msgSpec()}))
	mc := add("msg committing", mustStep(mp, Submit{At: t0, Epoch: 1, Spec: msgSpec()}))
	add("msg committed", mustStep(mc, Reply{At: t0, Epoch: 1, Branch: "01", Op: OpAction, Attempt: 1, Outcome: Done}))
	add("msg aborted", mustStep(mp, Abort{At: t0, Epoch: 1}))
	doubtful := func(s State) State { s.InDoubt, s.Branches = true, slices.Clone(s.Branches); return Reloaded(s) }
	add("tcc prepared, in doubt", doubtful(mustStep(gidState("g"), Prepare{At: t0, Epoch: 1, Spec: Spec{Mode: ModeTCC}}, Register{At: t0, Epoch: 1, Mode: ModeTCC, Branch: branchOf("01")})))
	add("tcc running, in doubt", doubtful(ex))
	add("msg prepared, in doubt", doubtful(mp))
	wp := add("workflow prepared", mustStep(gidState("g"), Prepare{At: t0, Epoch: 1, Spec: Spec{Mode: ModeWorkflow, QueryURL: "http://p/cb"}}))
	add("workflow committed", mustStep(wp, EndWorkflow{At: t0, Epoch: 1, Commit: true}))
	add("workflow aborted", mustStep(wp, EndWorkflow{At: t0, Epoch: 1, Reason: "no"}))
	return out
}

type matrixEvent struct {
	name string
	of   func(s *State) Event
}

// matrixEvents is every event, with the variants that matter. Replies answer what the state has in flight.
func matrixEvents() []matrixEvent {
	late := t0 + DefaultTimeout.Milliseconds()
	modeOf := func(s *State) Mode {
		if s.Phase == PhaseNone {
			return ModeTCC
		}
		return s.Mode
	}
	reply := func(out Outcome) func(*State) Event {
		return func(s *State) Event {
			r := Reply{At: t1, Epoch: 1, Branch: "01", Op: s.ForwardOp(), Attempt: 1, Outcome: out, Text: "text"}
			if s.Phase.Decided() && len(s.Branches) > 0 {
				r.Op = s.SecondOp(0, s.Phase.Commit())
			}
			if s.Phase == PhasePrepared && s.Query.Status == OpPending {
				r.Branch, r.Op = CheckBackBranch, s.queryOp()
			}
			return r
		}
	}
	return []matrixEvent{
		{"prepare", func(s *State) Event { return Prepare{At: t1, Epoch: 1, Spec: Spec{Mode: modeOf(s), Digest: s.Digest}} }},
		{"prepare, other mode", func(s *State) Event {
			m := ModeXA
			if s.Mode == ModeXA {
				m = ModeTCC
			}
			return Prepare{At: t1, Epoch: 1, Spec: Spec{Mode: m}}
		}},
		{"register new", func(s *State) Event { return Register{At: t1, Epoch: 1, Mode: modeOf(s), Branch: branchOf("02")} }},
		{"register again", func(s *State) Event { return Register{At: t1, Epoch: 1, Mode: modeOf(s), Branch: branchOf("01")} }},
		{"register other body", func(s *State) Event {
			b := branchOf("01")
			b.Confirm += "/other"
			return Register{At: t1, Epoch: 1, Mode: modeOf(s), Branch: b}
		}},
		{"register step", func(*State) Event {
			return RegisterStep{At: t1, Epoch: 1, Step: WorkflowStep{Branch: "01", Op: "action"}}
		}},
		{"submit", func(s *State) Event { return Submit{At: t1, Epoch: 1, Spec: Spec{Mode: modeOf(s)}} }},
		{"submit, other epoch", func(s *State) Event { return Submit{At: t1, Epoch: 2, Spec: Spec{Mode: modeOf(s)}} }},
		{"execute", func(s *State) Event {
			return Execute{At: t1, Epoch: 1, Spec: Spec{Mode: ModeTCC, Digest: "d", Branches: []Branch{tried("01")}}}
		}},
		{"end workflow commit", func(*State) Event { return EndWorkflow{At: t1, Epoch: 1, Commit: true} }},
		{"end workflow abort", func(*State) Event { return EndWorkflow{At: t1, Epoch: 1} }},
		{"abort", func(*State) Event { return Abort{At: t1, Epoch: 1, Reason: "why"} }},
		{"resolve commit", func(*State) Event { return Resolve{At: t1, Epoch: 2, Commit: true, Reason: "why"} }},
		{"resolve abort", func(*State) Event { return Resolve{At: t1, Epoch: 2, Reason: "why"} }},
		{"resolve without a reason", func(*State) Event { return Resolve{At: t1, Epoch: 2} }},
		{"stop", func(*State) Event { return Stop{At: t1, Epoch: 1} }},
		{"retry", func(*State) Event { return Retry{At: t1, Epoch: 1} }},
		{"reply done", reply(Done)},
		{"reply refused", reply(Refused)},
		{"reply ongoing", reply(Ongoing)},
		{"reply unknown", reply(Unknown)},
		{"reply stale", reply(Stale)},
		{"reply deferred", reply(Deferred)},
		{"tick", func(*State) Event { return Tick{At: t1, Epoch: 1} }},
		{"tick at the deadline", func(*State) Event { return Tick{At: late, Epoch: 1} }},
	}
}

func showEffects(effects []Effect) string {
	var out []string
	for _, e := range effects {
		switch f := e.(type) {
		case Save:
			w := "SAVE"
			if f.Decision {
				w += "+decision"
			}
			if f.Finish {
				w += "+finish"
			}
			out = append(out, w)
		case Note:
			out = append(out, "note")
		case Invoke:
			out = append(out, fmt.Sprintf("call %s/%s#%d", f.Branch, f.Op, f.Attempt))
		case Wake:
			out = append(out, fmt.Sprintf("wake+%dms", f.At-t0))
		case Answer:
			out = append(out, "answer:"+[]string{"", "accepted", "pass", "decided", "settled", "finished"}[f.Milestone])
		}
	}
	return strings.Join(out, " ")
}

func matrix() string {
	var b strings.Builder
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "STATE\tEVENT\tNEXT\tEFFECTS, IN ORDER")
	for _, st := range matrixStates() {
		for _, ev := range matrixEvents() {
			next, effects, err := Step(st.s, ev.of(&st.s))
			to := next.Phase.String()
			if next.Stopped {
				to += ", stopped"
			}
			if next.InDoubt {
				to += ", in doubt"
			}
			var te *Error
			switch {
			case errors.As(err, &te):
				to, effects = "-", nil
				fmt.Fprintf(w, "%s\t%s\t-\trefused: %s\n", st.name, ev.name, te.Code)
				continue
			case len(effects) == 0 && cmp.Equal(next, st.s):
				to = "="
			}
			fmt.Fprintf(w, "%s\t%s\t%s\t%s\n", st.name, ev.name, to, showEffects(effects))
		}
	}
	w.Flush()
	var lines []string
	for _, l := range strings.Split(b.String(), "\n") {
		lines = append(lines, strings.TrimRight(l, " "))
	}
	return strings.Join(lines, "\n")
}

const (
	goldenFile = "testdata/transitions.golden"
	docFile    = "../../docs/state-machine.md"
)

const docHead = `# The state machine

Generated from coordinator/txn by ` + "`go test ./coordinator/txn -run TestMatrix -update`" + `. Every state that can occur meets every event;
` + "`=`" + ` means that nothing changed, ` + "`-`" + ` that the event was refused. What stands behind SAVE in a line happens only when the state is
durable (G2). wake+Nms is the time of the next tick, from the begin.

` + "```\n"

// TestMatrix holds the protocol to the last cell: a reader audits it in testdata/transitions.golden.
func TestMatrix(t *testing.T) {
	got := matrix()
	doc := docHead + got + "```\n"
	if *update {
		for file, text := range map[string]string{goldenFile: got, docFile: doc} {
			if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
	for file, text := range map[string]string{goldenFile: got, docFile: doc} {
		want, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(string(want), text); diff != "" {
			t.Errorf("%s is not what the code does (-file +code); if it should be: go test ./coordinator/txn -run TestMatrix -update\n%s", file, diff)
		}
	}
}
