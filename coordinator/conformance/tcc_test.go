package conformance

import (
	"errors"
	"regexp"
	"testing"
	"time"

	"github.com/dtm-labs/dtm/client/dtmcli"
	"github.com/dtm-labs/dtm/client/dtmcli/dtmimp"
	"github.com/dtm-labs/dtm/client/dtmgrpc"
	"github.com/go-resty/resty/v2"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/emptypb"

	rig "github.com/lockstep-tx/lockstep/coordinator/dtmwire/dtmwiretest"
)

// tccClient runs a TCC transaction with DTM's SDK over one of its transports, so that each scenario is told once.
type tccClient struct {
	name string
	run  func(r *rig.Rig, p *rig.Participant, gid string, custom func(*dtmimp.TransBase), f func(call func() error) error) error
}

// setWait makes submit and abort wait for the pass.
func setWait(t *dtmimp.TransBase) { t.WaitResult = true }

func plain(*dtmimp.TransBase) {}

var tccClients = []tccClient{
	{"http", func(r *rig.Rig, p *rig.Participant, gid string, custom func(*dtmimp.TransBase), f func(func() error) error) error {
		return dtmcli.TccGlobalTransaction2(r.DTM, gid, func(t *dtmcli.Tcc) { custom(&t.TransBase) }, func(t *dtmcli.Tcc) (*resty.Response, error) {
			return nil, f(func() error {
				_, err := t.CallBranch(thirty, p.HTTP("try"), p.HTTP("confirm"), p.HTTP("cancel"))
				return err
			})
		})
	}},
	{"grpc", func(r *rig.Rig, p *rig.Participant, gid string, custom func(*dtmimp.TransBase), f func(func() error) error) error {
		return dtmgrpc.TccGlobalTransaction2(r.GRPC, gid, func(t *dtmgrpc.TccGrpc) { custom(&t.TransBase) }, func(t *dtmgrpc.TccGrpc) error {
			return f(func() error {
				var out emptypb.Empty
				return t.CallBranch(message(), p.GRPC("Try"), p.GRPC("Confirm"), p.GRPC("Cancel"), &out)
			})
		})
	}},
	{"json-rpc", func(r *rig.Rig, p *rig.Participant, gid string, custom func(*dtmimp.TransBase), f func(func() error) error) error {
		return dtmcli.TccGlobalTransaction2(r.JSONRPC, gid, func(t *dtmcli.Tcc) { t.Protocol = dtmimp.Jrpc; custom(&t.TransBase) }, func(t *dtmcli.Tcc) (*resty.Response, error) {
			return nil, f(func() error {
				_, err := t.CallBranch(thirty, p.HTTP("try"), p.RPC("confirm"), p.RPC("cancel"))
				return err
			})
		})
	}},
}

// eachTCC runs a scenario over every transport.
func eachTCC(t *testing.T, scenario func(t *testing.T, c tccClient, r *rig.Rig, p *rig.Participant, gid string)) {
	t.Parallel()
	for _, c := range tccClients {
		t.Run(c.name, func(t *testing.T) {
			r, p := start(t)
			scenario(t, c, r, p, newGid(r))
		})
	}
}

func twoBranches(call func() error) error {
	if err := call(); err != nil {
		return err
	}
	return call()
}

// Section 8: tries by the client, then every confirm. Section 3.5: rows cancel, confirm per branch.
func TestTCCCommitConfirmsEveryBranch(t *testing.T) {
	eachTCC(t, func(t *testing.T, c tccClient, r *rig.Rig, p *rig.Participant, gid string) {
		noErr(t, c.run(r, p, gid, setWait, twoBranches))
		wantEnd(t, r, gid, succeed, prepared, succeed, prepared, succeed)
		wantOpsUnordered(t, p, gid, "01 try", "02 try", "01 confirm", "02 confirm")
		tx, rows := r.Query(gid)
		if tx.FinishTime == "" || tx.RollbackTime != "" || tx.RollbackReason != "" {
			t.Errorf("a committed transaction shows %+v", tx)
		}
		for i, op := range []string{"cancel", "confirm", "cancel", "confirm"} {
			if rows[i].Op != op {
				t.Errorf("row %d is %s, want %s", i, rows[i].Op, op)
			}
		}
	})
}

