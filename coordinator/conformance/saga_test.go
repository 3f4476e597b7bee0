package conformance

import (
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/dtm-labs/dtm/client/dtmcli"
	"github.com/dtm-labs/dtm/client/dtmcli/dtmimp"
	"github.com/dtm-labs/dtm/client/dtmgrpc"

	rig "github.com/lockstep-tx/lockstep/coordinator/dtmwire/dtmwiretest"
)

// saga is what the HTTP and the gRPC SDK have in common.
type saga interface{ Submit() error }

// sagaClient builds a saga of n steps with one of DTM's SDKs.
type sagaClient struct {
	name string
	make func(r *rig.Rig, p *rig.Participant, gid string, n int) (saga, *dtmcli.Saga)
}

var sagaClients = []sagaClient{
	{"http", func(r *rig.Rig, p *rig.Participant, gid string, n int) (saga, *dtmcli.Saga) {
		s := dtmcli.NewSaga(r.DTM, gid)
		for range n {
			s.Add(p.HTTP("act"), p.HTTP("undo"), thirty)
		}
		return s, s
	}},
	{"grpc", func(r *rig.Rig, p *rig.Participant, gid string, n int) (saga, *dtmcli.Saga) {
		s := dtmgrpc.NewSagaGrpc(r.GRPC, gid)
		for range n {
			s.Add(p.GRPC("Act"), p.GRPC("Undo"), message())
		}
		return s, &s.Saga
	}},
	{"json-rpc", func(r *rig.Rig, p *rig.Participant, gid string, n int) (saga, *dtmcli.Saga) {
		s := dtmcli.NewSaga(r.JSONRPC, gid)
		s.Protocol = dtmimp.Jrpc
		for range n {
			s.Add(p.RPC("act"), p.RPC("undo"), thirty)
		}
		return s, s
	}},
}

func eachSaga(t *testing.T, steps int, scenario func(t *testing.T, s saga, o *dtmcli.Saga, r *rig.Rig, p *rig.Participant, gid string)) {
	t.Parallel()
	for _, c := range sagaClients {
		t.Run(c.name, func(t *testing.T) {
			r, p := start(t)
			gid := newGid(r)
			s, o := c.make(r, p, gid, steps)
			scenario(t, s, o, r, p, gid)
		})
	}
}

// Section 3.5: rows compensate, action per step.
func TestSagaRunsItsActionsInOrder(t *testing.T) {
	eachSaga(t, 3, func(t *testing.T, s saga, o *dtmcli.Saga, r *rig.Rig, p *rig.Participant, gid string) {
		o.WaitResult = true
		noErr(t, s.Submit())
		wantOps(t, p, gid, "01 action", "02 action", "03 action")
		wantEnd(t, r, gid, succeed, prepared, succeed, prepared, succeed, prepared, succeed)
		if tx, _ := r.Query(gid); tx.RollbackReason != "" {
			t.Errorf("reason is %q", tx.RollbackReason)
		}
	})
}

// Section 8: the refusing step is compensated too, in reverse order; the reason has DTM's text.
func TestSagaRefusedActionCompensatesInReverse(t *testing.T) {
	eachSaga(t, 3, func(t *testing.T, s saga, o *dtmcli.Saga, r *rig.Rig, p *rig.Participant, gid string) {
		p.Always("02", "action", rig.Failure)
		noErr(t, s.Submit())
		r.Await(gid, failed)
		wantOps(t, p, gid, "01 action", "02 action", "02 compensate", "01 compensate")
		wantEnd(t, r, gid, failed, succeed, succeed, succeed, failed, prepared, prepared)
		tx, rows := r.Query(gid)
		if want := "url:" + rows[3].URL + " return failed: "; !strings.HasPrefix(tx.RollbackReason, want) || !strings.Contains(tx.RollbackReason, "insufficient funds") {
			t.Errorf("reason is %q", tx.RollbackReason)
		}
	})
}

// Section 9: a saga that is rolled back answers wait_result with its reason and FAILURE.
func TestSagaWaitResultOfARollbackIsFailure(t *testing.T) {
	eachSaga(t, 2, func(t *testing.T, s saga, o *dtmcli.Saga, r *rig.Rig, p *rig.Participant, gid string) {
		p.Always("02", "action", rig.Failure)
		o.WaitResult = true
		wantErr(t, s.Submit(), "insufficient funds")
		wantEnd(t, r, gid, failed, succeed, succeed, succeed, failed)
	})
}

