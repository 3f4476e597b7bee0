package tap

import (
	"net/http"
	"testing"
)

// TestATrapStopsOneCallAtItsPoint: before the participant is asked, or after it has answered; the next call goes through.
func TestATrapStopsOneCallAtItsPoint(t *testing.T) {
	for _, after := range []bool{false, true} {
		k, p := newTap(t)
		trap := NewTrap(after, func(c *Call) bool { return c.Op == "confirm" })
		k.Arm(trap)
		if resp, err := call(t, k, "g", "try", 101); err != nil || resp.StatusCode != http.StatusOK {
			t.Fatalf("another call is stopped: %v", err)
		}
		done := make(chan error, 1)
		go func() {
			_, err := call(t, k, "g", "confirm", 101)
			done <- err
		}()
		c := <-trap.Caught()
		if asked := p.count("g/confirm") == 1; c.Gid != "g" || asked != after || (c.Status == http.StatusOK) != after {
			t.Errorf("after=%v: %+v is caught, and the participant was asked: %v", after, c, asked)
		}
		if resp, err := call(t, k, "h", "confirm", 101); err != nil || resp.StatusCode != http.StatusOK {
			t.Errorf("a second call is stopped: %v", err)
		}
		trap.Let(false)
		if err := <-done; err == nil {
			t.Errorf("after=%v: the caller was answered", after)
		}
		want := map[bool]Kind{false: Dropped, true: Lost}[after]
		if n := k.Count(func(c *Call) bool { return c.Gid == "g" && c.Kind == want }); n != 1 {
			t.Errorf("after=%v: %d calls are written down as %s", after, n, want)
		}
	}
}

func TestWhatATrapLetsGoIsAnswered(t *testing.T) {
	k, p := newTap(t)
	trap := NewTrap(false, func(c *Call) bool { return c.Op == "try" })
	k.Arm(trap)
	trap.Let(true)
	if resp, err := call(t, k, "g", "try", 101); err != nil || resp.StatusCode != http.StatusOK || p.count("g/try") != 1 {
		t.Errorf("%v, %d calls", err, p.count("g/try"))
	}
}
