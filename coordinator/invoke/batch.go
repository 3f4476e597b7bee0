package invoke

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/valyala/fasthttp"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/lockstep-tx/lockstep/coordinator/engine"
	"github.com/lockstep-tx/lockstep/coordinator/txn"
	"github.com/lockstep-tx/lockstep/participants/branch/batchpb"
)

// A participant that offers the native batch protocol says so in its answers to single calls. From then on what waits
// for it goes in one request: the first call leaves at once, what comes while it is under way makes the next batch. The
// guarantees are those of single calls: each member has its own answer, and what has none is Unknown.

const (
	batchCallsMax = 128
	batchBytesMax = 1 << 20
	// batchesMax bounds the batches under way to one participant; a batch that takes longer than batchPatience does not
	// count, so that a member that hangs holds up nobody. slowMax bounds those.
	batchesMax    = 2
	batchPatience = 50 * time.Millisecond
	slowMax       = 64
	// refusedFor is how long an offer is not believed after a batch was answered with "no such thing".
	refusedFor = time.Minute
	// askEvery: of the gRPC calls to a destination without an offer, so many are asked for one. Over HTTP it costs nothing.
	askEvery = 64
)

// lane is one way to a destination, HTTP or gRPC with or without TLS, and what is batched on it. Its destination's lock
// guards it.
type lane struct {
	offer       string // path or method; "" for none
	refusedTill time.Time
	apart       map[string]bool // paths of this address that the offer does not cover
	waiting     []job
	young, slow int // batches under way
	asked       int
}

// laneOf names the lane that a call may share; "" if it must go by itself.
func laneOf(c *engine.Call) string {
	if c.Op > txn.OpCompensate {
		return "" // a check-back, a workflow's callback and XA's second phase are not a barrier's
	}
	switch kindOf(c) {
	case kindHTTP:
		scheme, _, _ := strings.Cut(c.URL, "://")
		return scheme
	case kindGRPC:
		if len(c.Results) > 0 {
			return "" // they travel as metadata
		}
		if strings.HasPrefix(c.URL, grpcsScheme) {
			return "grpcs"
		}
		return "grpc"
	}
	return ""
}

// targetOf is what a member calls: path and query, or method.
func targetOf(c *engine.Call) string {
	u := c.URL
	if i := strings.Index(u, "://"); i >= 0 {
		u = u[i+3:]
	}
	if i := strings.IndexByte(u, '/'); i >= 0 {
		u, _, _ = strings.Cut(u[i:], "#")
		return u
	}
	return "/"
}

func pathOf(target string) string {
	path, _, _ := strings.Cut(target, "?")
	return path
}

// lane gives where a call is batched; nil if it goes by itself. d.mu is held.
func (d *destination) lane(c *engine.Call) *lane {
	if len(d.lanes) == 0 {
		return nil
	}
	ln := d.lanes[laneOf(c)]
	if ln == nil || ln.offer == "" || (len(ln.apart) > 0 && ln.apart[pathOf(targetOf(c))]) {
		return nil
	}
	return ln
}

// offered books what an answer to a single call has offered.
func (v *Invoker) offered(c *engine.Call, offer string) {
	name := laneOf(c)
	if name == "" || !strings.HasPrefix(offer, "/") || len(offer) > 256 {
		return
	}
	d := v.destination(destinationOf(c))
	d.mu.Lock()
	defer d.mu.Unlock()
	ln := d.lanes[name]
	if ln == nil {
		if d.lanes == nil {
			d.lanes = map[string]*lane{}
		}
		ln = &lane{}
		d.lanes[name] = ln
	}
	if ln.offer == "" && time.Now().After(ln.refusedTill) {
		ln.offer = offer
	}
}

// launch starts workers for what waits; d.mu is held. A worker takes what waits when it runs, not now.
func (v *Invoker) launch(d *destination, ln *lane) {
	if len(ln.waiting) > 0 && ln.young < batchesMax && ln.slow < slowMax {
		ln.young++
		d.running++
		v.hand(task{d: d, lane: ln})
	}
}

// workBatches sends one batch after another while calls wait.
func (v *Invoker) workBatches(d *destination, ln *lane) {
	defer v.wg.Done()
	d.mu.Lock()
	for len(ln.waiting) > 0 {
		offer, jobs := ln.offer, ln.take()
		slow, over := false, false
		d.mu.Unlock()
		patience := time.AfterFunc(batchPatience, func() {
			d.mu.Lock()
			defer d.mu.Unlock()
			if !over {
				slow = true
				ln.young--
				ln.slow++
				v.launch(d, ln)
			}
		})
		again := v.sendBatch(d, offer, jobs)
		patience.Stop()
		for _, j := range again {
			v.startAlone(d, j)
		}
		d.mu.Lock()
		over = true
		var deferred []job
		if d.fails >= v.cfg.BreakerFails {
			// What waits would wait for nothing: it comes back by its own timer.
			deferred, ln.waiting = ln.waiting, nil
		}
		if len(deferred) > 0 {
			d.mu.Unlock()
			for _, j := range deferred {
				j.done(v.breakerOpen(j.call))
			}
			d.mu.Lock()
		}
		if slow {
			// Others have taken its place meanwhile.
			ln.slow--
			d.running--
			v.launch(d, ln)
			d.mu.Unlock()
			return
		}
	}
	ln.young--
	d.running--
	d.mu.Unlock()
}

