package scenario

import "testing"

func TestOnlyAnIdleMachineIsAskedForARate(t *testing.T) {
	for _, c := range []struct {
		shared     bool
		idle, want float64
	}{{false, 118, 118}, {true, 118, 1}, {true, 0, 0}} {
		r := running{o: Options{Shared: c.shared}}
		if got := r.wanted(c.idle); got != c.want {
			t.Errorf("shared %v: %.0f wanted of %.0f, not %.0f", c.shared, got, c.idle, c.want)
		}
	}
}