// D5: DTM answers FAILURE for a saga that still runs.
func TestSagaWaitResultWhileOngoingIsOngoing(t *testing.T) {
	r, p := start(t)
	gid := newGid(r)
	s, o := sagaClients[0].make(r, p, gid, 2)
	p.Once("01", "action", rig.Ongoing)
	o.WaitResult = true
	err := s.Submit()
	wantErr(t, err, "ONGOING")
	if strings.Contains(err.Error(), "FAILURE") {
		t.Errorf("%v is not final", err)
	}
	wantEnd(t, r, gid, submitted, prepared, prepared, prepared, prepared)
	r.Advance(ongoingPause)
	wantEnd(t, r, gid, succeed, prepared, succeed, prepared, succeed)
}

// Section 8: ONGOING waits one retry interval, the client's own where it has one.
func TestSagaOngoingWaitsTheRetryInterval(t *testing.T) {
	eachSaga(t, 1, func(t *testing.T, s saga, o *dtmcli.Saga, r *rig.Rig, p *rig.Participant, gid string) {
		p.Once("01", "action", rig.Ongoing)
		o.RetryInterval = 150
		noErr(t, s.Submit())
		r.PassOver(gid)
		wantEnd(t, r, gid, submitted, prepared, prepared)
		r.Advance(140 * time.Second)
		wantOps(t, p, gid, "01 action")
		r.Advance(11 * time.Second)
		wantEnd(t, r, gid, succeed, prepared, succeed)
	})
}

// Section 8: after a timeout the action keeps its row as prepared, and only what may have run is compensated.
func TestSagaTimeoutCompensatesWhatMayHaveRun(t *testing.T) {
	eachSaga(t, 2, func(t *testing.T, s saga, o *dtmcli.Saga, r *rig.Rig, p *rig.Participant, gid string) {
		p.Always("01", "action", rig.Ongoing)
		o.TimeoutToFail = 1800
		noErr(t, s.Submit())
		r.PassOver(gid)
		wantEnd(t, r, gid, submitted, prepared, prepared, prepared, prepared)
		r.Advance(time.Hour)
		r.Await(gid, failed)
		wantEnd(t, r, gid, failed, succeed, prepared, prepared, prepared)
		if tx, _ := r.Query(gid); !regexp.MustCompile(`^Timeout after 1800 seconds$`).MatchString(tx.RollbackReason) {
			t.Errorf("reason is %q", tx.RollbackReason)
		}
		if n := p.Count(gid, "02", "*"); n != 0 {
			t.Errorf("step 02 could not have run and was called %d times", n)
		}
	})
}

// Without timeout_to_fail a saga never times out (section 9).
func TestSagaWithoutTimeoutIsRetriedForEver(t *testing.T) {
	r, p := start(t)
	gid := newGid(r)
	s, _ := sagaClients[0].make(r, p, gid, 1)
	p.Once("01", "action", rig.Broken, rig.Broken)
	noErr(t, s.Submit())
	for range 3 {
		r.PassOver(gid)
		r.Advance(24 * time.Hour)
	}
	r.Await(gid, succeed)
}

// Section 8: above its retry limit a saga compensates; the step that never answered keeps its row as prepared.
func TestSagaRetryLimitCompensates(t *testing.T) {
	eachSaga(t, 2, func(t *testing.T, s saga, o *dtmcli.Saga, r *rig.Rig, p *rig.Participant, gid string) {
		p.Always("02", "action", rig.Broken)
		o.WithRetryLimit(1)
		noErr(t, s.Submit())
		r.PassOver(gid)
		r.Advance(errorPause)
		r.Await(gid, failed)
		wantEnd(t, r, gid, failed, succeed, succeed, succeed, prepared)
		if tx, _ := r.Query(gid); tx.RollbackReason != "RetryCount is greater than RetryLimit, RetryLimit: 1" {
			t.Errorf("reason is %q", tx.RollbackReason)
		}
	})
}

// A saga that stays below its retry limit goes on.
func TestSagaBelowItsRetryLimitSucceeds(t *testing.T) {
	r, p := start(t)
	gid := newGid(r)
	s, o := sagaClients[0].make(r, p, gid, 2)
	p.Once("02", "action", rig.Broken, rig.Ongoing, rig.Broken)
	o.WithRetryLimit(3)
	noErr(t, s.Submit())
	for range 3 {
		r.PassOver(gid)
		r.Advance(errorPause)
	}
	r.Await(gid, succeed)
	wantEnd(t, r, gid, succeed, prepared, succeed, prepared, succeed)
}

