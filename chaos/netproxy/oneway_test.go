package netproxy

import "testing"

// TestACutInOneDirectionLetsTheOtherPass: what is asked arrives and its answer does not, or the other way round; nothing
// new comes about until the healing, and what was there before ends with it.
func TestACutInOneDirectionLetsTheOtherPass(t *testing.T) {
	for _, d := range []Direction{Forth, Back} {
		e := newEcho(t)
		k := open(t, Route{Name: "one-way", To: e.Addr().String()})
		c := dial(t, k)
		if _, err := say(c, "before", limit); err != nil {
			t.Fatal(err)
		}
		k.CutOneWay(d)
		if got, err := say(c, "during", silence); !timedOut(err) {
			t.Errorf("direction %d: an answer during the cut: %q, %v", d, got, err)
		}
		if arrived := e.has("during"); arrived != (d == Back) {
			t.Errorf("direction %d: what was asked during the cut arrived: %v", d, arrived)
		}
		fresh := dial(t, k)
		if got, err := say(fresh, "fresh", silence); !timedOut(err) || e.has("fresh") {
			t.Errorf("direction %d: a new connection during the cut: %q, %v", d, got, err)
		}
		if n := k.Counters(); n.RefusedBytes == 0 || n.RefusedConns == 0 {
			t.Errorf("direction %d: nothing was refused: %+v", d, n)
		}
		k.Heal()
		if got, err := say(c, "after", limit); err == nil || timedOut(err) {
			t.Errorf("direction %d: a connection with a hole in it goes on: %q, %v", d, got, err)
		}
		if got, err := say(dial(t, k), "healed", limit); err != nil || got != "healed" {
			t.Errorf("direction %d: after the healing: %q, %v", d, got, err)
		}
	}
}
