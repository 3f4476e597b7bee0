package conformance

import (
	"slices"
	"testing"

	"github.com/dtm-labs/dtm/client/dtmcli"

	rig "github.com/lockstep-tx/lockstep/coordinator/dtmwire/dtmwiretest"
)

// Section 8: a concurrent saga's actions do not wait for one another.
func TestConcurrentSagaStartsAllActionsAtOnce(t *testing.T) {
	eachSaga(t, 3, func(t *testing.T, s saga, o *dtmcli.Saga, r *rig.Rig, p *rig.Participant, gid string) {
		o.SetConcurrent()
		o.RequestTimeout = 20
		for _, b := range []string{"01", "02", "03"} {
			p.Once(b, "action", rig.Hang)
		}
		noErr(t, s.Submit())
		p.Await(gid, "*", "action", 3) // all three are under way together
		p.Release()
		r.Await(gid, succeed)
		wantEnd(t, r, gid, succeed, prepared, succeed, prepared, succeed, prepared, succeed)
	})
}

// Section 8: with orders, action k starts when all of orders[k] have succeeded (0-based).
func TestConcurrentSagaKeepsItsOrders(t *testing.T) {
	eachSaga(t, 4, func(t *testing.T, s saga, o *dtmcli.Saga, r *rig.Rig, p *rig.Participant, gid string) {
		o.SetConcurrent()
		o.RequestTimeout = 20
		o.AddBranchOrder(2, []int{0, 1}).AddBranchOrder(3, []int{2})
		p.Once("01", "action", rig.Hang)
		noErr(t, s.Submit())
		p.Await(gid, "02", "action", 1)
		if n := p.Count(gid, "03", "*") + p.Count(gid, "04", "*"); n != 0 {
			t.Error("a step started before those it waits for")
		}
		p.Release()
		r.Await(gid, succeed)
		ops := p.Ops(gid)
		if !slices.Equal(ops[2:], []string{"03 action", "04 action"}) {
			t.Errorf("calls are %v", ops)
		}
	})
}

// Section 8: a step that could not have started is not compensated.
func TestConcurrentSagaRefusalLeavesAloneWhatCouldNotHaveStarted(t *testing.T) {
	eachSaga(t, 2, func(t *testing.T, s saga, o *dtmcli.Saga, r *rig.Rig, p *rig.Participant, gid string) {
		o.SetConcurrent()
		o.AddBranchOrder(1, []int{0})
		p.Always("01", "action", rig.Failure)
		noErr(t, s.Submit())
		r.Await(gid, failed)
		wantOps(t, p, gid, "01 action", "01 compensate")
		wantEnd(t, r, gid, failed, succeed, failed, prepared, prepared)
	})
}

// Section 8: compensations go in the reverse of the orders.
func TestConcurrentSagaCompensatesInReverseOfItsOrders(t *testing.T) {
	eachSaga(t, 3, func(t *testing.T, s saga, o *dtmcli.Saga, r *rig.Rig, p *rig.Participant, gid string) {
		o.SetConcurrent()
		o.AddBranchOrder(1, []int{0}).AddBranchOrder(2, []int{1})
		p.Always("03", "action", rig.Failure)
		noErr(t, s.Submit())
		r.Await(gid, failed)
		wantOps(t, p, gid, "01 action", "02 action", "03 action", "03 compensate", "02 compensate", "01 compensate")
		wantEnd(t, r, gid, failed, succeed, succeed, succeed, succeed, succeed, failed)
	})
}

// Section 8: a refusal stops new actions; those under way are awaited before anything is compensated.
func TestConcurrentSagaAwaitsRunningActionsBeforeItCompensatesThem(t *testing.T) {
	r, p := start(t)
	gid := newGid(r)
	s, o := sagaClients[0].make(r, p, gid, 2)
	o.SetConcurrent()
	o.RequestTimeout = 20
	p.Once("02", "action", rig.Hang)
	p.AlwaysDo("01", "action", func(rig.Call) rig.Answer {
		p.Await(gid, "02", "action", 1)
		return rig.Failure
	})
	noErr(t, s.Submit())
	p.Await(gid, "01", "compensate", 1)
	if n := p.Count(gid, "02", "compensate"); n != 0 {
		t.Error("a step was compensated while its action was under way")
	}
	p.Release()
	r.Await(gid, failed)
	wantEnd(t, r, gid, failed, succeed, failed, succeed, succeed)
}

// One branch that is ongoing does not hold up the others.
func TestConcurrentSagaOngoingBranchHoldsUpNoOther(t *testing.T) {
	eachSaga(t, 2, func(t *testing.T, s saga, o *dtmcli.Saga, r *rig.Rig, p *rig.Participant, gid string) {
		o.SetConcurrent()
		p.Once("01", "action", rig.Ongoing)
		noErr(t, s.Submit())
		r.PassOver(gid)
		wantEnd(t, r, gid, submitted, prepared, prepared, prepared, succeed)
		r.Advance(ongoingPause)
		wantEnd(t, r, gid, succeed, prepared, succeed, prepared, succeed)
	})
}
