// Package clock is the coordinator's time: it starts from the machine's clock and goes on by the monotonic one, so
// that it never goes back; a debug clock can be moved forward. It serves timers and time stamps, never safety.
package clock

import (
	"sync/atomic"
	"time"
)

// Clock is the coordinator's time. Safe for concurrent use.
type Clock struct {
	start  time.Time
	offset atomic.Int64 // nanoseconds
}

// New makes a clock that shows the machine's time now.
func New() *Clock { return &Clock{start: time.Now()} }

// Now is the time.
func (c *Clock) Now() time.Time {
	return c.start.Add(time.Since(c.start) + time.Duration(c.offset.Load()))
}

// NowMillis is Now in unix milliseconds.
func (c *Clock) NowMillis() int64 { return c.Now().UnixMilli() }

// Advance moves the clock forward by d, which must not be negative.
func (c *Clock) Advance(d time.Duration) { c.offset.Add(int64(max(0, d))) }
