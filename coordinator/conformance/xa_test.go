package conformance

import (
	"errors"
	"regexp"
	"testing"
	"time"

	"github.com/dtm-labs/dtm/client/dtmcli"
	"github.com/dtm-labs/dtm/client/dtmcli/dtmimp"
	"github.com/dtm-labs/dtm/client/dtmgrpc"
	"github.com/dtm-labs/dtm/client/dtmgrpc/dtmgpb"
	"github.com/go-resty/resty/v2"
	"google.golang.org/protobuf/types/known/emptypb"

	rig "github.com/lockstep-tx/lockstep/coordinator/dtmwire/dtmwiretest"
)

// xaClient runs an XA-shaped transaction: the branch registers itself while the client waits for its action. The real
// databases are in servers_test.go.
type xaClient struct {
	name string
	run  func(r *rig.Rig, p *rig.Participant, gid string, f func(call func() error) error) error
	// register is what the branch does within its action.
	register func(r *rig.Rig, c rig.Call) error
}

var xaClients = []xaClient{
	{"http", func(r *rig.Rig, p *rig.Participant, gid string, f func(func() error) error) error {
		return dtmcli.XaGlobalTransaction(r.DTM, gid, func(x *dtmcli.Xa) (*resty.Response, error) {
			return nil, f(func() error { _, err := x.CallBranch(thirty, p.HTTP("xa?tenant=7")); return err })
		})
	}, func(r *rig.Rig, c rig.Call) error {
		x, err := dtmcli.XaFromQuery(c.Query)
		if err != nil {
			return err
		}
		return dtmimp.TransRegisterBranch(&x.TransBase, map[string]string{"url": x.Phase2URL, "branch_id": x.BranchID}, "registerBranch")
	}},
	{"grpc", func(r *rig.Rig, p *rig.Participant, gid string, f func(func() error) error) error {
		return dtmgrpc.XaGlobalTransaction(r.GRPC, gid, func(x *dtmgrpc.XaGrpc) error {
			return f(func() error { var out emptypb.Empty; return x.CallBranch(message(), p.GRPC("Xa"), &out) })
		})
	}, func(r *rig.Rig, c rig.Call) error {
		_, err := r.Client.RegisterBranch(c.Ctx, &dtmgpb.DtmBranchRequest{Gid: c.Gid, BranchID: c.Branch, TransType: "xa", Data: map[string]string{"url": c.Phase2URL}})
		return err
	}},
}

func eachXA(t *testing.T, scenario func(t *testing.T, c xaClient, r *rig.Rig, p *rig.Participant, gid string)) {
	t.Parallel()
	for _, c := range xaClients {
		t.Run(c.name, func(t *testing.T) {
			r, p := start(t)
			p.AlwaysDo("*", "action", func(call rig.Call) rig.Answer {
				if c.register(r, call) != nil {
					return rig.Broken
				}
				return rig.Success
			})
			scenario(t, c, r, p, newGid(r))
		})
	}
}

// Section 3.5: rows rollback, commit per branch, both with the registered url.
func TestXACommitsEveryBranch(t *testing.T) {
	eachXA(t, func(t *testing.T, c xaClient, r *rig.Rig, p *rig.Participant, gid string) {
		noErr(t, c.run(r, p, gid, twoBranches))
		r.Await(gid, succeed)
		wantEnd(t, r, gid, succeed, prepared, succeed, prepared, succeed)
		wantOpsUnordered(t, p, gid, "01 action", "02 action", "01 commit", "02 commit")
		_, rows := r.Query(gid)
		if rows[0].Op != "rollback" || rows[1].Op != "commit" || rows[0].URL != rows[1].URL {
			t.Errorf("rows are %+v", rows)
		}
		for _, call := range p.Calls(gid, "*", "commit") {
			if c.name == "http" && (call.Method != "POST" || call.Query.Get("tenant") != "7" || len(call.Body) != 0) {
				t.Errorf("XA calls are POST with the url's own query and no body (section 7): %+v", call)
			}
		}
	})
}

func TestXARollsEveryBranchBack(t *testing.T) {
	eachXA(t, func(t *testing.T, c xaClient, r *rig.Rig, p *rig.Participant, gid string) {
		p.Once("02", "action", rig.Failure) // before it registered
		p.Once("01", "rollback", rig.Ongoing)
		wantErr(t, c.run(r, p, gid, twoBranches), "insufficient funds")
		r.PassOver(gid)
		wantEnd(t, r, gid, aborting, prepared, prepared)
		r.Advance(ongoingPause)
		r.Await(gid, failed)
		wantEnd(t, r, gid, failed, succeed, prepared)
	})
}

// An XA transaction times out as a TCC does; a branch that registers afterwards is refused, so that it does not prepare.
func TestXATimeoutRollsBackAndRefusesLateBranches(t *testing.T) {
	eachXA(t, func(t *testing.T, c xaClient, r *rig.Rig, p *rig.Participant, gid string) {
		wantErr(t, c.run(r, p, gid, func(call func() error) error {
			r.Advance(300 * time.Second)
			if err := call(); err == nil {
				t.Error("a late branch was taken")
			}
			return nil
		}), "cannot sumbmit. FAILURE")
		wantEnd(t, r, gid, failed)
		if tx, _ := r.Query(gid); !regexp.MustCompile(`^Timeout after \d+ seconds$`).MatchString(tx.RollbackReason) {
			t.Errorf("reason is %q", tx.RollbackReason)
		}
	})
}

// A commit answered with an error is repeated: the branch treats the repeat as done (section 12).
func TestXACommitIsRepeatedUntilItSucceeds(t *testing.T) {
	eachXA(t, func(t *testing.T, c xaClient, r *rig.Rig, p *rig.Participant, gid string) {
		p.Once("01", "commit", rig.Ongoing, rig.Broken, rig.Reset)
		noErr(t, c.run(r, p, gid, func(call func() error) error { return call() }))
		for range 3 {
			r.PassOver(gid)
			r.Advance(errorPause)
		}
		r.Await(gid, succeed)
		wantEnd(t, r, gid, succeed, prepared, succeed)
	})
}

// A local error in the client's function aborts a transaction without branches.
func TestXAWithoutBranchesEndsAtOnce(t *testing.T) {
	eachXA(t, func(t *testing.T, c xaClient, r *rig.Rig, p *rig.Participant, gid string) {
		boom := errors.New("an error")
		if err := c.run(r, p, gid, func(func() error) error { return boom }); !errors.Is(err, boom) {
			t.Errorf("error is %v", err)
		}
		wantEnd(t, r, gid, failed)
	})
}

// A gid may hold quotes and spaces (section 3.3).
// D27: DTM formats the gid into SQL.
func TestXAGidWithQuotesAndSpaces(t *testing.T) {
	eachXA(t, func(t *testing.T, c xaClient, r *rig.Rig, p *rig.Participant, gid string) {
		odd := gid + `-'"a b"` + "`%2F?&=#"
		noErr(t, c.run(r, p, odd, func(call func() error) error { return call() }))
		r.Await(odd, succeed)
		wantOps(t, p, odd, "01 action", "01 commit")
	})
}
