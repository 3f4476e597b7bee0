package failover

import (
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/lockstep-tx/lockstep/region/slot"
)

// newLoss is a model whose east is lost: nobody there does anything any more.
func newLoss(n int) *model {
	m := newModel(Handover, n)
	p := &m.runs.Plan
	p.Kind, p.Batch = Forced, slot.Count
	p.Loss = &Loss{Evidence: Power, Risk: slot.Risk{Policy: slot.Block}, Exposure: "x"}
	for _, n := range p.Slots {
		p.Loss.Epochs = append(p.Loss.Epochs, m.owners[n].Epoch)
	}
	return m
}

// force makes one step of a forced failover, and dies before or in its act as often as not.
func (m *model) force(t *testing.T) {
	t.Helper()
	s := Next(m.runs, Observed{AtMillis: m.now, Owners: &m.owners,
		Reached: func(int) bool { return rand.IntN(2) == 0 }, Serves: func(int) bool { return rand.IntN(2) == 0 }})
	m.runs = s.Run
	m.now++
	if rand.IntN(6) == 0 {
		return
	}
	for _, n := range s.Slots {
		if rand.IntN(10) == 0 {
			return
		}
		o := m.owners[n]
		var next slot.Owner
		var err error
		switch s.Act {
		case Take:
			next, err = o.Take("west", "op", 2, m.runs.Plan.Loss.Risk)
		case Bind:
			next, err = o.Bound(&slot.Seal{Epoch: o.Lost, Seq: 3, Forced: true})
		case Serve:
			next, err = o.Serve()
		default:
			t.Fatalf("a forced failover does %v to slots", s.Act)
		}
		if err != nil {
			t.Fatalf("%v of slot %d: %v (%+v)", s.Act, n, err, o)
		}
		if next.Status == slot.Active && (next.Seal == nil || next.Seal.Epoch != next.Lost) {
			t.Fatalf("slot %d is served without the seal of the epoch that it was taken from: %+v", n, next)
		}
		m.owners[n] = next
	}
}

// TestAForcedFailoverEndsWhateverIsLostOnTheWay: once a slot is taken there is no way back, so that also an abort ends with what
// was taken being served.
func TestAForcedFailoverEndsWhateverIsLostOnTheWay(t *testing.T) {
	done, aborted, untouched := 0, 0, 0
	for range 400 {
		m := newLoss(10)
		abortAt := rand.IntN(40)
		for i := 0; !m.runs.Status.Ended(); i++ {
			if i > 20_000 {
				t.Fatalf("it does not end: %+v", m.runs)
			}
			if i == abortAt && abortAt < 10 {
				m.runs.Status, m.runs.Failure = Aborting, "an operator"
			}
			m.force(t)
		}
		taken := 0
		for n, o := range m.owners {
			switch {
			case n >= 10 || o.Region == "east":
				if o.Epoch != slot.Initial(1) {
					t.Fatalf("slot %d was not taken, and is %+v", n, o)
				}
			case o.Status != slot.Active || o.Lost != slot.Initial(1) || o.Risk.Policy != slot.Block:
				t.Fatalf("slot %d was taken, the run is %s, and it is %+v", n, m.runs.Status, o)
			default:
				taken++
			}
		}
		switch {
		case m.runs.Status == Done && taken == 10:
			done++
		case m.runs.Status == Aborted && taken == 0:
			untouched++
		case m.runs.Status == Aborted:
			aborted++
		default:
			t.Fatalf("%s with %d slots taken", m.runs.Status, taken)
		}
	}
	if done == 0 || aborted == 0 || untouched == 0 {
		t.Fatalf("%d done, %d aborted in the middle, %d before anything: too little was seen", done, aborted, untouched)
	}
}

