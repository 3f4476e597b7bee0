package conformance

import (
	"context"
	"encoding/base64"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"testing"
	"time"

	"github.com/dtm-labs/dtm/client/dtmcli"
	"github.com/dtm-labs/dtm/client/dtmcli/dtmimp"
	"github.com/dtm-labs/dtm/client/dtmgrpc/dtmgpb"
	"github.com/dtm-labs/dtm/client/workflow"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/types/known/emptypb"

	rig "github.com/lockstep-tx/lockstep/coordinator/dtmwire/dtmwiretest"
)

// bench is a coordinator, a participant, and a process with DTM's workflow engine. That engine is global: these tests
// are not parallel.
type bench struct {
	*rig.Rig
	p         *rig.Participant
	conn      *grpc.ClientConn
	callbacks atomic.Int32
}

// eachWorkflow runs a scenario over both transports of the SDK.
func eachWorkflow(t *testing.T, scenario func(t *testing.T, b *bench, gid string)) {
	for _, protocol := range []string{dtmimp.ProtocolHTTP, dtmimp.ProtocolGRPC} {
		t.Run(protocol, func(t *testing.T) {
			b := &bench{Rig: rig.Start(t, rig.Options{}), p: rig.NewParticipant(t)}
			web := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				b.callbacks.Add(1)
				body, _ := io.ReadAll(r.Body)
				code := http.StatusOK
				if err := workflow.ExecuteByQS(r.URL.Query(), body); err != nil {
					code, _ = dtmcli.Result2HttpJSON(err)
				}
				w.WriteHeader(code)
			}))
			l, err := net.Listen("tcp", "127.0.0.1:0")
			noErr(t, err)
			srv := grpc.NewServer(grpc.UnaryInterceptor(func(ctx context.Context, req any, _ *grpc.UnaryServerInfo, h grpc.UnaryHandler) (any, error) {
				b.callbacks.Add(1)
				return h(ctx, req)
			}))
			workflow.InitHTTP(b.DTM, web.URL+"/callback")
			workflow.InitGrpc(b.GRPC, l.Addr().String(), srv)
			workflow.SetProtocolForTest(protocol)
			go func() { _ = srv.Serve(l) }()
			b.conn, err = grpc.NewClient("passthrough:///"+b.p.Addr, grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithUnaryInterceptor(workflow.Interceptor))
			noErr(t, err)
			t.Cleanup(func() { b.conn.Close(); srv.Stop(); web.Close() })
			scenario(t, b, newGid(b.Rig))
		})
	}
}

// step calls the participant over HTTP.
func (b *bench) step(wf *workflow.Workflow, name string) error {
	_, err := wf.NewRequest().SetBody(thirty).Post(b.p.HTTP(name))
	return err
}

// rpc calls the participant over gRPC.
func (b *bench) rpc(ctx context.Context, name string) error {
	return b.conn.Invoke(ctx, "/test.Busi/"+name, message(), &emptypb.Empty{})
}

func register(t *testing.T, gid string, f workflow.WfFunc2) {
	t.Helper()
	noErr(t, workflow.Register2(gid, f))
}

func execute(gid string) ([]byte, error) {
	return workflow.ExecuteCtx(context.Background(), gid, gid, []byte("the data"))
}

// Section 6: a workflow's result is stored and given to every later execution, gRPC included (D33).
func TestWorkflowResultIsKept(t *testing.T) {
	eachWorkflow(t, func(t *testing.T, b *bench, gid string) {
		runs := 0
		register(t, gid, func(wf *workflow.Workflow, data []byte) ([]byte, error) {
			runs++
			if string(data) != "the data" {
				t.Errorf("data is %q", data)
			}
			if err := b.step(wf.NewBranch(), "act"); err != nil {
				return nil, err
			}
			return []byte("a result"), b.rpc(wf.NewBranchCtx(), "Act")
		})
		for range 2 {
			out, err := execute(gid)
			if err != nil || string(out) != "a result" {
				t.Errorf("workflow gave %q, %v", out, err)
			}
		}
		if runs != 1 {
			t.Errorf("it ran %d times", runs)
		}
		wantOps(t, b.p, gid, "01 action", "02 action")
		wantEnd(t, b.Rig, gid, succeed, succeed, succeed)
	})
}

