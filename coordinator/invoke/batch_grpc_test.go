package invoke

import (
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/lockstep-tx/lockstep/coordinator/engine"
	"github.com/lockstep-tx/lockstep/coordinator/txn"
	"github.com/lockstep-tx/lockstep/participants/branch/batchpb"
	"github.com/lockstep-tx/lockstep/participants/branch/rawgrpc"
)

// grpcBatcher is a batcher over gRPC: a server on the loopback that offers batches with its answers to single calls.
type grpcBatcher struct {
	addr  string
	arriv chan int      // the size of each batch as it arrives
	gate  chan struct{} // a batch waits here; closed means open

	mu     sync.Mutex
	mute   bool // makes no offer
	sizes  []int
	single []string
	got    []*batchpb.BranchCall
	answer func(c *batchpb.BranchCall) *batchpb.BranchAnswer
	whole  func() ([]byte, error) // answers every batch as a whole; nil: each member is answered
}

func newGRPCBatcher(t *testing.T) *grpcBatcher {
	t.Helper()
	b := &grpcBatcher{arriv: make(chan int, 1000), gate: make(chan struct{})}
	b.answer = func(*batchpb.BranchCall) *batchpb.BranchAnswer { return &batchpb.BranchAnswer{Status: 200} }
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := grpc.NewServer(grpc.ForceServerCodecV2(rawgrpc.Codec{}), grpc.UnknownServiceHandler(b.serve))
	done := make(chan struct{})
	go func() { defer close(done); _ = s.Serve(l) }()
	t.Cleanup(func() { s.Stop(); <-done })
	b.addr = l.Addr().String()
	return b
}

func (b *grpcBatcher) serve(_ any, st grpc.ServerStream) error {
	var body, reply []byte
	if err := st.RecvMsg(&body); err != nil {
		return err
	}
	b.mu.Lock()
	mute := b.mute
	b.mu.Unlock()
	if !mute {
		if err := st.SetHeader(metadata.Pairs(strings.ToLower(batchpb.OfferHeader), batchpb.Method)); err != nil {
			return err
		}
	}
	method, _ := grpc.MethodFromServerStream(st)
	if method != batchpb.Method {
		b.mu.Lock()
		b.single = append(b.single, method)
		b.mu.Unlock()
		return st.SendMsg(&reply)
	}
	reply, err := b.batch(body)
	if err != nil {
		return err
	}
	return st.SendMsg(&reply)
}

func (b *grpcBatcher) batch(body []byte) ([]byte, error) {
	req := &batchpb.BatchRequest{}
	if err := proto.Unmarshal(body, req); err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	b.mu.Lock()
	b.sizes, b.got = append(b.sizes, len(req.Calls)), append(b.got, req.Calls...)
	answer, whole := b.answer, b.whole
	b.mu.Unlock()
	b.arriv <- len(req.Calls)
	<-b.gate
	if whole != nil {
		return whole()
	}
	reply := &batchpb.BatchReply{}
	for _, c := range req.Calls {
		reply.Answers = append(reply.Answers, answer(c))
	}
	return proto.Marshal(reply)
}

func (b *grpcBatcher) seen() (sizes []int, single []string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Clone(b.sizes), slices.Clone(b.single)
}

// meet makes a single call, so that the offer is known.
func (b *grpcBatcher) meet(t *testing.T, v *Invoker) {
	t.Helper()
	if res := one(t, v, callTo(b.addr+"/kit/Meet")); res.Outcome != txn.Done {
		t.Fatalf("the first call: %+v", res)
	}
}

func (b *grpcBatcher) member(i int) *engine.Call {
	c := callTo(b.addr + "/kit/Confirm")
	c.Gid, c.Slot, c.Epoch, c.Payload = txn.Gid(fmt.Sprintf("g%d", i)), 7, 3, fmt.Appendf(nil, "payload %d", i)
	return c
}

// What waits for a gRPC participant that offers batches goes in one request of the batch method, and arrives as it was
// meant.
func TestOverGRPCWhatWaitsGoesInOneRequest(t *testing.T) {
	t.Parallel()
	b := newGRPCBatcher(t)
	v := newInvoker(t, Config{})
	b.meet(t, v)
	r := newResults()
	const n = 100
	v.Start(b.member(0), r.done)
	if size := <-b.arriv; size != 1 {
		t.Fatalf("a call that came alone is a batch of %d", size)
	}
	// The first is held at the gate. One more batch may be under way beside it; the rest waits and goes together.
	for i := 1; i < n; i++ {
		v.Start(b.member(i), r.done)
	}
	close(b.gate)
	for range n {
		if res := r.next(t); res.Outcome != txn.Done {
			t.Fatalf("%+v", res)
		}
	}
	sizes, single := b.seen()
	if len(single) != 1 || len(sizes) > 20 || sum(sizes) != n || slices.Max(sizes) > batchCallsMax {
		t.Errorf("batches of %v and single calls %v", sizes, single)
	}
	for _, c := range b.got {
		if c.Target != "/kit/Confirm" || c.Slot != 7 || c.Epoch != 3 || c.AccountEpoch != 3 || c.Op != "confirm" || c.TransType != "tcc" || c.BranchId != "01" ||
			string(c.Payload) != "payload "+c.Gid[1:] {
			t.Fatalf("a member arrived as %v", c)
		}
	}
}