// take takes what waits, as long as it has one timeout and fits; d.mu is held and something waits.
func (ln *lane) take() []job {
	n, size := 0, 0
	for n < len(ln.waiting) && n < batchCallsMax {
		c := ln.waiting[n].call
		size += len(c.Payload) + len(c.URL) + 256
		if n > 0 && (size > batchBytesMax || c.Timeout != ln.waiting[0].call.Timeout) {
			break
		}
		n++
	}
	jobs := append([]job(nil), ln.waiting[:n]...)
	clear(ln.waiting[:n])
	ln.waiting = ln.waiting[n:]
	if len(ln.waiting) == 0 {
		ln.waiting = nil
	}
	return jobs
}

// errNoOffer says that the participant takes no batches there: nothing was done.
var errNoOffer = errors.New("the participant takes no batches")

// sendBatch makes one request for all jobs and answers them. It gives those back that must go by themselves.
func (v *Invoker) sendBatch(d *destination, offer string, jobs []job) (again []job) {
	start := time.Now()
	first := jobs[0].call
	ctx, cancel := context.WithTimeoutCause(v.life(first), first.Timeout, errCallTimeout)
	defer cancel()
	var reply *batchpb.BatchReply
	var err error
	v.cfg.Around(first, func() { reply, err = v.callBatch(ctx, offer, jobs) })
	if err == nil && len(reply.Answers) != len(jobs) {
		err = fmt.Errorf("the batch of %d has %d answers", len(jobs), len(reply.Answers))
	}
	took := time.Since(start)
	if errors.Is(err, errNoOffer) {
		d.mu.Lock()
		if ln := d.lanes[laneOf(first)]; ln != nil && ln.offer == offer {
			ln.offer, ln.refusedTill = "", time.Now().Add(refusedFor)
		}
		d.mu.Unlock()
		return jobs
	}
	if err != nil && errors.Is(context.Cause(ctx), errCallTimeout) {
		err = fmt.Errorf("%w (%v)", errCallTimeout, first.Timeout)
	}
	failed := true
	for i, j := range jobs {
		res := engine.CallResult{Call: j.call, StartedAt: start, Took: took}
		if err != nil {
			unknown(&res, err)
		} else if !v.judgeMember(d, &res, reply.Answers[i]) {
			again = append(again, j)
			continue
		}
		failed = failed && res.Outcome == txn.Unknown
		j.done(res)
	}
	d.mu.Lock()
	d.book(v, failed && len(again) == 0)
	d.mu.Unlock()
	return again
}

// judgeMember reads one answer; false if the participant does not serve this address in batches.
func (v *Invoker) judgeMember(d *destination, res *engine.CallResult, a *batchpb.BranchAnswer) bool {
	message := text([]byte(a.GetMessage()))
	switch a.GetStatus() {
	case http.StatusOK:
		res.Outcome = txn.Done
		if res.Call.WantResult {
			keep(res, a.GetResult(), v.cfg.ResultBytesMax)
		}
	case http.StatusConflict:
		res.Outcome, res.Text = txn.Refused, message
	case http.StatusTooEarly:
		res.Outcome, res.Text = txn.Ongoing, message
	case statusStale:
		res.Outcome, res.Text = txn.Stale, message
		awayFrom(res)
	case statusMoved:
		res.Outcome, res.Text = txn.Deferred, message
		awayFrom(res)
	case http.StatusNotFound:
		d.mu.Lock()
		if ln := d.lanes[laneOf(res.Call)]; ln != nil && len(ln.apart) < 1000 {
			if ln.apart == nil {
				ln.apart = map[string]bool{}
			}
			ln.apart[pathOf(targetOf(res.Call))] = true
		}
		d.mu.Unlock()
		return false
	default:
		res.Outcome, res.Text = txn.Unknown, fmt.Sprintf("status %d in a batch: %s", a.GetStatus(), message)
	}
	return true
}