// Section 7: identity, body, and method of a confirm.
func TestTCCConfirmCarriesIdentityAndTheRegisteredBody(t *testing.T) {
	eachTCC(t, func(t *testing.T, c tccClient, r *rig.Rig, p *rig.Participant, gid string) {
		noErr(t, c.run(r, p, gid, setWait, func(call func() error) error { return call() }))
		got := p.Await(gid, "01", "confirm", 1)[0]
		try := p.Calls(gid, "01", "try")[0]
		if got.TransType != "tcc" || got.Protocol != c.name {
			t.Errorf("confirm came as %s over %s", got.TransType, got.Protocol)
		}
		switch c.name {
		case "json-rpc": // the identity is merged into params
			if want := `"account":"alice"`; !regexp.MustCompile(want).Match(got.Body) {
				t.Errorf("params are %s, want them with %s", got.Body, want)
			}
		default:
			if string(got.Body) != string(try.Body) {
				t.Errorf("confirm's body is %q, want the try's %q", got.Body, try.Body)
			}
		}
		if c.name == "http" && got.Method != "POST" {
			t.Errorf("a confirm with a body is a %s", got.Method)
		}
		if got.Header.Get("Dtm-Dtm") != "" || got.Query.Has("dtm") {
			t.Error("the coordinator must not name itself")
		}
	})
}

// Section 8: a refused try aborts, every registered branch is cancelled, the client's own reason is kept.
func TestTCCRefusedTryCancelsEveryBranch(t *testing.T) {
	eachTCC(t, func(t *testing.T, c tccClient, r *rig.Rig, p *rig.Participant, gid string) {
		p.Always("02", "try", rig.Failure)
		p.Once("01", "cancel", rig.Ongoing)
		err := c.run(r, p, gid, plain, twoBranches)
		wantErr(t, err, "insufficient funds")
		r.PassOver(gid)
		wantEnd(t, r, gid, aborting, prepared, prepared, succeed, prepared)
		r.Advance(ongoingPause)
		wantEnd(t, r, gid, failed, succeed, prepared, succeed, prepared)
		tx, _ := r.Query(gid)
		if tx.RollbackReason != err.Error() || tx.RollbackTime == "" || tx.FinishTime != "" {
			t.Errorf("a rolled-back transaction shows %+v, want the reason %q", tx, err)
		}
	})
}

// Services written for DTM before 1.10 refuse with 200 and a word (section 2.2).
func TestTCCOldStyleRefusalInA200Body(t *testing.T) {
	r, p := start(t)
	gid := newGid(r)
	p.Always("02", "try", rig.OldFailure)
	p.Once("*", "cancel", rig.OldOngoing)
	wantErr(t, tccClients[0].run(r, p, gid, plain, twoBranches), "FAILURE")
	r.PassOver(gid)
	if got := r.Status(gid); got != aborting {
		t.Fatalf("status is %s after a cancel that is ongoing", got)
	}
	r.Advance(ongoingPause)
	wantEnd(t, r, gid, failed, succeed, prepared, succeed, prepared)
}

// Section 6: on a panic in its function the SDK aborts and lets the panic go on.
func TestTCCPanicInTheClientAborts(t *testing.T) {
	eachTCC(t, func(t *testing.T, c tccClient, r *rig.Rig, p *rig.Participant, gid string) {
		defer func() {
			if recover() == nil {
				t.Error("the panic was swallowed")
			}
			r.Await(gid, failed)
			wantEnd(t, r, gid, failed, succeed, prepared)
		}()
		_ = c.run(r, p, gid, plain, func(call func() error) error {
			noErr(t, call())
			panic(errors.New("user panic"))
		})
	})
}

// Section 8: the timeout counts from begin; after it neither a branch nor a submit nor a second prepare is taken.
func TestTCCTimeoutCancelsAndRefusesWhatComesLater(t *testing.T) {
	eachTCC(t, func(t *testing.T, c tccClient, r *rig.Rig, p *rig.Participant, gid string) {
		err := c.run(r, p, gid, plain, func(call func() error) error {
			noErr(t, call())
			r.Advance(30 * time.Second)
			if got := r.Status(gid); got != prepared {
				t.Errorf("status is %s before the timeout of 35 s", got)
			}
			r.Advance(6 * time.Second)
			if err := call(); err == nil {
				t.Error("a branch was registered after the timeout")
			}
			return nil // the SDK submits now
		})
		wantErr(t, err, "cannot sumbmit. FAILURE")
		wantEnd(t, r, gid, failed, succeed, prepared)
		tx, _ := r.Query(gid)
		if !regexp.MustCompile(`^Timeout after \d+ seconds$`).MatchString(tx.RollbackReason) {
			t.Errorf("reason is %q", tx.RollbackReason)
		}
		if err := c.run(r, p, gid, plain, twoBranches); err == nil {
			t.Error("the gid was prepared again after its end")
		}
		wantOps(t, p, gid, "01 try", "01 cancel")
	})
}

