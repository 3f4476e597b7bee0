package xa

import (
	"testing"
	"time"
)

// A payment that is still open when the window ends counts with its age: those that wait longest never end inside it.
func TestWindowCountsOpenPaymentsWithTheirAge(t *testing.T) {
	at := func(ms int) time.Time { return time.UnixMilli(int64(1_000_000 + ms)) }
	c := &clients{all: []*payment{
		{began: at(0), ended: at(90)},   // before the window
		{began: at(50), ended: at(150)}, // ends in it
		{began: at(120), ended: at(1200)},
		{began: at(200)},
		{began: at(1150)}, // begins after it
	}}
	got := c.window(at(100), at(1100))
	if got.PerSecond != 1 || got.Open != 2 || got.P99 != 980*time.Millisecond {
		t.Errorf("%.1f payments/s, %d open, p99 %s; want 1, 2, 980ms", got.PerSecond, got.Open, got.P99)
	}
}
