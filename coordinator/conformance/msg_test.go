package conformance

import (
	"errors"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/dtm-labs/dtm/client/dtmcli"
	"github.com/dtm-labs/dtm/client/dtmcli/dtmimp"
	"github.com/dtm-labs/dtm/client/dtmgrpc"

	rig "github.com/lockstep-tx/lockstep/coordinator/dtmwire/dtmwiretest"
)

// msg is what the HTTP and the gRPC SDK have in common.
type msg interface {
	Prepare(queryPrepared string) error
	Submit() error
}

type msgClient struct {
	name  string
	query func(p *rig.Participant) string
	make  func(r *rig.Rig, p *rig.Participant, gid string, actions ...string) (msg, *dtmcli.Msg)
	act   func(p *rig.Participant) string
}

var msgClients = []msgClient{
	{"http", func(p *rig.Participant) string { return p.HTTP("query") },
		func(r *rig.Rig, p *rig.Participant, gid string, actions ...string) (msg, *dtmcli.Msg) {
			m := dtmcli.NewMsg(r.DTM, gid)
			for _, a := range actions {
				m.Add(a, thirty)
			}
			return m, m
		}, func(p *rig.Participant) string { return p.HTTP("act") }},
	{"grpc", func(p *rig.Participant) string { return p.GRPC("Query") },
		func(r *rig.Rig, p *rig.Participant, gid string, actions ...string) (msg, *dtmcli.Msg) {
			m := dtmgrpc.NewMsgGrpc(r.GRPC, gid)
			for _, a := range actions {
				m.Add(a, message())
			}
			return m, &m.Msg
		}, func(p *rig.Participant) string { return p.GRPC("Act") }},
	{"json-rpc", func(p *rig.Participant) string { return p.RPC("query") },
		func(r *rig.Rig, p *rig.Participant, gid string, actions ...string) (msg, *dtmcli.Msg) {
			m := dtmcli.NewMsg(r.JSONRPC, gid)
			m.Protocol = dtmimp.Jrpc
			for _, a := range actions {
				m.Add(a, thirty)
			}
			return m, m
		}, func(p *rig.Participant) string { return p.RPC("act") }},
}

func eachMsg(t *testing.T, scenario func(t *testing.T, c msgClient, m msg, o *dtmcli.Msg, r *rig.Rig, p *rig.Participant, gid string)) {
	t.Parallel()
	for _, c := range msgClients {
		t.Run(c.name, func(t *testing.T) {
			r, p := start(t)
			gid := newGid(r)
			m, o := c.make(r, p, gid, c.act(p), c.act(p))
			scenario(t, c, m, o, r, p, gid)
		})
	}
}

// Section 3.5: one row action per url, called in order.
func TestMsgSubmitCallsItsActionsInOrder(t *testing.T) {
	eachMsg(t, func(t *testing.T, c msgClient, m msg, o *dtmcli.Msg, r *rig.Rig, p *rig.Participant, gid string) {
		o.WaitResult = true
		noErr(t, m.Submit())
		wantOps(t, p, gid, "01 action", "02 action")
		wantEnd(t, r, gid, succeed, succeed, succeed)
	})
}

func TestMsgPreparedIsCalledOnlyAfterItsSubmit(t *testing.T) {
	eachMsg(t, func(t *testing.T, c msgClient, m msg, o *dtmcli.Msg, r *rig.Rig, p *rig.Participant, gid string) {
		noErr(t, m.Prepare(c.query(p)))
		noErr(t, m.Prepare(c.query(p))) // a repeat is taken
		wantEnd(t, r, gid, prepared, prepared, prepared)
		wantOps(t, p, gid)
		noErr(t, m.Submit())
		r.Await(gid, succeed)
		wantErr(t, m.Prepare(c.query(p)), "current status 'succeed', cannot prepare. FAILURE")
		wantErr(t, m.Submit(), "current status 'succeed', cannot sumbmit. FAILURE")
	})
}