// Section 8: a compensation error of any kind is retried, a refusal too (#332).
func TestSagaCompensationIsRetriedWhateverItAnswers(t *testing.T) {
	eachSaga(t, 2, func(t *testing.T, s saga, o *dtmcli.Saga, r *rig.Rig, p *rig.Participant, gid string) {
		p.Always("02", "action", rig.Failure)
		p.Once("01", "compensate", rig.Failure, rig.Broken, rig.Ongoing, rig.OldFailure)
		noErr(t, s.Submit())
		r.PassOver(gid)
		wantEnd(t, r, gid, aborting, prepared, succeed, succeed, failed)
		for range 4 {
			r.PassOver(gid)
			r.Advance(errorPause)
		}
		r.Await(gid, failed)
		wantEnd(t, r, gid, failed, succeed, succeed, succeed, failed)
	})
}

// Section 8: an empty compensate url succeeds at once.
func TestSagaEmptyCompensationSucceedsAtOnce(t *testing.T) {
	r, p := start(t)
	gid := newGid(r)
	s := dtmcli.NewSaga(r.DTM, gid).Add(p.HTTP("act"), "", thirty).Add(p.HTTP("act"), p.HTTP("undo"), thirty)
	p.Always("02", "action", rig.Failure)
	noErr(t, s.Submit())
	r.Await(gid, failed)
	wantOps(t, p, gid, "01 action", "02 action", "02 compensate")
	wantEnd(t, r, gid, failed, succeed, succeed, succeed, failed)
}

// Section 3.2: a repeat while submitted makes what waits due at once; once it has succeeded it is refused.
func TestSagaRepeatedSubmitWakesItAndIsRefusedAtTheEnd(t *testing.T) {
	eachSaga(t, 2, func(t *testing.T, s saga, o *dtmcli.Saga, r *rig.Rig, p *rig.Participant, gid string) {
		p.Once("01", "action", rig.Ongoing)
		o.RetryInterval = 600
		noErr(t, s.Submit())
		r.PassOver(gid)
		noErr(t, s.Submit())
		r.Await(gid, succeed)
		wantErr(t, s.Submit(), "cannot sumbmit. FAILURE")
		wantOps(t, p, gid, "01 action", "01 action", "02 action")
	})
}

// Section 8: a saga may be prepared, and waits for its submit; it is never aborted from outside.
func TestSagaPreparedWaitsForItsSubmit(t *testing.T) {
	r, p := start(t)
	gid := newGid(r)
	body := map[string]any{"gid": gid, "trans_type": "saga", "steps": []any{map[string]string{"action": p.HTTP("act")}}, "payloads": []string{`{"a":1}`}}
	if code, out, _ := r.Post("/prepare", body); code != 200 {
		t.Fatalf("prepare: %d %s", code, out)
	}
	r.Advance(time.Hour)
	wantEnd(t, r, gid, prepared, prepared, prepared)
	if code, out, _ := r.Post("/abort", body); code != 409 || !strings.Contains(string(out), "trans type: 'saga' current status 'prepared', cannot abort. FAILURE") {
		t.Errorf("abort: %d %s", code, out)
	}
	if code, out, _ := r.Post("/submit", map[string]string{"gid": gid, "trans_type": "saga"}); code != 200 {
		t.Fatalf("submit: %d %s", code, out)
	}
	r.Await(gid, succeed)
}

// Section 9: request_timeout bounds each call; what does not answer within it is Unknown and is repeated.
func TestSagaRequestTimeoutBoundsEachCall(t *testing.T) {
	eachSaga(t, 1, func(t *testing.T, s saga, o *dtmcli.Saga, r *rig.Rig, p *rig.Participant, gid string) {
		p.Once("01", "action", rig.Hang)
		o.RequestTimeout, o.RetryInterval = 1, 60
		noErr(t, s.Submit())
		r.PassOver(gid)
		wantEnd(t, r, gid, submitted, prepared, prepared)
		r.Advance(errorPause)
		r.Await(gid, succeed)
		wantOps(t, p, gid, "01 action", "01 action")
	})
}

// Section 4: the protocols of the branches may be mixed.
func TestSagaMixesProtocols(t *testing.T) {
	r, p := start(t)
	gid := newGid(r)
	s := dtmgrpc.NewSagaGrpc(r.GRPC, gid).Add(p.GRPC("Act"), p.HTTP("undo"), message()).Add(p.HTTP("act"), p.GRPC("Undo"), message())
	p.Always("02", "action", rig.Failure)
	noErr(t, s.Submit())
	r.Await(gid, failed)
	var got []string
	for _, c := range p.Calls(gid, "*", "*") {
		got = append(got, c.Branch+" "+c.Op+" "+c.Protocol)
	}
	if want := "01 action grpc,02 action http,02 compensate grpc,01 compensate http"; strings.Join(got, ",") != want {
		t.Errorf("calls are %v, want %s", got, want)
	}
}
