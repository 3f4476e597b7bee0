package dtm

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/lockstep-tx/lockstep/chaos/history"
)

const (
	// answerLimit is how long a client waits for DTM in all, tryLimit how long for one try.
	answerLimit  = 2 * time.Second
	tryLimit     = 600 * time.Millisecond
	overdraft    = 10 * deposit
	recentGids   = 64
	thinkTimeMax = 10 * time.Millisecond
	// An overdue client registers its first branch at once, and from just before its transaction's time is over one after the
	// other, until DTM refuses one.
	overdueFrom  = timeoutToFail*time.Second - 300*time.Millisecond
	overduePause = 15 * time.Millisecond
	overdueLimit = 6 * time.Second
	branchesMax  = 250
	overdueLanes = 12 // every so many-th lane is one whose clients do so
)

// habits are what clients do that is not usual. A fault switches them.
type habits struct {
	// twice has submits sent a second time, as a gateway does that repeats what was not answered at once.
	twice atomic.Bool
	// overdue has some clients go on registering branches while the time of their transaction runs out.
	overdue atomic.Bool
	// counted has gids that are plain numbers at the end, so that one is another's beginning.
	counted atomic.Bool

	twices, refusedLate, prefixes atomic.Int64 // what they did
	// aborts that followed a submit without an answer, by DTM's answer: it had the submit, or it had not.
	abortsRefused, abortsTaken atomic.Int64
}

// Load starts clients: half of them ask the first server, half the second where there is one.
func (s *System) Load(ctx context.Context, seed uint64, lanes int) (stop func(), err error) {
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	for n := range lanes {
		wg.Go(func() { s.lane(ctx, seed, n) })
	}
	return func() { cancel(); wg.Wait() }, nil
}

// lane is one client after another. A client that does not know what became of its request is retired.
type lane struct {
	*System
	n, at  int
	id     int
	seed   uint64
	rnd    *rand.Rand
	recent []string
	// counted are its gids that are plain numbers at the end.
	counted int
}

func (s *System) lane(ctx context.Context, seed uint64, n int) {
	l := &lane{System: s, n: n, at: n % len(s.servers), id: s.log.Client(), seed: seed, rnd: rand.New(rand.NewPCG(seed, uint64(n)))}
	for k := 1; ctx.Err() == nil; k++ {
		p := l.plan(k)
		var o history.Outcome
		switch {
		case p.Kind == history.Read:
			o = l.read(p)
		case n%overdueLanes == 0 && s.hab.overdue.Load():
			o = l.overdue(p)
		case p.Kind == history.Abandon && s.hab.overdue.Load():
			// Nobody else walks away meanwhile: a server cancels one transaction after the other, and these have many branches.
		default:
			o = l.transfer(p)
		}
		if o == history.Unknown {
			l.id = s.log.Client()
			time.Sleep(50 * time.Millisecond)
		}
		time.Sleep(p.think)
	}
}

// plan is what one operation will be. All draws are made here.
type plan struct {
	history.Op
	via   uint32
	think time.Duration
}

func (l *lane) plan(k int) plan {
	own, far := l.d.Regions[l.n%2].Accounts, l.d.Regions[1-l.n%2].Accounts
	pick := func(all []string) string { return all[l.rnd.IntN(len(all))] }
	from, to, other := pick(own), pick(own), pick(far)
	amount, kind, cross := int64(1+l.rnd.IntN(9)), l.rnd.IntN(100), l.rnd.IntN(100) < 60
	p := plan{via: l.rnd.Uint32(), think: time.Duration(l.rnd.Int64N(int64(thinkTimeMax)))}
	if cross || from == to {
		to = other
	}
	op := history.Commit
	switch {
	case kind < 62:
	case kind < 70:
		amount = overdraft
	case kind < 76:
		op = history.Abort
	case kind < 81:
		op = history.Abandon
	default:
		op = history.Read
	}
	gid := fmt.Sprintf("%06d-%03d-%06d", l.seed, l.n, k)
	if l.hab.counted.Load() {
		l.counted++
		if gid = fmt.Sprintf("order-%d-%d-%d", l.seed, l.n, l.counted); l.counted > 9 {
			l.hab.prefixes.Add(1) // 1 is the beginning of 10
		}
	}
	p.Op = history.Op{Client: l.id, Kind: op, Gid: gid, Region: l.d.Regions[l.at].Name, From: from, To: to, Amount: amount, Over: amount == overdraft}
	return p
}

// global is the body of prepare, submit and abort: DTM's SDK sends its options with each.
func global(gid string) map[string]any {
	return map[string]any{"gid": gid, "trans_type": "tcc", "timeout_to_fail": timeoutToFail, "request_timeout": requestTimeout}
}

func (l *lane) api(path string) string { return l.apis[l.at] + "/" + path }

// ended enters what a client was told, and says so.
func (l *lane) ended(op *history.Op, o history.Outcome, v history.Value, err error) history.Outcome {
	l.log.End(op, o, v, err)
	if op.Kind != history.Read && o != history.Unknown {
		if l.recent = append(l.recent, op.Gid); len(l.recent) > recentGids {
			l.recent = l.recent[1:]
		}
	}
	return o
}

// asked bounds an operation; it is not broken off when the load ends.
func asked() (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.Background(), answerLimit)
}

