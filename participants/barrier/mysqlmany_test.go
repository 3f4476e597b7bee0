//go:build servers

package barrier_test

import (
	"database/sql"
	"fmt"
	"testing"
	"time"

	"github.com/lockstep-tx/lockstep/participants/barrier"
)

// Rule: while a batch is under way, another with gids between its own goes on, also where the table is so small that to
// read it whole would be less work.
func TestABatchLocksNothingBetweenItsMembers(t *testing.T) {
	onServers(t, func(t *testing.T, d barrier.Dialect) {
		c := newCounter(t, d)
		var theirs, ours []*barrier.Call
		for n := range 16 {
			gid, op := fmt.Sprintf("between-%02d", n), "try"
			if n < 8 {
				if _, err := c.b.Do(t.Context(), call("tcc", gid, "try", 1), func(*sql.Tx) error { return nil }); err != nil {
					t.Fatal(err)
				}
				op = "confirm"
			}
			if n%2 == 0 {
				theirs = append(theirs, call("tcc", gid, op, 1))
			} else {
				ours = append(ours, call("tcc", gid, op, 1))
			}
		}
		entered, leave, left := make(chan struct{}, len(theirs)), make(chan struct{}), make(chan []barrier.Result)
		go func() {
			left <- c.b.DoAll(t.Context(), time.Minute, theirs, func(int, *sql.Tx) error {
				entered <- struct{}{}
				<-leave
				return nil
			})
		}()
		<-entered
		done := make(chan []barrier.Result, 1)
		go func() {
			done <- c.b.DoAll(t.Context(), time.Minute, ours, func(int, *sql.Tx) error { return nil })
		}()
		select {
		case results := <-done:
			done <- results
		case <-time.After(5 * time.Second):
			t.Error("the second batch waits for the first")
		}
		close(leave)
		for _, r := range append(<-left, <-done...) {
			if r.Err != nil || r.Outcome != barrier.Done {
				t.Error(r)
			}
		}
	})
}
