package branch_test

import (
	"bytes"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/lockstep-tx/lockstep/participants/barrier"
	"github.com/lockstep-tx/lockstep/participants/branch"
	"github.com/lockstep-tx/lockstep/participants/branch/batchpb"
)

// kit is a participant whose functions do what their payload says, and leave a row when they succeed.
type kit struct {
	p    *branch.Participant
	db   *sql.DB
	url  string
	txs  atomic.Int64 // local transactions of a TCC branch, as the functions see them
	last atomic.Pointer[sql.Tx]
	hang chan struct{}
	once sync.Once
}

// newKit serves a kit over HTTP.
func newKit(t *testing.T, o branch.Options) *kit {
	t.Helper()
	k := openKit(t, o)
	s := httptest.NewServer(k.p.Handler())
	t.Cleanup(func() { k.release(); s.Close(); k.p.Close() })
	k.url = s.URL
	return k
}

func openKit(t *testing.T, o branch.Options) *kit {
	t.Helper()
	ctx := context.Background()
	db, err := barrier.OpenSQLite(ctx, filepath.Join(t.TempDir(), "x.db"))
	if err != nil {
		t.Fatal(err)
	}
	if err := barrier.Migrate(ctx, db, barrier.SQLite); err != nil {
		t.Fatal(err)
	}
	if _, err := db.Exec(`CREATE TABLE effect (gid TEXT, op TEXT)`); err != nil {
		t.Fatal(err)
	}
	b, err := barrier.New(db, barrier.SQLite, barrier.Options{})
	if err != nil {
		t.Fatal(err)
	}
	k := &kit{p: branch.New(b, o), db: db, hang: make(chan struct{})}
	t.Cleanup(func() { db.Close() })
	branch.HandleTCC(k.p, "test/kit", branch.TCC[payload]{Try: k.act, Confirm: k.act, Cancel: k.act})
	branch.HandleTCC(k.p, "alone", branch.TCC[payload]{Try: k.act, Confirm: k.act, Cancel: k.act, Alone: true})
	branch.HandleMessage(k.p, "typed", func(_ context.Context, tx *sql.Tx, call *barrier.Call, v *wrapperspb.StringValue) error {
		_, err := tx.Exec(`INSERT INTO effect VALUES (?, ?)`, call.Gid, v.GetValue())
		return err
	})
	return k
}

// release lets go of the functions that hang.
func (k *kit) release() { k.once.Do(func() { close(k.hang) }) }

func (k *kit) act(ctx context.Context, tx *sql.Tx, call *barrier.Call, p payload) error {
	if k.last.Swap(tx) != tx {
		k.txs.Add(1)
	}
	if _, err := tx.ExecContext(ctx, `INSERT INTO effect VALUES (?, ?)`, call.Gid, call.Op); err != nil {
		return err
	}
	switch p.Say {
	case "refused":
		return fmt.Errorf("%w: too little", barrier.ErrRefused)
	case "ongoing":
		return barrier.ErrOngoing
	case "boom":
		return errors.New("boom")
	case "panic":
		panic("boom")
	case "hang":
		<-k.hang
	case "wait for the context":
		<-ctx.Done()
		return ctx.Err()
	}
	return nil
}

func (k *kit) effects(t *testing.T, gid string) (n int) {
	t.Helper()
	if err := k.db.QueryRow(`SELECT count(*) FROM effect WHERE gid = ?`, gid).Scan(&n); err != nil {
		t.Fatal(err)
	}
	return n
}

// batch sends a batch over the network, direct without one.
func (k *kit) batch(t *testing.T, calls ...*batchpb.BranchCall) []*batchpb.BranchAnswer {
	t.Helper()
	raw, err := proto.Marshal(&batchpb.BatchRequest{Calls: calls})
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.Post(k.url+branch.BatchPath, branch.BatchContentType, bytes.NewReader(raw))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return answersOf(t, resp.StatusCode, body, len(calls))
}

func (k *kit) direct(t *testing.T, calls ...*batchpb.BranchCall) []*batchpb.BranchAnswer {
	t.Helper()
	raw, err := proto.Marshal(&batchpb.BatchRequest{Calls: calls})
	if err != nil {
		t.Fatal(err)
	}
	w := httptest.NewRecorder()
	k.p.Handler().ServeHTTP(w, httptest.NewRequest(http.MethodPost, branch.BatchPath, bytes.NewReader(raw)))
	return answersOf(t, w.Code, w.Body.Bytes(), len(calls))
}

func answersOf(t *testing.T, status int, body []byte, n int) []*batchpb.BranchAnswer {
	t.Helper()
	reply := &batchpb.BatchReply{}
	if err := proto.Unmarshal(body, reply); err != nil || status != http.StatusOK || len(reply.Answers) != n {
		t.Fatalf("%d %q, %v; want %d answers", status, body, err, n)
	}
	return reply.Answers
}

