// Package workload is clients of a bank: transfers in and across regions, ones that nobody can pay, ones whose client makes
// the tries itself, ones that are abandoned, and reads; an account that many want at once, requests that are made again, and ids
// that are used again for something else.
//
// Its law: what a lane asks for follows from the seed and the lane's number alone, but for which of its recent requests it repeats
// or asks about; what it is told goes into the history as it was told. An unknown stays unknown, and its client is retired: a
// repeat is an operation of its own.
package workload

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/url"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/lockstep-tx/lockstep/chaos/history"
	"github.com/lockstep-tx/lockstep/chaos/proc"
	"github.com/lockstep-tx/lockstep/coordinator/api/client"
)

const (
	// AnswerLimit is how long a client waits.
	AnswerLimit = 2 * time.Second
	overdraft   = 10 * proc.Deposit
	recentGids  = 64
	// recentRequests are few, so that a repeat comes soon, as a client's does.
	recentRequests = 4
	hotPercent     = 8
	thinkTimeMax   = 10 * time.Millisecond
)

// Options of a load.
type Options struct {
	Seed  uint64
	Lanes int // clients at once, half of them in each region
	// TryLimit is how long one branch call may take; Timeout ends what is not decided.
	TryLimit, Timeout time.Duration
	// RetryLimit is how many failed tries abort a transaction.
	RetryLimit int
	// Think is how long a client rests at most between two requests; 0 means 10 ms.
	Think time.Duration
	// Repeats: some requests are made again, some ids are used again for something else. Not where a region is lost for good: what it
	// alone knew may be done anew then.
	Repeats bool
	// Made is a load that was made before: it is made again, operation by operation, and nothing is drawn. nil: all is drawn.
	Made []Operation
}

// Load is running clients.
type Load struct {
	o       Options
	d       *proc.Deployment
	log     *history.Log
	clients [2][]*client.Client
	http    http.Client
	cancel  context.CancelFunc
	wg      sync.WaitGroup
	began   int64 // on the history's clock

	mu   sync.Mutex
	made []Operation
}

// Start starts the clients. Stop ends them.
func Start(ctx context.Context, d *proc.Deployment, log *history.Log, o Options) (*Load, error) {
	l := &Load{o: o, d: d, log: log, http: http.Client{Timeout: AnswerLimit, Transport: &http.Transport{MaxIdleConnsPerHost: 64}}}
	for i, r := range d.Regions {
		for _, addr := range r.GRPC {
			c, err := client.Dial(addr, client.WithDialOptions(grpc.WithConnectParams(grpc.ConnectParams{
				Backoff: backoff.Config{BaseDelay: 50 * time.Millisecond, Multiplier: 1.6, MaxDelay: 500 * time.Millisecond}, MinConnectTimeout: time.Second,
			})))
			if err != nil {
				return l, err
			}
			l.clients[i] = append(l.clients[i], c)
		}
	}
	ctx, l.cancel = context.WithCancel(ctx)
	l.began = log.Now()
	for n := range o.Lanes {
		l.wg.Go(func() { l.lane(ctx, n) })
	}
	return l, nil
}

// Stop lets what is under way end, and leaves.
func (l *Load) Stop() {
	if l.cancel != nil {
		l.cancel()
	}
	l.wg.Wait()
	for _, cs := range l.clients {
		for _, c := range cs {
			c.Close()
		}
	}
	l.clients = [2][]*client.Client{}
}

// lane is a client after another.
type lane struct {
	*Load
	n, at  int // its number, its region
	id     int // of the logical client
	rnd    *rand.Rand
	recent []string
	// executed are its last requests, known those of them that were answered.
	executed, known []Operation
}

func (l *Load) lane(ctx context.Context, n int) {
	s := &lane{Load: l, n: n, at: n % 2, id: l.log.Client(), rnd: rand.New(rand.NewPCG(l.o.Seed, uint64(n)))}
	if l.o.Made != nil {
		s.again(ctx)
		return
	}
	for k := 0; ctx.Err() == nil; k++ {
		p := s.plan(k)
		s.perform(&p)
		time.Sleep(p.think)
	}
}