// Section 9: a timeout of the client's own is named in the reason.
func TestTCCOwnTimeoutTakesThePlaceOfTheDefault(t *testing.T) {
	r, p := start(t)
	gid := newGid(r)
	_ = tccClients[0].run(r, p, gid, func(t *dtmimp.TransBase) { t.TimeoutToFail = 100 }, func(call func() error) error {
		noErr(t, call())
		r.Advance(99 * time.Second)
		if got := r.Status(gid); got != prepared {
			t.Errorf("status is %s before the timeout of 100 s", got)
		}
		r.Advance(2 * time.Second)
		return errors.New("late")
	})
	tx, _ := r.Query(gid)
	if tx.RollbackReason != "Timeout after 100 seconds" {
		t.Errorf("reason is %q", tx.RollbackReason)
	}
}

// Section 6: a try handler rebuilds the transaction from its query and registers branches below its own.
func TestTCCNestedBranchesBelongToTheSameTransaction(t *testing.T) {
	for name, outcome := range map[string]rig.Answer{"commit": rig.Success, "rollback": rig.Failure} {
		t.Run(name, func(t *testing.T) {
			r, p := start(t)
			gid := newGid(r)
			p.Always("0202", "try", outcome)
			p.AlwaysDo("02", "try", func(c rig.Call) rig.Answer {
				inner, err := dtmcli.TccFromQuery(c.Query)
				if err == nil {
					_, err = inner.CallBranch(thirty, p.HTTP("try"), p.HTTP("confirm"), p.HTTP("cancel"))
				}
				if err == nil {
					_, err = inner.CallBranch(thirty, p.HTTP("try"), p.HTTP("confirm"), p.HTTP("cancel"))
				}
				if err != nil {
					return rig.Failure
				}
				return rig.Success
			})
			err := tccClients[0].run(r, p, gid, setWait, twoBranches)
			if name == "commit" {
				noErr(t, err)
				wantEnd(t, r, gid, succeed, prepared, succeed, prepared, succeed, prepared, succeed, prepared, succeed)
				wantOpsUnordered(t, p, gid, "01 try", "02 try", "0201 try", "0202 try", "01 confirm", "02 confirm", "0201 confirm", "0202 confirm")
				return
			}
			wantErr(t, err, "FAILURE")
			wantEnd(t, r, gid, failed, succeed, prepared, succeed, prepared, succeed, prepared, succeed, prepared)
			wantOpsUnordered(t, p, gid, "01 try", "02 try", "0201 try", "0202 try", "01 cancel", "02 cancel", "0201 cancel", "0202 cancel")
		})
	}
}

// The same over gRPC, where the identity is in the metadata.
func TestTCCNestedOverGRPC(t *testing.T) {
	r, p := start(t)
	gid := newGid(r)
	p.AlwaysDo("01", "try", func(c rig.Call) rig.Answer {
		inner := &dtmgrpc.TccGrpc{TransBase: *dtmimp.NewTransBase(c.Gid, "tcc", c.Header.Get("Dtm-Dtm"), c.Branch)}
		if inner.Dtm == "" {
			inner.Dtm = c.Header["dtm-dtm"][0]
		}
		var out emptypb.Empty
		if inner.CallBranch(message(), p.GRPC("Try"), p.GRPC("Confirm"), p.GRPC("Cancel"), &out) != nil {
			return rig.Failure
		}
		return rig.Success
	})
	noErr(t, tccClients[1].run(r, p, gid, setWait, func(call func() error) error { return call() }))
	wantEnd(t, r, gid, succeed, prepared, succeed, prepared, succeed)
}

// Section 7: branch headers go with every branch call, as headers or metadata.
func TestBranchHeadersGoWithEveryCall(t *testing.T) {
	eachTCC(t, func(t *testing.T, c tccClient, r *rig.Rig, p *rig.Participant, gid string) {
		noErr(t, c.run(r, p, gid, func(b *dtmimp.TransBase) {
			b.WaitResult = true
			b.BranchHeaders = map[string]string{"test_header": "yes"}
		}, twoBranches))
		for _, call := range p.Calls(gid, "*", "*") {
			if v := append(call.Header["Test_header"], call.Header["test_header"]...); len(v) == 0 || v[0] != "yes" {
				t.Errorf("%s %s came with %v", call.Branch, call.Op, call.Header)
			}
		}
	})
}

