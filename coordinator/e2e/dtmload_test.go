//go:build servers

package e2e

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/dtm-labs/dtm/client/dtmcli"
	"github.com/dtm-labs/dtm/client/dtmgrpc"
	"github.com/dtm-labs/logger"
	"github.com/go-resty/resty/v2"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/lockstep-tx/lockstep/coordinator/dtmwire/dtmwiretest"
)

// dtmLoad is DTM's own Go SDK at work: TCC and saga, over HTTP and gRPC, all with wait_result, through every coordinator,
// each at its own address. Every third transaction is refused by its second branch. It remembers what each client heard.
type dtmLoad struct {
	t    *testing.T
	cs   []*coordinator
	name string
	bank *bank
	p    *dtmwiretest.Participant

	tccTimeout int64 // seconds

	stop context.CancelFunc
	wg   sync.WaitGroup
	mu   sync.Mutex
	told map[string]heard
	why  map[string]error // of those that never asked
}

// gaveUp notes why a client did not ask for the commit.
func (l *dtmLoad) gaveUp(gid string, err error) heard {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.why[gid] = err
	return neverAsked
}

// reason is why a client did not ask for the commit.
func (l *dtmLoad) reason(gid string) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.why[gid]
}

// heard is what an SDK's client can conclude.
type heard int

const (
	heardNothing heard = iota // an error that says nothing of the outcome
	heardSuccess
	heardFailure
	neverAsked // the client did not ask for the commit: nothing may be confirmed
)

func (h heard) String() string {
	return [...]string{"nothing", "SUCCESS", "FAILURE", "never asked for the commit"}[h]
}

// startDTMLoad keeps clients at work until Stop. tccTimeout, in seconds, bounds a TCC whose client can reach nobody any more.
func startDTMLoad(t *testing.T, name string, cs []*coordinator, clientsEach int, tccTimeout int64) *dtmLoad {
	t.Helper()
	logger.InitLog2("error", "/dev/null", 0, "") // the SDK prints a line per call
	l := &dtmLoad{t: t, cs: cs, name: name, bank: newBank(t), p: dtmwiretest.NewParticipant(t), told: map[string]heard{}, why: map[string]error{}, tccTimeout: tccTimeout}
	l.p.AlwaysDo("*", "*", l.participant)
	ctx, stop := context.WithCancel(context.Background())
	l.stop = stop
	t.Cleanup(l.Stop)
	kinds := []struct {
		name string
		run  func(c *coordinator, gid string) heard
	}{{"tcc-http", l.tccHTTP}, {"tcc-grpc", l.tccGRPC}, {"saga-http", l.sagaHTTP}, {"saga-grpc", l.sagaGRPC}}
	for home := range cs {
		for _, k := range kinds {
			for w := range clientsEach {
				l.wg.Go(func() {
					at := home
					for i := 0; ctx.Err() == nil; i++ {
						gid := fmt.Sprintf("%s-%s-%d-%d-%d", name, k.name, home, w, i)
						if i%3 == 2 {
							gid += refusedSuffix
						}
						h := k.run(cs[at], gid)
						l.mu.Lock()
						l.told[gid] = h
						l.mu.Unlock()
						if h != heardSuccess && h != heardFailure && !strings.HasSuffix(gid, refusedSuffix) {
							at = (at + 1) % len(cs) // as behind a load balancer
						}
					}
				})
			}
		}
	}
	return l
}

// refusedSuffix marks the transactions whose second branch refuses.
const refusedSuffix = "-no"

// participant is every branch: a barrier and counters, whatever the protocol.
func (l *dtmLoad) participant(c dtmwiretest.Call) dtmwiretest.Answer {
	op := map[string]string{"action": "try", "compensate": "cancel"}[c.Op]
	if op == "" {
		op = c.Op
	}
	if op == "try" && c.Branch == "02" && strings.HasSuffix(c.Gid, refusedSuffix) {
		return dtmwiretest.Failure
	}
	l.bank.mu.Lock()
	before := l.bank.before
	l.bank.mu.Unlock()
	if before != nil {
		before(c.Gid, c.Branch, op)
	}
	if l.bank.apply(c.Gid, c.Branch, op) != http.StatusOK {
		return dtmwiretest.Failure
	}
	return dtmwiretest.Success
}

