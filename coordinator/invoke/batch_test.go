package invoke

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/lockstep-tx/lockstep/coordinator/engine"
	"github.com/lockstep-tx/lockstep/coordinator/txn"
	"github.com/lockstep-tx/lockstep/participants/branch/batchpb"
)

// batcher is a participant that offers batches: it answers what answer says, and waits at gate if that is not nil.
type batcher struct {
	url    string
	mu     sync.Mutex
	sizes  []int
	single []string
	answer func(c *batchpb.BranchCall) *batchpb.BranchAnswer
	whole  func(w http.ResponseWriter, req *batchpb.BatchRequest) bool // true: it has answered the batch itself
	gate   chan struct{}
}

func newBatcher(t *testing.T) *batcher {
	t.Helper()
	b := &batcher{answer: func(*batchpb.BranchCall) *batchpb.BranchAnswer { return &batchpb.BranchAnswer{Status: 200} }}
	s := httptest.NewServer(b)
	t.Cleanup(func() {
		s.CloseClientConnections()
		s.Close()
	})
	b.url = s.URL
	return b
}

func (b *batcher) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set(batchpb.OfferHeader, "/batches")
	if r.URL.Path != "/batches" {
		b.mu.Lock()
		b.single = append(b.single, r.URL.Path)
		b.mu.Unlock()
		return
	}
	raw, _ := io.ReadAll(r.Body)
	req := &batchpb.BatchRequest{}
	if err := proto.Unmarshal(raw, req); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	b.mu.Lock()
	b.sizes = append(b.sizes, len(req.Calls))
	whole, gate := b.whole, b.gate
	b.mu.Unlock()
	if gate != nil {
		<-gate
	}
	if whole != nil && whole(w, req) {
		return
	}
	reply := &batchpb.BatchReply{}
	for _, c := range req.Calls {
		reply.Answers = append(reply.Answers, b.answer(c))
	}
	raw, _ = proto.Marshal(reply)
	_, _ = w.Write(raw)
}

func (b *batcher) seen() (sizes []int, single []string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Clone(b.sizes), slices.Clone(b.single)
}

// meet makes a single call, so that the offer is known.
func (b *batcher) meet(t *testing.T, v *Invoker) {
	t.Helper()
	if res := one(t, v, callTo(b.url+"/meet")); res.Outcome != txn.Done {
		t.Fatalf("the first call: %+v", res)
	}
}

func member(b *batcher, i int) *engine.Call {
	c := callTo(b.url + "/confirm?x=1")
	c.Gid, c.Slot, c.Epoch, c.Payload = txn.Gid(fmt.Sprintf("g%d", i)), 7, 3, fmt.Appendf(nil, `{"n":%d}`, i)
	return c
}

// What comes while a batch is under way goes in the next one; nothing waits for company.
func TestWhatWaitsGoesInOneRequest(t *testing.T) {
	t.Parallel()
	b := newBatcher(t)
	b.gate = make(chan struct{})
	var got []*batchpb.BranchCall
	var mu sync.Mutex
	b.answer = func(c *batchpb.BranchCall) *batchpb.BranchAnswer {
		mu.Lock()
		defer mu.Unlock()
		got = append(got, c)
		return &batchpb.BranchAnswer{Status: 200}
	}
	v := newInvoker(t, Config{})
	b.meet(t, v)
	r := newResults()
	const n = 300
	for i := range n {
		v.Start(member(b, i), r.done)
	}
	gate := b.gate
	b.mu.Lock()
	b.gate = nil
	b.mu.Unlock()
	close(gate)
	for range n {
		if res := r.next(t); res.Outcome != txn.Done {
			t.Fatalf("%+v", res)
		}
	}
	sizes, single := b.seen()
	if len(single) != 1 || len(sizes) > 20 || sum(sizes) != n || slices.Max(sizes) > batchCallsMax {
		t.Errorf("batches of %v and single calls %v", sizes, single)
	}
	mu.Lock()
	defer mu.Unlock()
	for _, c := range got {
		if c.Target != "/confirm?x=1" || c.Slot != 7 || c.Epoch != 3 || c.AccountEpoch != 3 || c.Op != "confirm" || c.TransType != "tcc" || string(c.Payload) != `{"n":`+c.Gid[1:]+`}` {
			t.Fatalf("a member arrived as %v", c)
		}
	}
}

func sum(n []int) (s int) {
	for _, x := range n {
		s += x
	}
	return s
}

// Each member has its own answer; what is no answer of the participant is Unknown, never a No.
func TestEachMemberHasItsOwnAnswer(t *testing.T) {
	t.Parallel()
	b := newBatcher(t)
	statuses := []uint32{0, 200, 409, 425, 412, 400, 500, 503, 302}
	wants := []txn.Outcome{txn.Unknown, txn.Done, txn.Refused, txn.Ongoing, txn.Stale, txn.Unknown, txn.Unknown, txn.Unknown, txn.Unknown}
	b.answer = func(c *batchpb.BranchCall) *batchpb.BranchAnswer {
		var i int
		fmt.Sscanf(c.Gid, "g%d", &i)
		return &batchpb.BranchAnswer{Status: statuses[i], Message: "because", Result: []byte("7")}
	}
	v := newInvoker(t, Config{})
	b.meet(t, v)
	for i, want := range wants {
		c := member(b, i)
		c.WantResult = true
		res := one(t, v, c)
		if res.Outcome != want || (want != txn.Done && !strings.Contains(res.Text, "because")) || (want == txn.Done && string(res.Result) != "7") {
			t.Errorf("status %d: %+v", statuses[i], res)
		}
	}
}