// Deviation 1, and D37: a wait_result submit that is still running is ONGOING, also where a confirm answers FAILURE, and
// the transaction goes on.
func TestTCCWaitResultOfAConfirmThatIsNotOverIsOngoing(t *testing.T) {
	for _, c := range tccClients {
		for name, answer := range map[string]rig.Answer{"ongoing": rig.Ongoing, "refused": rig.Failure, "broken": rig.Broken} {
			t.Run(c.name+"/"+name, func(t *testing.T) {
				r, p := start(t)
				gid := newGid(r)
				p.Once("02", "confirm", answer)
				err := c.run(r, p, gid, func(b *dtmimp.TransBase) { b.WaitResult = true; b.RetryInterval = 60 }, twoBranches)
				switch c.name {
				case "http":
					wantErr(t, err, `"dtm_result":"ONGOING"`)
				case "grpc":
					if status.Code(err) != codes.FailedPrecondition {
						t.Errorf("error is %v, want FailedPrecondition", err)
					}
				case "json-rpc":
					wantErr(t, err, "-32603")
				}
				wantEnd(t, r, gid, submitted, prepared, succeed, prepared, prepared)
				r.Advance(errorPause)
				wantEnd(t, r, gid, succeed, prepared, succeed, prepared, succeed)
			})
		}
	}
}

// Section 13: an abort may follow a submit that succeeded: 409, and nothing changes.
func TestAbortAfterSuccessChangesNothing(t *testing.T) {
	r, p := start(t)
	gid := newGid(r)
	noErr(t, tccClients[0].run(r, p, gid, setWait, twoBranches))
	wantErr(t, dtmimp.TransCallDtm(dtmimp.NewTransBase(gid, "tcc", r.DTM, ""), "abort"), "trans type: 'tcc' current status 'succeed', cannot abort. FAILURE")
	wantEnd(t, r, gid, succeed, prepared, succeed, prepared, succeed)
	wantOpsUnordered(t, p, gid, "01 try", "02 try", "01 confirm", "02 confirm")
}

// A late abort is answered 200 while the cancels are under way, and 409 once they are done (section 8).
func TestLateAbortIsAnsweredByTheState(t *testing.T) {
	r, p := start(t)
	gid := newGid(r)
	p.Once("01", "cancel", rig.Ongoing)
	abort := func() error { return dtmimp.TransCallDtm(dtmimp.NewTransBase(gid, "tcc", r.DTM, ""), "abort") }
	_ = tccClients[0].run(r, p, gid, func(b *dtmimp.TransBase) { b.RetryInterval = 600 }, func(call func() error) error { noErr(t, call()); return errors.New("no") })
	r.PassOver(gid)
	noErr(t, abort()) // and it makes the cancel due now
	r.Await(gid, failed)
	wantErr(t, abort(), "current status 'failed', cannot abort. FAILURE")
	wantOps(t, p, gid, "01 try", "01 cancel", "01 cancel")
}

// Section 2.1: a refusal is Aborted over gRPC and -32901 over JSON-RPC, with DTM's text.
func TestRefusalByTheStateHasItsFormInEveryProtocol(t *testing.T) {
	r, p := start(t)
	gid := newGid(r)
	noErr(t, tccClients[0].run(r, p, gid, setWait, twoBranches))
	code, body, _ := r.Post("/submit", map[string]string{"gid": gid, "trans_type": "tcc"})
	if want := `{"dtm_result":"FAILURE","message":"current status 'succeed', cannot sumbmit. FAILURE"}`; code != 409 || string(body) != want {
		t.Errorf("submit answered %d %s", code, body)
	}
	err := dtmgrpc.TccGlobalTransaction(r.GRPC, gid, func(*dtmgrpc.TccGrpc) error { return nil })
	if s := status.Convert(err); s.Code() != codes.Aborted || s.Message() != "current status 'succeed', cannot prepare. FAILURE" {
		t.Errorf("gRPC prepare answered %v", err)
	}
	if a := r.RPC("submit", map[string]string{"gid": gid, "trans_type": "tcc"}); a.Code != -32901 || a.HasResult || a.Message != "current status 'succeed', cannot sumbmit. FAILURE" {
		t.Errorf("JSON-RPC submit answered %+v", a)
	}
}

// A confirm is repeated until it succeeds, whatever it answers: broken, refused, reset, silent.
func TestConfirmIsRepeatedUntilItSucceeds(t *testing.T) {
	eachTCC(t, func(t *testing.T, c tccClient, r *rig.Rig, p *rig.Participant, gid string) {
		p.Once("01", "confirm", rig.Broken, rig.Failure, rig.Reset, rig.Hang, rig.OldFailure)
		noErr(t, c.run(r, p, gid, func(b *dtmimp.TransBase) { b.RequestTimeout = 1 }, func(call func() error) error { return call() }))
		for i := range 6 {
			p.Await(gid, "01", "confirm", i+1)
			r.PassOver(gid)
			r.Advance(errorPause)
		}
		r.Await(gid, succeed)
		if n := p.Count(gid, "01", "confirm"); n != 6 {
			t.Errorf("%d confirms, want 6", n)
		}
	})
}