// answered sorts the error of a submit.
func answered(err error) heard {
	switch {
	case err == nil:
		return heardSuccess
	case strings.Contains(err.Error(), dtmcli.ResultFailure), errors.Is(err, dtmcli.ErrFailure):
		return heardFailure
	}
	return heardNothing
}

func (l *dtmLoad) tccHTTP(c *coordinator, gid string) heard {
	tried := false
	err := dtmcli.TccGlobalTransaction2("http://"+c.addr.HTTP+"/api/dtmsvr", gid, func(t *dtmcli.Tcc) {
		t.WaitResult, t.TimeoutToFail, t.RequestTimeout = true, l.tccTimeout, 20
	}, func(t *dtmcli.Tcc) (*resty.Response, error) {
		for range 2 {
			if r, err := t.CallBranch(map[string]string{"a": "b"}, l.p.HTTP("try"), l.p.HTTP("confirm"), l.p.HTTP("cancel")); err != nil {
				return r, err
			}
		}
		tried = true
		return nil, nil
	})
	if !tried {
		return l.gaveUp(gid, err)
	}
	return answered(err)
}

func (l *dtmLoad) tccGRPC(c *coordinator, gid string) heard {
	tried := false
	err := dtmgrpc.TccGlobalTransaction2(c.addr.GRPC, gid, func(t *dtmgrpc.TccGrpc) {
		t.WaitResult, t.TimeoutToFail, t.RequestTimeout = true, l.tccTimeout, 20
	}, func(t *dtmgrpc.TccGrpc) error {
		for range 2 {
			if err := t.CallBranch(wrapperspb.String("a"), l.p.GRPC("Try"), l.p.GRPC("Confirm"), l.p.GRPC("Cancel"), &emptypb.Empty{}); err != nil {
				return err
			}
		}
		tried = true
		return nil
	})
	if !tried {
		return l.gaveUp(gid, err)
	}
	return answered(dtmgrpc.GrpcError2DtmError(err))
}

func (l *dtmLoad) sagaHTTP(c *coordinator, gid string) heard {
	s := dtmcli.NewSaga("http://"+c.addr.HTTP+"/api/dtmsvr", gid).
		Add(l.p.HTTP("do"), l.p.HTTP("undo"), map[string]string{"a": "b"}).
		Add(l.p.HTTP("do"), l.p.HTTP("undo"), map[string]string{"a": "b"})
	s.WaitResult, s.RequestTimeout = true, 20
	return answered(s.Submit())
}

func (l *dtmLoad) sagaGRPC(c *coordinator, gid string) heard {
	s := dtmgrpc.NewSagaGrpc(c.addr.GRPC, gid).
		Add(l.p.GRPC("Do"), l.p.GRPC("Undo"), wrapperspb.String("a")).
		Add(l.p.GRPC("Do"), l.p.GRPC("Undo"), wrapperspb.String("a"))
	s.WaitResult, s.RequestTimeout = true, 20
	return answered(dtmgrpc.GrpcError2DtmError(s.Submit()))
}

// outcomes is a snapshot of what the clients heard.
func (l *dtmLoad) outcomes() map[string]heard {
	l.mu.Lock()
	defer l.mu.Unlock()
	return maps.Clone(l.told)
}

// progress waits until the clients of every kind have heard of n more transactions each.
func (l *dtmLoad) progress(n int) {
	l.t.Helper()
	count := func() map[string]int {
		out := map[string]int{}
		for gid, h := range l.outcomes() {
			if h == heardSuccess || h == heardFailure {
				for _, k := range []string{"tcc-http", "tcc-grpc", "saga-http", "saga-grpc"} {
					if strings.HasPrefix(gid, l.name+"-"+k) {
						out[k]++
					}
				}
			}
		}
		return out
	}
	before := count()
	eventually(l.t, 60*time.Second, "every kind of client gets on", func() bool {
		now := count()
		for _, k := range []string{"tcc-http", "tcc-grpc", "saga-http", "saga-grpc"} {
			if now[k] < before[k]+n {
				return false
			}
		}
		return true
	})
}