// Section 8: a step that is refused rolls back what was done; the workflow ends failed and stays so.
func TestWorkflowRefusedStepRollsBack(t *testing.T) {
	eachWorkflow(t, func(t *testing.T, b *bench, gid string) {
		b.p.Always("02", "action", rig.Failure)
		register(t, gid, func(wf *workflow.Workflow, _ []byte) ([]byte, error) {
			wf.NewBranch().OnRollback(func(*dtmcli.BranchBarrier) error { return b.step(wf, "undo") })
			if err := b.step(wf, "act"); err != nil {
				return nil, err
			}
			return nil, b.rpc(wf.NewBranchCtx(), "Act")
		})
		for range 2 {
			if _, err := execute(gid); !errors.Is(err, dtmcli.ErrFailure) {
				t.Errorf("error is %v", err)
			}
		}
		wantOps(t, b.p, gid, "01 action", "02 action", "01 rollback")
		if got := b.Status(gid); got != failed {
			t.Errorf("status is %s", got)
		}
		if tx, _ := b.Query(gid); tx.RollbackReason == "" || tx.RollbackTime == "" {
			t.Errorf("a failed workflow shows %+v", tx)
		}
	})
}

// A TCC within a workflow: the commit callbacks run at its end.
func TestWorkflowTCCConfirmsAtItsEnd(t *testing.T) {
	eachWorkflow(t, func(t *testing.T, b *bench, gid string) {
		register(t, gid, func(wf *workflow.Workflow, _ []byte) ([]byte, error) {
			for range 2 {
				wf.NewBranch().OnCommit(func(*dtmcli.BranchBarrier) error { return b.step(wf, "confirm") }).
					OnRollback(func(*dtmcli.BranchBarrier) error { return b.step(wf, "cancel") })
				if err := b.step(wf, "try"); err != nil {
					return nil, err
				}
			}
			return nil, nil
		})
		_, err := execute(gid)
		noErr(t, err)
		wantOps(t, b.p, gid, "01 action", "02 action", "02 commit", "01 commit")
		if got := b.Status(gid); got != succeed {
			t.Errorf("status is %s", got)
		}
	})
}

// Section 7: an unfinished workflow is called back with its name as op and its data as body; what it has done already is
// restored, not repeated.
func TestWorkflowIsCalledBackAndResumes(t *testing.T) {
	eachWorkflow(t, func(t *testing.T, b *bench, gid string) {
		b.p.Once("02", "action", rig.Ongoing, rig.Broken)
		register(t, gid, func(wf *workflow.Workflow, data []byte) ([]byte, error) {
			if string(data) != "the data" {
				t.Errorf("data is %q", data)
			}
			if err := b.step(wf.NewBranch(), "act"); err != nil {
				return nil, err
			}
			return nil, b.rpc(wf.NewBranchCtx(), "Act")
		})
		if _, err := execute(gid); err == nil {
			t.Error("an ongoing workflow gave no error")
		}
		wantEnd(t, b.Rig, gid, prepared, succeed)
		for range 2 {
			b.Advance(errorPause)
		}
		b.Await(gid, succeed)
		wantOps(t, b.p, gid, "01 action", "02 action", "02 action", "02 action")
		if n := b.callbacks.Load(); n != 2 {
			t.Errorf("%d callbacks, want 2", n)
		}
	})
}

// D3: what the client does postpones its callback, so that a long execution is not run a second time beside itself.
func TestWorkflowActivityPostponesItsCallback(t *testing.T) {
	eachWorkflow(t, func(t *testing.T, b *bench, gid string) {
		register(t, gid, func(wf *workflow.Workflow, _ []byte) ([]byte, error) {
			for range 4 {
				if err := b.step(wf.NewBranch(), "act"); err != nil {
					return nil, err
				}
				b.Advance(8 * time.Second) // the pause is 10 s
			}
			return nil, nil
		})
		_, err := execute(gid)
		noErr(t, err)
		if n := b.callbacks.Load(); n != 0 {
			t.Errorf("it was called back %d times while it was at work", n)
		}
	})
}