// Sections 7 and 8: the check-back comes at the timeout, with branch 00, op msg, and no body.
func TestMsgCheckBackDecides(t *testing.T) {
	eachMsg(t, func(t *testing.T, c msgClient, m msg, o *dtmcli.Msg, r *rig.Rig, p *rig.Participant, gid string) {
		p.Once("00", "msg", rig.Ongoing)
		noErr(t, m.Prepare(c.query(p)))
		r.Advance(30 * time.Second)
		wantOps(t, p, gid)
		r.Advance(6 * time.Second)
		wantEnd(t, r, gid, prepared, prepared, prepared)
		q := p.Await(gid, "00", "msg", 1)[0]
		if q.TransType != "msg" || (c.name == "http" && (q.Method != "GET" || len(q.Body) != 0)) {
			t.Errorf("the check-back is %+v", q)
		}
		p.Once("02", "action", rig.Ongoing)
		r.Advance(ongoingPause)
		r.PassOver(gid)
		wantEnd(t, r, gid, submitted, succeed, prepared)
		r.Advance(ongoingPause)
		r.Await(gid, succeed)
		wantOps(t, p, gid, "00 msg", "00 msg", "01 action", "02 action", "02 action")
	})
}

func TestMsgCheckBackRefusedEndsIt(t *testing.T) {
	eachMsg(t, func(t *testing.T, c msgClient, m msg, o *dtmcli.Msg, r *rig.Rig, p *rig.Participant, gid string) {
		p.Once("00", "msg", rig.Broken, rig.Ongoing, rig.Failure)
		o.TimeoutToFail = 120
		noErr(t, m.Prepare(c.query(p)))
		r.Advance(60 * time.Second)
		wantOps(t, p, gid)
		for range 3 {
			r.Advance(100 * time.Second)
			r.PassOver(gid)
		}
		r.Await(gid, failed)
		wantEnd(t, r, gid, failed, prepared, prepared)
		wantOps(t, p, gid, "00 msg", "00 msg", "00 msg")
		wantErr(t, m.Submit(), "current status 'failed', cannot sumbmit. FAILURE")
	})
}

func TestMsgAbortEndsAPreparedMessage(t *testing.T) {
	eachMsg(t, func(t *testing.T, c msgClient, m msg, o *dtmcli.Msg, r *rig.Rig, p *rig.Participant, gid string) {
		noErr(t, m.Prepare(c.query(p)))
		if code, body, _ := r.Post("/abort", map[string]string{"gid": gid, "trans_type": "msg"}); code != 200 {
			t.Fatalf("abort: %d %s", code, body)
		}
		wantEnd(t, r, gid, failed, prepared, prepared)
		if code, _, _ := r.Post("/abort", map[string]string{"gid": gid, "trans_type": "msg"}); code != 409 {
			t.Errorf("a second abort answered %d", code)
		}
		wantErr(t, m.Submit(), "cannot sumbmit. FAILURE")
	})
}

// FAILURE from a message's action is retried like any error (section 2.2).
func TestMsgActionIsRetriedWhateverItAnswers(t *testing.T) {
	eachMsg(t, func(t *testing.T, c msgClient, m msg, o *dtmcli.Msg, r *rig.Rig, p *rig.Participant, gid string) {
		p.Once("01", "action", rig.Failure, rig.Broken, rig.Ongoing, rig.Reset)
		noErr(t, m.Submit())
		for range 4 {
			r.PassOver(gid)
			if got := r.Status(gid); got != submitted {
				t.Errorf("status is %s", got)
			}
			r.Advance(errorPause)
		}
		r.Await(gid, succeed)
		if n := p.Count(gid, "01", "action"); n != 5 {
			t.Errorf("%d calls, want 5", n)
		}
	})
}

// Section 8: no branch before create_time + delay.
func TestMsgDelayHoldsItsActionsBack(t *testing.T) {
	eachMsg(t, func(t *testing.T, c msgClient, m msg, o *dtmcli.Msg, r *rig.Rig, p *rig.Participant, gid string) {
		o.SetDelay(10)
		noErr(t, m.Submit())
		r.Advance(8 * time.Second)
		wantOps(t, p, gid)
		wantEnd(t, r, gid, submitted, prepared, prepared)
		r.Advance(3 * time.Second)
		r.Await(gid, succeed)
		wantOps(t, p, gid, "01 action", "02 action")
	})
}

// Section 8: with concurrent a message's actions are called at once (HTTP and JSON-RPC only: section 4).
func TestMsgConcurrentCallsItsActionsAtOnce(t *testing.T) {
	r, p := start(t)
	gid := newGid(r)
	m, o := msgClients[0].make(r, p, gid, p.HTTP("a"), p.HTTP("b"))
	o.Concurrent, o.RequestTimeout = true, 20
	p.Once("01", "action", rig.Hang)
	p.Once("02", "action", rig.Hang)
	noErr(t, m.Submit())
	p.Await(gid, "*", "action", 2)
	p.Release()
	r.Await(gid, succeed)
}