// perform makes an operation, and notes it. A client that does not know what became of it is retired.
func (s *lane) perform(p *Operation) {
	if p.Kind == history.Read && p.Gid == "" {
		if len(s.recent) == 0 {
			return // without anything to ask for it is no operation
		}
		p.Gid = s.recent[int(p.Via)%len(s.recent)]
	}
	if !s.repeats(p) {
		return
	}
	p.At = time.Duration(s.log.Now() - s.began)
	s.mu.Lock()
	s.made = append(s.made, *p)
	s.mu.Unlock()
	var o history.Outcome
	switch p.Kind {
	case history.Read:
		o = s.read(p)
	case history.Execute, history.Again, history.Other:
		o = s.execute(p)
	default:
		o = s.byHand(p)
	}
	if o == history.Unknown {
		s.id = s.log.Client()
		time.Sleep(50 * time.Millisecond)
	}
}

// repeats fills in what an operation repeats, unless it says so already, and says whether there is any such.
func (s *lane) repeats(p *Operation) bool {
	from := s.executed
	if p.Kind == history.Other {
		from = s.known // of one that was never heard of it would be the first
	}
	if p.Kind != history.Again && p.Kind != history.Other || p.Gid != "" {
		return true
	}
	if len(from) == 0 {
		return false
	}
	of := from[int(p.Via)%len(from)]
	p.Gid, p.From, p.To, p.Amount = of.Gid, of.From, of.To, of.Amount
	if p.Kind == history.Other {
		p.Amount++
	}
	return true
}

// keep notes a request that may be repeated.
func keep(all []Operation, p *Operation) []Operation {
	if all = append(all, *p); len(all) > recentRequests {
		all = all[1:]
	}
	return all
}

func (s *lane) plan(k int) Operation {
	own, far := s.d.Regions[s.at].Accounts, s.d.Regions[1-s.at].Accounts
	pick := func(all []string) string {
		if n := s.rnd.IntN(len(all)); s.rnd.IntN(100) >= hotPercent {
			return all[n]
		}
		return all[len(all)-1]
	}
	from, to := pick(own), pick(own)
	cross, stray := s.rnd.IntN(100) < 40, s.rnd.IntN(100) < 15
	other := pick(far)
	amount, kind := int64(1+s.rnd.IntN(9)), s.rnd.IntN(100)
	p := Operation{Lane: s.n, Via: s.rnd.Uint32(), think: time.Duration(s.rnd.Int64N(int64(cmp.Or(s.o.Think, thinkTimeMax))))}
	if cross || to == from {
		to = other
	}
	home := from
	if stray {
		home = to
	}
	switch {
	case s.o.Repeats && kind < 3:
		p.Kind = history.Again
		return p
	case s.o.Repeats && kind < 5:
		p.Kind = history.Other
		return p
	case kind < 50:
		p.Kind = history.Execute
	case kind < 60:
		p.Kind, amount = history.Execute, overdraft
	case kind < 72:
		p.Kind = history.Commit
	case kind < 77:
		p.Kind = history.Abort
	case kind < 82:
		p.Kind = history.Abandon
	default:
		p.Kind = history.Read
		return p
	}
	p.Gid, p.From, p.To, p.Amount = fmt.Sprintf("{%s}%d-%d-%d", home, s.o.Seed, s.n, k), from, to, amount
	return p
}

// op is an operation as the history has it.
func (s *lane) op(p *Operation) history.Op {
	return history.Op{Client: s.id, Kind: p.Kind, Gid: p.Gid, Region: s.d.Regions[s.at].Name, From: p.From, To: p.To, Amount: p.Amount, Over: p.Amount == overdraft}
}

// tx is an operation as the coordinator is asked for it.
func (s *lane) tx(p *Operation) client.Tx {
	return client.Tx{Gid: p.Gid, Branches: []client.Branch{s.branch("pay", p.From, p.Amount), s.branch("receive", p.To, p.Amount)}, Options: client.Options{
		Timeout: s.o.Timeout, RequestTimeout: s.o.TryLimit, RetryInterval: 100 * time.Millisecond, RetryLimit: s.o.RetryLimit,
	}}
}

func (l *Load) branch(op, account string, amount int64) client.Branch {
	const at = "lockstep://wallet"
	p := l.d.Participant.Of(op)
	return client.Branch{ID: op, Account: account, Try: at + p.Try, Confirm: at + p.Confirm, Cancel: at + p.Cancel, Payload: l.d.Participant.Body(account, amount)}
}