// D39 and section 6: a step that is registered twice, or on a workflow that has ended, is an error to the SDK, and over
// gRPC never Aborted: the SDK would compensate a workflow that has committed.
func TestWorkflowLateAndDoubleStepsAreErrorsThatCompensateNothing(t *testing.T) {
	r, _ := start(t)
	gid := newGid(r)
	begin := map[string]any{"gid": gid, "trans_type": "workflow", "query_prepared": r.HTTP + "/cb", "custom_data": `{"name":"w","data":""}`, "protocol": "http"}
	if code, body, _ := r.Post("/prepareWorkflow", begin); code != 200 {
		t.Fatalf("prepareWorkflow: %d %s", code, body)
	}
	row := func(id string) *dtmgpb.DtmBranchRequest {
		return &dtmgpb.DtmBranchRequest{Gid: gid, TransType: "workflow", BranchID: id, BusiPayload: []byte("x"), Data: map[string]string{"op": "action", "status": "succeed"}}
	}
	ctx := context.Background()
	_, err := r.Client.RegisterBranch(ctx, row("01"))
	noErr(t, err)
	wantCode(t, ignore(r.Client.RegisterBranch(ctx, row("01"))), "AlreadyExists")
	flat := map[string]string{"gid": gid, "trans_type": "workflow", "branch_id": "01", "op": "action", "status": "succeed", "data": "x"}
	if code, body, _ := r.Post("/registerBranch", flat); code != 500 {
		t.Errorf("a double step answered %d %s", code, body)
	}
	_, err = r.Client.Submit(ctx, &dtmgpb.DtmRequest{Gid: gid, TransType: "workflow", ReqExtra: map[string]string{"status": "succeed", "result": "eA=="}})
	noErr(t, err)
	wantCode(t, ignore(r.Client.RegisterBranch(ctx, row("02"))), "NotFound")
	flat["branch_id"] = "03"
	if code, body, _ := r.Post("/registerBranch", flat); code != 409 && code != 500 {
		t.Errorf("a late step answered %d %s", code, body)
	}
	wantEnd(t, r, gid, succeed, succeed)
}

// Deviation 4 and D43: an end repeated is 200, the other end and any other word are refused.
func TestWorkflowEndsOnceWithOneOfTwoWords(t *testing.T) {
	r, _ := start(t)
	gid := newGid(r)
	begin := map[string]any{"gid": gid, "trans_type": "workflow", "query_prepared": r.HTTP + "/cb", "custom_data": `{"name":"w","data":"` + base64.StdEncoding.EncodeToString([]byte("d")) + `"}`}
	end := func(status string) int {
		code, _, _ := r.Post("/submit", map[string]any{"gid": gid, "trans_type": "workflow", "req_extra": map[string]string{"status": status, "result": "eA==", "rollback_reason": "why"}})
		return code
	}
	if code := end("succeed"); code != 500 {
		t.Errorf("the end of an unknown workflow answered %d", code)
	}
	if code, body, _ := r.Post("/prepareWorkflow", begin); code != 200 {
		t.Fatalf("prepareWorkflow: %d %s", code, body)
	}
	created, _ := r.Query(gid)
	for _, word := range []string{"", "submitted", "SUCCEED", "prepared"} {
		if code := end(word); code != 400 {
			t.Errorf("the end %q answered %d", word, code)
		}
	}
	for range 2 {
		if code := end("succeed"); code != 200 {
			t.Errorf("the end answered %d", code)
		}
	}
	if code := end("failed"); code != 500 {
		t.Errorf("the other end answered %d", code)
	}
	// D10: the end leaves what the begin said.
	tx, _ := r.Query(gid)
	if tx.Status != succeed || tx.Result != "eA==" || tx.CustomData != begin["custom_data"] || tx.CreateTime != created.CreateTime {
		t.Errorf("the workflow shows %+v", tx)
	}
}

// Section 6: the Go SDK ignores the status code and dereferences any JSON object: a failed prepareWorkflow is plain text.
func TestWorkflowPrepareRefusedIsACleanErrorInTheSDK(t *testing.T) {
	eachWorkflow(t, func(t *testing.T, b *bench, gid string) {
		bad := gid + ";"
		register(t, bad, func(*workflow.Workflow, []byte) ([]byte, error) { return nil, nil })
		_, err := execute(bad)
		wantErr(t, err, "")
		if err == nil {
			t.Error("no error")
		}
		if code, body, h := b.Post("/prepareWorkflow", map[string]string{"gid": bad, "trans_type": "workflow"}); code != 500 || body[0] == '{' || h.Get("Content-Type") == "application/json" {
			t.Errorf("prepareWorkflow answered %d %s", code, body)
		}
		if got := b.Status(bad); got != "" {
			t.Errorf("something was stored: %s", got)
		}
	})
}