func member(gid, op, say string) *batchpb.BranchCall {
	return &batchpb.BranchCall{
		Target: "/test/kit/" + op + "?x=1", Gid: gid, TransType: "tcc", BranchId: "01", Op: op, Payload: fmt.Appendf(nil, `{"say":%q}`, say),
		Slot: uint32(barrier.SlotOf(gid)), Epoch: 2,
	}
}

// Each member of a batch has its own answer; one that fails leaves nothing, the others stand, in one transaction.
func TestABatchIsOneTransactionWithAnAnswerPerMember(t *testing.T) {
	k := newKit(t, branch.Options{})
	stale := member("s", "try", "")
	stale.Epoch = 1
	if a := k.batch(t, member("s", "try", "")); a[0].Status != 200 {
		t.Fatal(a)
	}
	k.txs.Store(0)
	nowhere := member("n", "try", "")
	nowhere.Target = "/nowhere"
	wrongOp := member("w", "confirm", "")
	wrongOp.Target = "/test/kit/try"
	noJSON := member("j", "try", "")
	noJSON.Payload = []byte("{")
	unfenced := member("u", "confirm", "")
	unfenced.Slot, unfenced.Epoch = 0, 0
	calls := []*batchpb.BranchCall{
		member("a", "try", ""), member("b", "try", "refused"), member("c", "try", ""), member("d", "try", "boom"), member("e", "cancel", ""),
		member("s", "try", ""), stale, member("f", "try", "ongoing"), nowhere, wrongOp, noJSON, unfenced, member("g", "try", ""),
	}
	want := []uint32{200, 409, 200, 500, 200, 200, 412, 425, 404, 400, 400, 500, 200}
	effects := []int{1, 0, 1, 0, 0, 1, 1, 0, 0, 0, 0, 0, 1}
	for i, a := range k.batch(t, calls...) {
		if a.Status != want[i] || (a.Status != 200 && a.Message == "") {
			t.Errorf("%s %s: %v, want %d", calls[i].Gid, calls[i].Op, a, want[i])
		}
		if n := k.effects(t, calls[i].Gid); n != effects[i] {
			t.Errorf("%s %s: %d effects, want %d", calls[i].Gid, calls[i].Op, n, effects[i])
		}
	}
	if n := k.txs.Load(); n != 1 {
		t.Errorf("the functions saw %d transactions", n)
	}
	// What failed may be repeated as if new, and an empty cancel has left its tombstone.
	for _, again := range []struct {
		c       *batchpb.BranchCall
		status  uint32
		effects int
	}{{member("b", "try", ""), 200, 1}, {member("d", "try", ""), 200, 1}, {member("e", "try", ""), 409, 0}, {member("a", "try", "boom"), 200, 1}} {
		if a := k.batch(t, again.c); a[0].Status != again.status || k.effects(t, again.c.Gid) != again.effects {
			t.Errorf("%s again: %v and %d effects", again.c.Gid, a[0], k.effects(t, again.c.Gid))
		}
	}
}

// A function that panics, hangs or ignores its context costs its own caller an Unknown, and the others nothing.
func TestFunctionsThatMisbehave(t *testing.T) {
	k := newKit(t, branch.Options{Timeout: 200 * time.Millisecond})
	for i, say := range []string{"panic", "hang", "wait for the context"} {
		bad, before, after := fmt.Sprintf("bad%d", i), fmt.Sprintf("before%d", i), fmt.Sprintf("after%d", i)
		answers := k.batch(t, member(before, "try", ""), member(bad, "try", say), member(after, "try", ""))
		for n, want := range []uint32{200, 500, 200} {
			if answers[n].Status != want {
				t.Errorf("%s: member %d: %v", say, n, answers[n])
			}
		}
		for gid, want := range map[string]int{before: 1, bad: 0, after: 1} {
			if n := k.effects(t, gid); n != want {
				t.Errorf("%s: %s has %d effects", say, gid, n)
			}
		}
		if a := k.batch(t, member(bad, "try", "")); a[0].Status != 200 || k.effects(t, bad) != 1 {
			t.Errorf("%s: the repeat: %v", say, a[0])
		}
	}
}

// A call of an Alone branch has a transaction of its own, also beside others in one batch.
func TestAloneBranchesHaveTransactionsOfTheirOwn(t *testing.T) {
	k := newKit(t, branch.Options{Timeout: 3 * time.Second})
	alone := member("alone", "try", "")
	alone.Target = "/alone/try"
	a := k.batch(t, alone, member("shared", "try", ""))
	if a[0].Status != 200 || a[1].Status != 200 || k.txs.Load() != 2 {
		t.Errorf("%v in %d transactions", a, k.txs.Load())
	}
}

