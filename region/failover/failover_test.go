package failover

import (
	"math/rand/v2"
	"testing"
	"time"

	"github.com/lockstep-tx/lockstep/region/slot"
)

// model is the arbiter and two regions that come to rest, arrive and undo whenever they like.
type model struct {
	owners slot.Map
	now    int64
	runs   Run // as it is written
	given  map[int]bool
}

func newModel(kind Kind, n int) *model {
	m := &model{now: 1, given: map[int]bool{}}
	var slots []int
	for i := range slot.Count {
		m.owners[i] = slot.Owner{Region: "east", Epoch: slot.Initial(1), Status: slot.Active}
		if i < n {
			slots = append(slots, i)
		}
	}
	m.runs = Run{Plan: Plan{ID: "op", Kind: kind, From: "east", To: "west", Slots: slots, Batch: 4, DeadlineMillis: 1000, Who: "me"}, Status: Running}
	return m
}

// region lets the world go on by one random step.
func (m *model) region(t *testing.T) {
	t.Helper()
	m.now += rand.Int64N(20)
	n := rand.IntN(len(m.runs.Plan.Slots))
	o := m.owners[n]
	var next slot.Owner
	var err error
	switch {
	case o.Status != slot.Active && m.now > o.DeadlineMillis && rand.IntN(2) == 0:
		next, err = o.Undo()
	case o.Status == slot.Draining:
		next, err = o.Close(slot.SealOf(o.Epoch, 1, nil))
	default:
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	m.owners[n] = next
}

// tool makes one step, and dies before or after its act as often as not.
func (m *model) tool(t *testing.T) Act {
	t.Helper()
	s := Next(m.runs, Observed{AtMillis: m.now, Owners: &m.owners,
		Reached: func(int) bool { return rand.IntN(2) == 0 }, Serves: func(int) bool { return rand.IntN(2) == 0 }})
	m.runs = s.Run
	if rand.IntN(10) == 0 {
		return s.Act // killed between the record and the act
	}
	for _, n := range s.Slots {
		if rand.IntN(20) == 0 {
			return s.Act // killed in the middle
		}
		o := m.owners[n]
		var next slot.Owner
		var err error
		switch s.Act {
		case Drain:
			_, to := s.Run.Direction()
			next, err = o.Drain(to, "op", time.UnixMilli(s.DeadlineMillis))
		case Give:
			next, err = o.Give(map[string]int{"east": 1, "west": 2}[o.To])
		case Undo:
			next, err = o.Undo()
		default:
			t.Fatalf("act %v names slots", s.Act)
		}
		if err != nil {
			t.Fatalf("%v of slot %d: %v (%+v)", s.Act, n, err, o)
		}
		m.owners[n] = next
	}
	return s.Act
}

func TestAnOperationEndsWhateverIsLostOnTheWay(t *testing.T) {
	done, aborted := 0, 0
	for range 400 {
		kind := []Kind{Handover, Failback, Drill}[rand.IntN(3)]
		m := newModel(kind, 10)
		wantAbort := rand.IntN(4) == 0
		for i := 0; !m.runs.Status.Ended(); i++ {
			if i > 20_000 {
				t.Fatalf("it does not end: %+v", m.runs)
			}
			if rand.IntN(2) == 0 {
				m.region(t)
			} else {
				m.tool(t)
			}
			if wantAbort && i == 60 && m.runs.Status == Running {
				m.runs.Status = Aborting
			}
			onTheWay := 0
			for _, o := range m.owners {
				if o.Status != slot.Active {
					onTheWay++
				}
			}
			if onTheWay > m.runs.Plan.Batch {
				t.Fatalf("%d slots are on their way, a batch has %d", onTheWay, m.runs.Plan.Batch)
			}
		}
		for range 3 { // what is still draining when the tool gave up undoes itself
			m.now += 10_000
			for range 200 {
				m.region(t)
			}
		}
		want := "west"
		if kind == Drill {
			want = "east"
		}
		for _, n := range m.runs.Plan.Slots {
			if o := m.owners[n]; m.runs.Status == Done && (o.Region != want || o.Status != slot.Active) {
				t.Fatalf("a %s is done and slot %d is %+v", kind, n, o)
			}
		}
		if m.runs.Status == Done {
			done++
		} else {
			aborted++
		}
	}
	if done < 100 || aborted < 20 {
		t.Errorf("%d done, %d aborted: not both were tried", done, aborted)
	}
}

func TestASlotIsGivenOnlyWhenTheTargetHasEverything(t *testing.T) {
	m := newModel(Handover, 2)
	s := Next(m.runs, Observed{AtMillis: 5, Owners: &m.owners})
	if s.Act != Drain || len(s.Slots) != 2 || s.DeadlineMillis != 1005 {
		t.Fatalf("%+v", s)
	}
	for n := range 2 {
		d, _ := m.owners[n].Drain("west", "op", time.UnixMilli(1005))
		m.owners[n], _ = d.Close(slot.SealOf(d.Epoch, 3, nil))
	}
	o := Observed{AtMillis: 6, Owners: &m.owners, Reached: func(n int) bool { return n == 1 }, Serves: func(int) bool { return true }}
	if s = Next(s.Run, o); s.Act != Give || len(s.Slots) != 1 || s.Slots[0] != 1 {
		t.Fatalf("%+v", s)
	}
	o.Reached = func(int) bool { return false }
	if s = Next(s.Run, o); s.Act != Wait {
		t.Fatalf("%+v", s)
	}
}

func TestAForeignOperationIsNotTouched(t *testing.T) {
	m := newModel(Handover, 2)
	m.owners[0], _ = m.owners[0].Drain("north", "another", time.UnixMilli(9))
	s := Next(m.runs, Observed{AtMillis: 5, Owners: &m.owners})
	if s.Run.Status != Aborting || s.Act != Save {
		t.Fatalf("%+v", s)
	}
	if s = Next(s.Run, Observed{AtMillis: 6, Owners: &m.owners}); s.Act != Finish || s.Run.Status != Aborted {
		t.Fatalf("%+v", s)
	}
}

func TestAPausedRunStopsAtTheBoundary(t *testing.T) {
	m := newModel(Handover, 8)
	m.runs.Status = Paused
	if s := Next(m.runs, Observed{AtMillis: 5, Owners: &m.owners}); s.Act != Wait {
		t.Fatalf("%+v", s)
	}
}

func TestAPlanIsCheckedAndItsHashIsItsOwn(t *testing.T) {
	good := newModel(Handover, 3).runs.Plan
	if err := good.Check(); err != nil {
		t.Fatal(err)
	}
	h := good.Hash()
	for name, spoil := range map[string]func(*Plan){
		"kind": func(p *Plan) { p.Kind = "x" }, "to": func(p *Plan) { p.To = "east" }, "slots": func(p *Plan) { p.Slots = nil },
		"twice": func(p *Plan) { p.Slots = []int{1, 1} }, "batch": func(p *Plan) { p.Batch = 0 }, "deadline": func(p *Plan) { p.DeadlineMillis = 1 },
		"who": func(p *Plan) { p.Who = "" },
	} {
		p := good
		spoil(&p)
		if p.Check() == nil {
			t.Errorf("%s: not refused", name)
		}
		if p.Hash() == h && name != "who" { // the same plan, whoever carries it out
			t.Errorf("%s: the same hash", name)
		}
	}
}