func TestSlotsInOtherHandsAreLeftThere(t *testing.T) {
	m := newLoss(4)
	m.owners[2] = slot.Owner{Region: "north", Epoch: 303, Status: slot.Active}
	for !m.runs.Status.Ended() {
		m.force(t)
	}
	if m.owners[2].Region != "north" || m.runs.Status != Done || !strings.Contains(m.runs.Failure, "[2]") {
		t.Fatalf("%+v, %+v", m.owners[2], m.runs)
	}
}

func TestAForcedPlanSaysWhatItRisks(t *testing.T) {
	good := func() Plan { return newLoss(2).runs.Plan }
	for field, spoil := range map[string]func(*Plan){
		"loss": func(p *Plan) { p.Loss = nil }, "fenced-by": func(p *Plan) { p.Loss.Evidence = "hearsay" }, "at-risk": func(p *Plan) { p.Loss.Risk.Policy = "some" },
		"cap": func(p *Plan) { p.Loss.Risk = slot.Risk{Policy: slot.Limit} }, "epochs": func(p *Plan) { p.Loss.Epochs = p.Loss.Epochs[:1] },
	} {
		p := good()
		if spoil(&p); p.Check() == nil || !strings.HasPrefix(p.Check().Error(), field+":") {
			t.Errorf("%s: %v", field, p.Check())
		}
	}
	p := good()
	if err := p.Check(); err != nil {
		t.Fatal(err)
	}
	h := p.Hash()
	if p.ID = "another"; p.Hash() != h {
		t.Error("the hash is over the operation's id: what was shown is never what is done")
	}
	if p.Loss.Evidence = Network; p.Hash() != h {
		t.Error("the hash is over the evidence: what a dry run shows is never what is done")
	}
	if p.Loss.Exposure = "more"; p.Hash() == h {
		t.Error("the exposure is not in the hash: consent to one loss is consent to any")
	}
}

// TestADeadTargetsSlotsCanBeTakenOn: the target of a forced failover is lost too before it served what it took. Aborted and left,
// the operation ends at once with the slots taken; another one takes them on from the dead target, and says what the first one
// lost, which is worked off by the first region alone.
func TestADeadTargetsSlotsCanBeTakenOn(t *testing.T) {
	m := newLoss(4)
	first := m.owners[m.runs.Plan.Slots[0]].Epoch
	s := Next(m.runs, Observed{AtMillis: 1, Owners: &m.owners})
	if s.Act != Take || len(s.Slots) == 0 {
		t.Fatalf("%+v", s)
	}
	for _, n := range s.Slots {
		o, err := m.owners[n].Take("west", "op", 2, m.runs.Plan.Loss.Risk)
		if err != nil {
			t.Fatal(err)
		}
		m.owners[n] = o
	}
	run := s.Run
	run.Status = Aborting
	if s := Next(run, Observed{AtMillis: 2, Owners: &m.owners}); s.Act == Finish {
		t.Fatal("an abort that does not leave ended with slots that nobody serves")
	}
	run.Leave = true
	if s = Next(run, Observed{AtMillis: 3, Owners: &m.owners}); s.Act != Finish || s.Run.Status != Aborted {
		t.Fatalf("left, it does not end: %+v", s)
	}
	again := newLoss(4).runs
	again.Plan.ID, again.Plan.From, again.Plan.To = "op2", "west", "north"
	for i, n := range again.Plan.Slots {
		again.Plan.Loss.Epochs[i] = m.owners[n].Epoch
	}
	if s = Next(again, Observed{AtMillis: 4, Owners: &m.owners}); s.Act != Take || len(s.Slots) != len(again.Plan.Slots) {
		t.Fatalf("the next region does not take them: %+v", s)
	}
	n := s.Slots[0]
	o, err := m.owners[n].Take("north", "op2", 3, again.Plan.Loss.Risk)
	if err != nil || o.Region != "north" || o.Lost != first || o.Epoch.Region() != 3 {
		t.Fatalf("%+v, %v; the epoch that was lost is %d", o, err, first)
	}
}