// An answer offers the batch protocol.
func TestTheOffer(t *testing.T) {
	k := newKit(t, branch.Options{})
	resp, err := http.Get(k.url + "/test/kit/try")
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if got := resp.Header.Get(branch.OfferHeader); got != branch.BatchPath {
		t.Errorf("offer %q", got)
	}
	resp, err = http.Post(k.url+branch.BatchPath, "", bytes.NewReader([]byte("nonsense")))
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != 400 {
		t.Errorf("nonsense: %d", resp.StatusCode)
	}
}

// The same functions over gRPC, single and in a batch, with JSON and with protobuf payloads.
func TestGRPC(t *testing.T) {
	k := newKit(t, branch.Options{})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := k.p.GRPCServer()
	go func() { _ = s.Serve(l) }()
	t.Cleanup(s.Stop)
	conn, err := grpc.NewClient(l.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	ctx := func(gid, transType, op string, epoch int) context.Context {
		return metadata.AppendToOutgoingContext(context.Background(), "dtm-gid", gid, "dtm-trans_type", transType, "dtm-branch_id", "01", "dtm-op", op,
			"lockstep-slot", fmt.Sprint(barrier.SlotOf(gid)), "lockstep-epoch", fmt.Sprint(epoch))
	}
	var md metadata.MD
	if err := conn.Invoke(ctx("m", "msg", "action", 2), "/typed/Action", wrapperspb.String("hello"), &emptypb.Empty{}, grpc.Header(&md)); err != nil {
		t.Fatal(err)
	}
	if got := md.Get(branch.OfferHeader); len(got) != 1 || got[0] != branch.BatchMethod {
		t.Errorf("offer %q", got)
	}
	var op string
	if err := k.db.QueryRow(`SELECT op FROM effect WHERE gid = 'm'`).Scan(&op); err != nil || op != "hello" {
		t.Errorf("%q, %v", op, err)
	}
	for _, tc := range []struct {
		op, say string
		epoch   int
		code    codes.Code
	}{{"try", "refused", 2, codes.Aborted}, {"try", "ongoing", 2, codes.FailedPrecondition}, {"try", "boom", 2, codes.Unknown}, {"confirm", "", 2, codes.InvalidArgument}} {
		payload := rawJSON(fmt.Sprintf(`{"say":%q}`, tc.say))
		err := conn.Invoke(ctx("g", "tcc", tc.op, tc.epoch), "/test.kit/Try", &payload, new(rawJSON), grpc.ForceCodec(jsonCodec{}))
		if status.Code(err) != tc.code {
			t.Errorf("%s %s: %v", tc.op, tc.say, err)
		}
	}
	raw := func(m *batchpb.BranchCall, target string) *batchpb.BranchCall { m.Target = target; return m }
	reply := &batchpb.BatchReply{}
	err = conn.Invoke(context.Background(), branch.BatchMethod, &batchpb.BatchRequest{Calls: []*batchpb.BranchCall{
		raw(member("x", "try", ""), "/test.kit/Try"), raw(member("y", "try", "refused"), "/test.kit/Try"),
	}}, reply)
	if err != nil || len(reply.Answers) != 2 || reply.Answers[0].Status != 200 || reply.Answers[1].Status != 409 {
		t.Errorf("%v, %v", reply, err)
	}
}

// A message's local part that is committed is known over gRPC; one that is not cannot be any more.
func TestCheckBackOverGRPC(t *testing.T) {
	k := openKit(t, branch.Options{})
	t.Cleanup(k.p.Close)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := k.p.GRPCServer()
	go func() { _ = s.Serve(l) }()
	t.Cleanup(s.Stop)
	conn, err := grpc.NewClient(l.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	local := func(gid string) error {
		_, err := k.p.Barrier().Do(t.Context(), &barrier.Call{TransType: "msg", Gid: gid, BranchID: "00", Op: "msg"}, func(*sql.Tx) error { return nil })
		return err
	}
	ask := func(gid string) codes.Code {
		md := metadata.AppendToOutgoingContext(t.Context(), "dtm-gid", gid, "dtm-trans_type", "msg", "dtm-branch_id", "00", "dtm-op", "msg")
		return status.Code(conn.Invoke(md, branch.QueryMethod, &emptypb.Empty{}, &emptypb.Empty{}))
	}
	if err := local("there"); err != nil {
		t.Fatal(err)
	}
	if there, not := ask("there"), ask("not"); there != codes.OK || not != codes.Aborted {
		t.Errorf("committed: %v, not committed: %v", there, not)
	}
	if err := local("not"); !errors.Is(err, barrier.ErrDuplicate) {
		t.Errorf("a local part after its check-back: %v", err)
	}
}

type rawJSON string

type jsonCodec struct{}

func (jsonCodec) Name() string                       { return "proto" }
func (jsonCodec) Marshal(v any) ([]byte, error)      { return []byte(*v.(*rawJSON)), nil }
func (jsonCodec) Unmarshal(data []byte, v any) error { *v.(*rawJSON) = rawJSON(data); return nil }