// Section 10: a topic step is expanded to the subscribers of the moment at which the transaction is created.
func TestMsgTopicGoesToItsSubscribers(t *testing.T) {
	eachMsg(t, func(t *testing.T, c msgClient, _ msg, _ *dtmcli.Msg, r *rig.Rig, p *rig.Participant, gid string) {
		sub := func(path, u string) {
			t.Helper()
			if code, body, _ := r.Get("/" + path + "?topic=orders&remark=x&url=" + url.QueryEscape(u)); code != 200 {
				t.Fatalf("%s: %d %s", path, code, body)
			}
		}
		m, o := c.make(r, p, gid, "topic://orders", c.act(p))
		wantErr(t, m.Submit(), "topic not found")
		sub("subscribe", c.act(p)+"1")
		one := gid + "-one"
		mm, _ := c.make(r, p, one, "topic://orders")
		noErr(t, mm.Submit())
		r.Await(one, succeed)
		wantOps(t, p, one, "01 action")
		sub("subscribe", c.act(p)+"2")
		noErr(t, m.Prepare(c.query(p)))
		// Later changes of the topic do not matter, not even its end.
		sub("unsubscribe", c.act(p)+"1")
		sub("unsubscribe", c.act(p)+"2")
		o.WaitResult = true
		noErr(t, m.Submit())
		wantOps(t, p, gid, "01-01 action", "01-02 action", "02 action")
		wantEnd(t, r, gid, succeed, succeed, succeed, succeed)
	})
}

// Section 6: DoAndSubmit asks the check-back itself after an error that says nothing, and aborts after a refusal.
func TestMsgDoAndSubmitFollowsTheLocalTransaction(t *testing.T) {
	refused := errors.New("boom")
	cases := map[string]struct {
		local error
		query rig.Answer
		want  string
		calls []string
	}{
		"done":                        {nil, rig.Success, succeed, []string{"01 action", "02 action"}},
		"refused":                     {dtmcli.ErrFailure, rig.Success, failed, nil},
		"unknown, check-back says so": {refused, rig.Success, succeed, []string{"00 msg", "01 action", "02 action"}},
		"unknown, check-back refuses": {refused, rig.Failure, failed, []string{"00 msg"}},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			eachMsg(t, func(t *testing.T, c msgClient, m msg, o *dtmcli.Msg, r *rig.Rig, p *rig.Participant, gid string) {
				p.Always("00", "msg", tc.query)
				query := c.query(p)
				if c.name == "json-rpc" {
					query = p.HTTP("query") // the SDK itself asks with GET
				}
				var err error
				busi := func(*dtmcli.BranchBarrier) error { return tc.local }
				if g, ok := m.(*dtmgrpc.MsgGrpc); ok {
					err = g.DoAndSubmit(query, busi)
				} else {
					err = o.DoAndSubmit(query, busi)
				}
				if !errors.Is(err, tc.local) {
					t.Errorf("error is %v, want %v", err, tc.local)
				}
				r.Await(gid, tc.want)
				wantOps(t, p, gid, tc.calls...)
			})
		})
	}
}

// Section 2.2: JSON-RPC codes of branches, which DTM never recognises (D7).
func TestMsgJSONRPCCodesOfBranchesAreRecognised(t *testing.T) {
	r, p := start(t)
	gid := newGid(r)
	m, _ := msgClients[2].make(r, p, gid, p.RPC("act"))
	p.Once("01", "action", rig.Ongoing)
	noErr(t, m.Submit())
	r.PassOver(gid)
	r.Advance(5 * time.Second) // an error would have been repeated by now, ONGOING waits its interval
	wantOps(t, p, gid, "01 action")
	r.Advance(6 * time.Second)
	r.Await(gid, succeed)

	gid2 := newGid(r)
	p.Always("00", "msg", rig.Answer{RPC: -32901})
	m2, _ := msgClients[2].make(r, p, gid2, p.RPC("act"))
	noErr(t, m2.Prepare(p.RPC("query")))
	r.Advance(40 * time.Second)
	r.Await(gid2, failed)
	if tx, _ := r.Query(gid2); strings.Contains(tx.RollbackReason, "ONGOING") {
		t.Errorf("reason is %q", tx.RollbackReason)
	}
}