func (s *lane) client(p *Operation) *client.Client {
	all := s.clients[s.at]
	return all[int(p.Via)%len(all)]
}

// Told says what an answer means.
func Told(st client.State, err error) (history.Outcome, history.Value, error) {
	switch {
	case err == nil && st.Committed():
		return history.OK, history.Committed, nil
	case err == nil && st.Aborted():
		return history.OK, history.Aborted, nil
	case err == nil:
		return history.OK, history.Open, nil
	}
	switch status.Code(err) {
	case codes.InvalidArgument, codes.FailedPrecondition, codes.NotFound, codes.AlreadyExists, codes.PermissionDenied, codes.Unimplemented:
		return history.Fail, history.None, err
	}
	return history.Unknown, history.None, err
}

func (s *lane) end(op *history.Op, st client.State, err error) history.Outcome {
	o, v, err := Told(st, err)
	s.log.End(op, o, v, err)
	if o != history.Unknown {
		s.remember(op.Gid)
	}
	return o
}

func (s *lane) remember(gid string) {
	if s.recent = append(s.recent, gid); len(s.recent) > recentGids {
		s.recent = s.recent[1:]
	}
}

// asked bounds a call; it is not broken off when the load ends, so that its answer is known.
func asked() (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.Background(), AnswerLimit)
}

func (s *lane) execute(p *Operation) history.Outcome {
	op := s.log.Begin(s.op(p))
	ctx, cancel := asked()
	defer cancel()
	st, err := s.client(p).Execute(ctx, s.tx(p), client.Decided)
	o := s.end(op, st, err)
	if p.Kind == history.Execute {
		if s.executed = keep(s.executed, p); o == history.OK {
			s.known = keep(s.known, p)
		}
	}
	return o
}

// read asks for something that this lane knew when it was drawn.
func (s *lane) read(p *Operation) history.Outcome {
	op := s.log.Begin(history.Op{Client: s.id, Kind: history.Read, Region: s.d.Regions[s.at].Name, Gid: p.Gid})
	ctx, cancel := asked()
	defer cancel()
	st, err := s.client(p).Get(ctx, op.Gid)
	o, v, err := Told(st, err)
	s.log.End(op, o, v, err)
	return o
}

// byHand begins, makes the tries, and decides or walks away.
func (s *lane) byHand(p *Operation) history.Outcome {
	op := s.log.Begin(s.op(p))
	ctx, cancel := asked()
	defer cancel()
	c := s.client(p)
	tx := s.tx(p)
	for i := range tx.Branches {
		tx.Branches[i].Try = ""
	}
	if st, err := c.Begin(ctx, tx); err != nil {
		return s.end(op, st, err)
	}
	ok := s.try(ctx, p, "pay", p.From)
	if p.Kind == history.Abandon {
		s.log.End(op, history.OK, history.Open, nil)
		s.remember(op.Gid)
		return history.OK
	}
	ok = s.try(ctx, p, "receive", p.To) && ok
	if p.Kind == history.Commit && ok {
		st, err := c.Commit(ctx, op.Gid, client.Decided)
		return s.end(op, st, err)
	}
	st, err := c.Abort(ctx, op.Gid, "the client changed its mind", client.Decided)
	return s.end(op, st, err)
}

// try makes a branch's try as a client does: without a fence.
func (s *lane) try(ctx context.Context, p *Operation, branch, account string) bool {
	q := url.Values{"gid": {p.Gid}, "trans_type": {"tcc"}, "branch_id": {branch}, "op": {"try"}}
	for i := range s.d.Regions {
		r := s.d.Regions[(s.home(account)+i)%2]
		req, err := http.NewRequestWithContext(ctx, http.MethodPost, r.Tap.URL()+s.d.Participant.Of(branch).Try+"?"+q.Encode(), bytes.NewReader(s.d.Participant.Body(account, p.Amount)))
		if err != nil {
			return false
		}
		resp, err := s.http.Do(req)
		if err != nil {
			return false
		}
		resp.Body.Close()
		if resp.StatusCode != http.StatusPreconditionFailed && resp.StatusCode != http.StatusMisdirectedRequest {
			return resp.StatusCode == http.StatusOK
		}
	}
	return false
}

func (s *lane) home(account string) int {
	for _, a := range s.d.Regions[1].Accounts {
		if a == account {
			return 1
		}
	}
	return 0
}
