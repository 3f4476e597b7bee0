package place

import (
	"context"
	"errors"
	"testing"

	"github.com/lockstep-tx/lockstep/coordinator/engine"
	"github.com/lockstep-tx/lockstep/region/slot"
)

// TestWhatWasTakenWaitsForTheSealsBefore: a slot went from east to west by plan, west was lost before it had decided anything, and
// north takes it: north must have east's chain up to its seal, and reads what is open only then (the simulator, seed 5, with
// last-seal-alone).
func TestWhatWasTakenWaitsForTheSealsBefore(t *testing.T) {
	east, west := slot.Seal{Epoch: 101, Seq: 40}, slot.Seal{Epoch: 202, Forced: true}
	own := slot.Seal{Epoch: 3, Seq: 7}
	undone, cut := slot.Seal{Epoch: 101, Seq: 40}, slot.Seal{Epoch: 201, Seq: 38, Forced: true}
	broken := errors.New("the journal is down")
	for _, c := range []struct {
		name    string
		seals   []slot.Seal
		last    slot.Seal
		reached bool
		fails   error
		asked   int
		err     error
		reads   int
	}{
		{name: "east's seal is here", seals: []slot.Seal{own, east, west}, last: west, reached: true, asked: 1, reads: 1},
		{name: "east's seal is not here yet", seals: []slot.Seal{own, east, west}, last: west, asked: 1, err: engine.ErrNotYet},
		{name: "the journal does not say", seals: []slot.Seal{east, west}, last: west, fails: broken, asked: 1, err: broken},
		{name: "nothing before it but our own", seals: []slot.Seal{own, west}, last: west},
		{name: "the same chain", seals: []slot.Seal{{Epoch: 102, Seq: 3}, west}, last: west},
		{name: "it was cut below what had been undone", seals: []slot.Seal{undone, cut, west}, last: west, reached: true, asked: 1, reads: 1},
		{name: "by plan its events have waited", seals: []slot.Seal{east, {Epoch: 202, Seq: 9}}, last: slot.Seal{Epoch: 202, Seq: 9}},
	} {
		t.Run(c.name, func(t *testing.T) {
			asked, reads := 0, 0
			p := &Place{index: 3, cfg: Config{
				Reached: func(_ context.Context, _ int, s *slot.Seal) (bool, error) {
					if asked++; *s == undone && c.last == west && len(c.seals) == 3 && c.seals[1] == cut {
						t.Error("an overtaken seal was asked for")
					}
					return c.reached, c.fails
				},
				Arrivals: func(_ context.Context, moves []engine.Move) ([]engine.Arrival, error) {
					reads++
					return []engine.Arrival{{Live: [][]byte{[]byte("again")}}}, nil
				},
			}}
			out := []engine.Arrival{{Live: [][]byte{[]byte("too early")}}}
			m := engine.Move{Slot: 9, Owner: slot.Owner{Region: "north", Epoch: 303, Status: slot.Active, Lost: 202, Seal: &c.last}}
			if err := p.sinceEarlier(t.Context(), []engine.Move{m}, map[int][]slot.Seal{9: c.seals}, out); err != nil {
				t.Fatal(err)
			}
			if !errors.Is(out[0].Err, c.err) || c.err == nil && out[0].Err != nil || asked != c.asked || reads != c.reads {
				t.Errorf("%v, asked %d times, read again %d times", out[0].Err, asked, reads)
			}
			if reads > 0 && string(out[0].Live[0]) != "again" {
				t.Error("what was read too early stands")
			}
		})
	}
}

// TestAnArbiterOfBeforeTakesNothingBack: one that was restored from a backup says lower epochs than it has said.
func TestAnArbiterOfBeforeTakesNothingBack(t *testing.T) {
	known, before := &slot.Map{}, &slot.Map{}
	known[1] = slot.Owner{Region: "west", Epoch: 302, Lost: 101, Status: slot.Active}
	known[2] = slot.Owner{Region: "west", Epoch: 102, Status: slot.Active}
	before[1] = slot.Owner{Region: "east", Epoch: 101, Status: slot.Active}
	before[2] = slot.Owner{Region: "east", Epoch: 901, Status: slot.Active}
	if n := keepNewer(before, known); n != 1 || !before[1].Equal(known[1]) || before[2].Epoch != 901 {
		t.Fatal(n, before[1], before[2])
	}
	if n := keepNewer(before, nil); n != 0 {
		t.Fatal(n)
	}
}
