package conformance

import (
	"fmt"
	"testing"

	rig "github.com/lockstep-tx/lockstep/coordinator/dtmwire/dtmwiretest"
	"github.com/lockstep-tx/lockstep/coordinator/invoke"
)

// Issue 3, point 12, and D13: with one participant that hangs and one that is dead, every transaction of the others ends
// before a single call of theirs is answered. What counts is the order, not the time.
func TestDeadAndHangingParticipantsSlowNobodyElse(t *testing.T) {
	r, p := start(t, rig.Options{Invoke: invoke.Config{InFlightMax: 2}})
	slow := rig.NewParticipant(t)
	slow.Always("*", "*", rig.Hang)
	saga := func(gid, act string, wait bool) map[string]any {
		return map[string]any{"gid": gid, "trans_type": "saga", "request_timeout": 3600, "wait_result": wait, "steps": []any{map[string]string{"action": act}}, "payloads": []string{"{}"}}
	}
	for i := range 30 {
		post(t, r, "/submit", saga(fmt.Sprintf("hang-http-%d", i), slow.HTTP("act"), false))
		post(t, r, "/submit", saga(fmt.Sprintf("hang-grpc-%d", i), slow.GRPC("Act"), false))
		post(t, r, "/submit", saga(fmt.Sprintf("dead-%d", i), "http://127.0.0.1:1/act", false))
	}
	slow.Await("*", "*", "*", 4) // two per destination: the bulkhead is full
	for i := range 100 {
		gid := fmt.Sprintf("live-%d", i)
		post(t, r, "/submit", saga(gid, p.HTTP("act"), true)) // it answers when the saga has succeeded
		if got := r.Status(gid); got != succeed {
			t.Fatalf("%s is %s", gid, got)
		}
	}
	if n := slow.Count("*", "*", "*"); n != 4 {
		t.Errorf("%d calls reached the hanging participant, its bulkhead holds 2 per address", n)
	}
	for i := range 30 {
		if got := r.Status(fmt.Sprintf("hang-http-%d", i)); got != submitted {
			t.Errorf("a hanging transaction is %s", got)
		}
	}
	slow.Release()
	for i := range 30 {
		r.Await(fmt.Sprintf("hang-http-%d", i), succeed)
		r.Await(fmt.Sprintf("hang-grpc-%d", i), succeed)
	}
}