// A participant that makes no offer is never sent a batch.
func TestOverGRPCWithoutAnOfferThereIsNoBatch(t *testing.T) {
	t.Parallel()
	b := newGRPCBatcher(t)
	b.mute = true
	v := newInvoker(t, Config{})
	for i := range 3 {
		if res := one(t, v, b.member(i)); res.Outcome != txn.Done {
			t.Fatalf("%+v", res)
		}
	}
	if sizes, single := b.seen(); len(sizes) != 0 || len(single) != 3 {
		t.Errorf("batches of %v, single calls %v", sizes, single)
	}
}

// Members of one batch have each their own answer, and it reaches the call that it is for.
func TestOverGRPCEachMemberHasItsOwnAnswer(t *testing.T) {
	t.Parallel()
	b := newGRPCBatcher(t)
	want := map[uint32]txn.Outcome{200: txn.Done, 409: txn.Refused, 425: txn.Ongoing, statusStale: txn.Stale, 500: txn.Unknown, 503: txn.Unknown, 0: txn.Unknown}
	statuses := []uint32{200, 409, 425, statusStale, 500, 503, 0}
	statusOf := func(gid string) uint32 {
		var i int
		fmt.Sscanf(gid, "g%d", &i)
		return statuses[i%len(statuses)]
	}
	b.answer = func(c *batchpb.BranchCall) *batchpb.BranchAnswer {
		return &batchpb.BranchAnswer{Status: statusOf(c.Gid), Message: "because of " + c.Gid, Result: []byte("result of " + c.Gid)}
	}
	v := newInvoker(t, Config{})
	b.meet(t, v)
	r := newResults()
	const n = 70
	for i := range n {
		c := b.member(i)
		c.WantResult = true
		v.Start(c, r.done)
	}
	close(b.gate)
	for range n {
		res := r.next(t)
		gid := string(res.Call.Gid)
		if outcome := want[statusOf(gid)]; res.Outcome != outcome {
			t.Errorf("%s, answered %d: %+v", gid, statusOf(gid), res)
		} else if outcome == txn.Done && string(res.Result) != "result of "+gid || outcome != txn.Done && !strings.HasSuffix(res.Text, "because of "+gid) {
			t.Errorf("%s has another's answer: %+v", gid, res)
		}
	}
	if sizes, _ := b.seen(); slices.Max(sizes) < len(statuses) {
		t.Errorf("batches of %v: the answers were never side by side", sizes)
	}
}

// A batch that fails as a whole says nothing of its members, whatever its code would mean for one call: each is Unknown,
// never a No (G2), and the offer stands.
func TestOverGRPCABatchWithoutAnAnswerIsUnknown(t *testing.T) {
	t.Parallel()
	short, err := proto.Marshal(&batchpb.BatchReply{Answers: []*batchpb.BranchAnswer{{Status: 409}}})
	if err != nil {
		t.Fatal(err)
	}
	fail := func(c codes.Code) func() ([]byte, error) {
		return func() ([]byte, error) { return nil, status.Error(c, "FAILURE") }
	}
	for name, whole := range map[string]func() ([]byte, error){
		"aborted": fail(codes.Aborted), "out of range": fail(codes.OutOfRange), "precondition": fail(codes.FailedPrecondition), "php's 409": fail(409),
		"internal": fail(codes.Internal), "unavailable": fail(codes.Unavailable), "not found": fail(codes.NotFound), "invalid": fail(codes.InvalidArgument),
		"garbage": func() ([]byte, error) { return []byte("FAILURE"), nil },
		"nothing": func() ([]byte, error) { return nil, nil },
		"too few": func() ([]byte, error) { return short, nil },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newGRPCBatcher(t)
			v := newInvoker(t, Config{})
			b.meet(t, v)
			b.whole = whole
			r := newResults()
			v.Start(b.member(0), r.done)
			<-b.arriv
			for i := 1; i < 10; i++ { // while the first is held: at most two batches, of more than one member
				v.Start(b.member(i), r.done)
			}
			close(b.gate)
			alone := 0 // a batch of one has its only answer: that one counts
			for range 10 {
				switch res := r.next(t); {
				case name == "too few" && res.Outcome == txn.Refused:
					alone++
				case res.Outcome != txn.Unknown || res.Text == "":
					t.Errorf("%+v", res)
				}
			}
			sizes, single := b.seen()
			ones := 0
			for _, n := range sizes {
				if n == 1 {
					ones++
				}
			}
			if len(single) != 1 || slices.Max(sizes) < 2 || (name == "too few") != (alone > 0) || (alone > 0 && alone != ones) {
				t.Errorf("batches of %v, %d refused, single calls %v", sizes, alone, single)
			}
		})
	}
}

// A participant that no longer serves the batch method has done nothing of it: its members go by themselves at once, and
// no batch is tried again for a while although the offer is still made.
func TestOverGRPCAnOfferThatIsTakenBack(t *testing.T) {
	t.Parallel()
	b := newGRPCBatcher(t)
	close(b.gate)
	v := newInvoker(t, Config{})
	b.meet(t, v)
	if res := one(t, v, b.member(0)); res.Outcome != txn.Done {
		t.Fatalf("%+v", res)
	}
	b.mu.Lock()
	b.whole = func() ([]byte, error) { return nil, status.Error(codes.Unimplemented, "unknown method") }
	b.mu.Unlock()
	const n = 2 * askEvery // the offer is heard again among them
	for i := range n {
		if res := one(t, v, b.member(i)); res.Outcome != txn.Done {
			t.Fatalf("%+v", res)
		}
	}
	if sizes, single := b.seen(); !slices.Equal(sizes, []int{1, 1}) || len(single) != 1+n {
		t.Errorf("batches of %v and %d single calls", sizes, len(single))
	}
}