// callBatch sends the request. errNoOffer means that nothing was done; any other error that nobody knows.
func (v *Invoker) callBatch(ctx context.Context, offer string, jobs []job) (reply *batchpb.BatchReply, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("panic while calling: %v", p)
		}
	}()
	req := &batchpb.BatchRequest{Calls: make([]*batchpb.BranchCall, len(jobs))}
	for i, j := range jobs {
		if req.Calls[i], err = memberOf(j.call); err != nil {
			return nil, err
		}
	}
	raw, err := proto.Marshal(req)
	if err != nil {
		return nil, err
	}
	first := jobs[0].call
	if kindOf(first) == kindGRPC {
		raw, err = v.batchGRPC(ctx, first, offer, raw)
	} else {
		raw, err = v.batchHTTP(ctx, first, offer, raw)
	}
	if err != nil {
		return nil, err
	}
	reply = &batchpb.BatchReply{}
	if err := proto.Unmarshal(raw, reply); err != nil {
		return nil, fmt.Errorf("the answer to a batch: %w", err)
	}
	return reply, nil
}

func memberOf(c *engine.Call) (*batchpb.BranchCall, error) {
	payload := c.Payload
	if len(c.Results) > 0 {
		var err error
		if payload, err = withResults(payload, c.Results); err != nil {
			return nil, err
		}
	}
	accountSlot, accountEpoch := account(c)
	return &batchpb.BranchCall{
		Target: targetOf(c), Gid: string(c.Gid), TransType: c.Mode.String(), BranchId: string(c.Branch), Op: c.OpWord, Payload: payload,
		Slot: uint32(c.Slot), Epoch: c.Epoch, AccountSlot: uint32(accountSlot), AccountEpoch: accountEpoch, Headers: headersOf(c),
		TimeoutMs: uint32(min(c.Timeout.Milliseconds(), 1<<31)),
	}, nil
}

// headersOf are a member's headers: the client's, and what a participant must know of the transaction.
func headersOf(c *engine.Call) map[string]string {
	clean := !c.Global
	for k := range c.Headers {
		clean = clean && !ours(k)
	}
	if clean {
		return c.Headers
	}
	out := map[string]string{}
	for k, v := range c.Headers {
		if !ours(k) {
			out[k] = v
		}
	}
	said(c, func(k, v string) { out[k] = v })
	return out
}

func (v *Invoker) batchHTTP(ctx context.Context, c *engine.Call, offer string, raw []byte) ([]byte, error) {
	u, err := url.Parse(c.URL)
	if err != nil || u.Host == "" {
		return nil, fmt.Errorf("bad branch url: %q", c.URL)
	}
	req, resp := fasthttp.AcquireRequest(), fasthttp.AcquireResponse()
	defer fasthttp.ReleaseRequest(req)
	defer fasthttp.ReleaseResponse(resp)
	req.SetRequestURI(u.Scheme + "://" + u.Host + offer)
	req.Header.SetMethod(http.MethodPost)
	req.Header.SetContentType(batchpb.ContentType)
	req.SetBodyRaw(raw)
	deadline, _ := ctx.Deadline()
	if err := v.http.client.DoDeadline(req, resp, deadline); err != nil {
		if errors.Is(err, fasthttp.ErrTimeout) || errors.Is(err, fasthttp.ErrDialTimeout) {
			err = errCallTimeout
		}
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		return nil, err
	}
	switch status := resp.StatusCode(); status {
	case http.StatusOK:
		body, err := resp.BodyUncompressed()
		return append([]byte(nil), body...), err
	case http.StatusNotFound, http.StatusMethodNotAllowed, http.StatusNotImplemented:
		return nil, errNoOffer
	default:
		return nil, fmt.Errorf("HTTP status %d to a batch: %s", status, text(resp.Body()))
	}
}

func (v *Invoker) batchGRPC(ctx context.Context, c *engine.Call, offer string, raw []byte) ([]byte, error) {
	server, _, err := splitGRPC(c.URL)
	if err != nil {
		return nil, err
	}
	conn, err := v.grpc.get(server)
	if err != nil {
		return nil, err
	}
	var out []byte
	err = conn.Invoke(ctx, offer, &raw, &out, grpc.MaxCallRecvMsgSize(answerBytesMax))
	if status.Code(err) == codes.Unimplemented {
		return nil, errNoOffer
	}
	return out, err
}

// askOffer says whether a gRPC call is to be asked for an offer, and gives the option that does it.
func (v *Invoker) askOffer(c *engine.Call, md *metadata.MD) []grpc.CallOption {
	name := laneOf(c)
	if name == "" {
		return nil
	}
	d := v.destination(destinationOf(c))
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.lanes == nil {
		d.lanes = map[string]*lane{}
	}
	ln := d.lanes[name]
	if ln == nil {
		ln = &lane{}
		d.lanes[name] = ln
	}
	ln.asked++
	if ln.offer != "" || ln.asked%askEvery != 1 {
		return nil
	}
	return []grpc.CallOption{grpc.Header(md)}
}