// read asks for something that this lane knows; without anything it is no operation.
func (l *lane) read(p plan) history.Outcome {
	if len(l.recent) == 0 {
		return history.OK
	}
	op := l.log.Begin(history.Op{Client: l.id, Kind: history.Read, Region: p.Region, Gid: l.recent[int(p.via)%len(l.recent)]})
	ctx, cancel := asked()
	defer cancel()
	v, err := l.query(ctx, l.apis[l.at:l.at+1], op.Gid)
	if err != nil {
		return l.ended(op, history.Unknown, history.None, err)
	}
	return l.ended(op, history.OK, v.value(), nil)
}

// transfer does what TccGlobalTransaction of DTM's SDK does: prepare, register and try each branch, then submit, or abort
// where something was refused or not answered.
func (l *lane) transfer(p plan) history.Outcome {
	op := l.log.Begin(p.Op)
	ctx, cancel := asked()
	defer cancel()
	if err := l.post(ctx, l.api("prepare"), global(p.Gid)); err != nil {
		if errors.Is(err, errNo) {
			return l.ended(op, history.Fail, history.None, err)
		}
		return l.ended(op, history.Unknown, history.None, err)
	}
	err := l.tries(ctx, p, "pay", "pay", p.From)
	if p.Kind == history.Abandon {
		return l.ended(op, history.OK, history.Open, nil) // and it is gone
	}
	if err == nil {
		err = l.tries(ctx, p, "receive", "receive", p.To)
	}
	if err != nil || p.Kind == history.Abort {
		return l.abort(op)
	}
	return l.submit(ctx, op)
}

// tries registers a branch and makes its try.
func (l *lane) tries(ctx context.Context, p plan, branch, path, account string) error {
	region := 0
	if strings.HasPrefix(account, l.d.Regions[1].Name) {
		region = 1
	}
	payload := fmt.Sprintf(`{"account":%q,"amount":%d}`, account, p.Amount)
	at := "http://" + l.branch[region].Addr() + "/" + path
	err := l.post(ctx, l.api("registerBranch"), map[string]string{"gid": p.Gid, "trans_type": "tcc", "branch_id": branch, "data": payload, "confirm": at + "/confirm", "cancel": at + "/cancel"})
	if err != nil {
		return fmt.Errorf("register: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, tryLimit)
	defer cancel()
	q := url.Values{"gid": {p.Gid}, "trans_type": {"tcc"}, "branch_id": {branch}, "op": {"try"}}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, l.d.Regions[region].Tap.URL()+"/"+path+"/try?"+q.Encode(), strings.NewReader(payload))
	if err != nil {
		return err
	}
	resp, err := l.http.Do(req)
	if err != nil {
		return err
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("try: %s", resp.Status)
	}
	return nil
}

// submit asks for the commit. Where it is not answered, the client asks for the opposite, as most of DTM's SDKs do: DTM must
// refuse that where the submit has come through.
func (l *lane) submit(ctx context.Context, op *history.Op) history.Outcome {
	if l.hab.twice.Load() {
		l.hab.twices.Add(1)
		go func() {
			ctx, cancel := asked()
			defer cancel()
			_ = l.post(ctx, l.api("submit"), global(op.Gid)) // nobody waits for the repeat's answer
		}()
	}
	err := l.post(ctx, l.api("submit"), global(op.Gid))
	switch {
	case err == nil:
		return l.ended(op, history.OK, history.Committed, nil)
	case errors.Is(err, errNo) && !l.hab.twice.Load():
		return l.ended(op, history.Fail, history.None, err)
	case errors.Is(err, errNo): // by the repeat, or by the time
		return l.ended(op, history.Unknown, history.None, err)
	}
	actx, cancel := asked()
	defer cancel()
	switch aerr := l.post(actx, l.api("abort"), global(op.Gid)); {
	case aerr == nil:
		l.hab.abortsTaken.Add(1)
		return l.ended(op, history.OK, history.Aborted, nil)
	case errors.Is(aerr, errNo):
		l.hab.abortsRefused.Add(1)
	}
	return l.ended(op, history.Unknown, history.None, err)
}

// abort asks for the end, with an answer limit of its own: its tries may have used up theirs.
func (l *lane) abort(op *history.Op) history.Outcome {
	ctx, cancel := asked()
	defer cancel()
	err := l.post(ctx, l.api("abort"), global(op.Gid))
	switch {
	case err == nil:
		return l.ended(op, history.OK, history.Aborted, nil)
	case errors.Is(err, errNo): // it has ended by itself
		return l.ended(op, history.Fail, history.None, err)
	}
	return l.ended(op, history.Unknown, history.None, err)
}

// overdue goes on registering branches and trying them while the transaction's time runs out, until DTM refuses one; then the
// client is gone, as one is that was killed for its slowness.
func (l *lane) overdue(p plan) history.Outcome {
	p.Kind, p.Over, p.Amount = history.Abandon, false, min(p.Amount, 9)
	op := l.log.Begin(p.Op)
	began := time.Now()
	prepare, cancel := asked()
	defer cancel()
	if err := l.post(prepare, l.api("prepare"), global(p.Gid)); err != nil {
		return l.ended(op, history.Unknown, history.None, err)
	}
	for n := 1; n <= branchesMax && time.Since(began) < overdueFrom+overdueLimit; n++ {
		branch := "pay"
		if n > 1 {
			branch = fmt.Sprintf("pay-%d", n)
		}
		ctx, cancel := asked()
		err := l.tries(ctx, p, branch, "pay", p.From)
		cancel()
		if errors.Is(err, errNo) {
			l.hab.refusedLate.Add(1)
			break
		}
		if n == 1 {
			time.Sleep(time.Until(began.Add(overdueFrom)))
		}
		time.Sleep(overduePause)
	}
	return l.ended(op, history.OK, history.Open, nil)
}