// Stop lets the requests under way end. Idempotent.
func (l *dtmLoad) Stop() {
	l.stop()
	l.wg.Wait()
}

// audit waits for the end of everything, then holds each answer against what the participants counted.
func (l *dtmLoad) audit(alive *coordinator) {
	l.t.Helper()
	l.Stop()
	told := l.outcomes()
	var open []string
	statuses := map[string]string{}
	for _, gid := range slices.Sorted(maps.Keys(told)) {
		open = append(open, gid)
	}
	eventually(l.t, 60*time.Second, "every transaction has ended", func() bool {
		open = slices.DeleteFunc(open, func(gid string) bool {
			st, known := dtmQuery(l.t, alive, gid)
			statuses[gid] = st
			return known && (st == "succeed" || st == "failed" || st == "")
		})
		return len(open) == 0
	})
	counts := map[heard]int{}
	for gid, h := range told {
		counts[h]++
		done, undone := l.effects(gid)
		st := statuses[gid]
		if done && undone {
			l.t.Errorf("%s: mixed: %+v and %+v", gid, l.bank.get(gid, "01"), l.bank.get(gid, "02"))
		}
		switch {
		case h == heardSuccess && (st != "succeed" || !done):
			l.t.Errorf("%s: the client heard SUCCESS; it is %q, %+v, %+v", gid, st, l.bank.get(gid, "01"), l.bank.get(gid, "02"))
		case h == heardFailure && (st != "failed" || done):
			l.t.Errorf("%s: the client heard FAILURE; it is %q, %+v, %+v", gid, st, l.bank.get(gid, "01"), l.bank.get(gid, "02"))
		case h == neverAsked && (st == "succeed" || done):
			l.t.Errorf("%s: nobody asked for the commit; it is %q, %+v, %+v", gid, st, l.bank.get(gid, "01"), l.bank.get(gid, "02"))
		case st == "succeed" && !done, st == "failed" && done, st == "" && done:
			l.t.Errorf("%s: it is %q, and the branches did %+v, %+v", gid, st, l.bank.get(gid, "01"), l.bank.get(gid, "02"))
		case strings.HasSuffix(gid, refusedSuffix) && done:
			l.t.Errorf("%s: its second branch refused, and it is carried out", gid)
		}
	}
	l.t.Logf("%d transactions: %d heard SUCCESS, %d FAILURE, %d nothing definite, %d gave up before", len(told), counts[heardSuccess], counts[heardFailure], counts[heardNothing], counts[neverAsked])
	if counts[heardSuccess] == 0 || counts[heardFailure] == 0 {
		l.t.Error("one of the answers was never given: nothing was tested")
	}
}

// effects says whether the transaction is carried out in full, and whether any of it is undone or lacks its second half.
func (l *dtmLoad) effects(gid string) (done, undone bool) {
	saga := strings.Contains(gid, "-saga-")
	full := 0
	for _, b := range []string{"01", "02"} {
		e := l.bank.get(gid, b)
		if undo := e.cancelled+e.tombstone > 0; undo {
			undone = true
		} else if e.confirmed == 1 || saga && e.tried == 1 {
			full++
		} else if e.tried == 1 {
			l.t.Errorf("%s/%s: tried, and neither confirmed nor cancelled", gid, b)
		}
		if e.confirmed == 1 {
			done = true // one confirm is enough to be a commit
		}
	}
	if full == 1 {
		undone = true
	}
	return done || full == 2, undone
}

// dtmQuery asks for a transaction's status word; known is false where nobody could say.
func dtmQuery(t *testing.T, c *coordinator, gid string) (status string, known bool) {
	t.Helper()
	resp, err := http.Get("http://" + c.addr.HTTP + "/api/dtmsvr/query?gid=" + gid)
	if err != nil {
		return "", false
	}
	resp.Body.Close()
	return dtmStatus(t, c, gid), resp.StatusCode == http.StatusOK
}