// A batch that is not answered, or not in full, leaves every member Unknown.
func TestABatchWithoutAnAnswerIsUnknown(t *testing.T) {
	t.Parallel()
	for name, whole := range map[string]func(http.ResponseWriter, *batchpb.BatchRequest) bool{
		"500":     func(w http.ResponseWriter, _ *batchpb.BatchRequest) bool { w.WriteHeader(500); return true },
		"409":     func(w http.ResponseWriter, _ *batchpb.BatchRequest) bool { w.WriteHeader(409); return true },
		"garbage": func(w http.ResponseWriter, _ *batchpb.BatchRequest) bool { fmt.Fprint(w, "FAILURE"); return true },
		"too few": func(w http.ResponseWriter, _ *batchpb.BatchRequest) bool { return true },
		"cut":     func(http.ResponseWriter, *batchpb.BatchRequest) bool { panic(http.ErrAbortHandler) },
		"redirect": func(w http.ResponseWriter, _ *batchpb.BatchRequest) bool {
			w.Header().Set("Location", "/x")
			w.WriteHeader(307)
			return true
		},
	} {
		b := newBatcher(t)
		v := newInvoker(t, Config{})
		b.meet(t, v)
		b.whole = whole
		if res := one(t, v, member(b, 1)); res.Outcome != txn.Unknown || res.Text == "" {
			t.Errorf("%s: %+v", name, res)
		}
	}
}

// A participant that takes its offer back gets single calls, and is not asked again at once.
func TestAnOfferThatIsTakenBack(t *testing.T) {
	t.Parallel()
	b := newBatcher(t)
	v := newInvoker(t, Config{})
	b.meet(t, v)
	b.whole = func(w http.ResponseWriter, _ *batchpb.BatchRequest) bool { w.WriteHeader(404); return true }
	for i := range 3 {
		if res := one(t, v, member(b, i)); res.Outcome != txn.Done {
			t.Fatalf("%+v", res)
		}
	}
	if sizes, single := b.seen(); len(sizes) != 1 || len(single) != 4 {
		t.Errorf("batches of %v, single calls %v", sizes, single)
	}
}

// An address of the same host that the participant does not know goes by itself from then on; the others do not.
func TestAnAddressOutsideTheOffer(t *testing.T) {
	t.Parallel()
	b := newBatcher(t)
	b.answer = func(c *batchpb.BranchCall) *batchpb.BranchAnswer {
		if strings.HasPrefix(c.Target, "/other") {
			return &batchpb.BranchAnswer{Status: 404}
		}
		return &batchpb.BranchAnswer{Status: 200}
	}
	v := newInvoker(t, Config{})
	b.meet(t, v)
	for range 2 {
		for _, path := range []string{"/confirm", "/other"} {
			if res := one(t, v, callTo(b.url+path)); res.Outcome != txn.Done {
				t.Fatalf("%s: %+v", path, res)
			}
		}
	}
	if sizes, single := b.seen(); len(sizes) != 3 || !slices.Equal(single, []string{"/meet", "/other", "/other"}) {
		t.Errorf("batches of %v, single calls %v", sizes, single)
	}
}

// A member that hangs holds up its own batch alone.
func TestAHangingBatchHoldsUpNoOther(t *testing.T) {
	t.Parallel()
	b := newBatcher(t)
	v := newInvoker(t, Config{})
	b.meet(t, v)
	hang := make(chan struct{})
	defer close(hang)
	b.whole = func(_ http.ResponseWriter, req *batchpb.BatchRequest) bool {
		if strings.HasPrefix(req.Calls[0].Gid, "hang") {
			<-hang
		}
		return false
	}
	stuck, live := newResults(), newResults()
	for i := range 6 { // more than may be under way at once
		c := member(b, i)
		c.Gid, c.Timeout = txn.Gid(fmt.Sprintf("hang%d", i)), c.Timeout+time.Duration(i+1)*time.Second // a batch each
		v.Start(c, stuck.done)
	}
	for i := range 100 {
		v.Start(member(b, i), live.done)
	}
	for range 100 {
		if res := live.next(t); res.Outcome != txn.Done {
			t.Fatalf("%+v", res)
		}
	}
	if len(stuck.ch) != 0 {
		t.Error("a hanging member was answered")
	}
}

// What is not a barrier's call goes by itself.
func TestCheckBacksAreNotBatched(t *testing.T) {
	t.Parallel()
	b := newBatcher(t)
	v := newInvoker(t, Config{})
	b.meet(t, v)
	for _, op := range []txn.Op{txn.OpQuery, txn.OpCallback, txn.OpCommit, txn.OpRollback} {
		c := callTo(b.url + "/single")
		c.Op, c.OpWord = op, op.String()
		one(t, v, c)
	}
	if sizes, single := b.seen(); len(sizes) != 0 || len(single) != 5 {
		t.Errorf("batches of %v, single calls %v", sizes, single)
	}
}
