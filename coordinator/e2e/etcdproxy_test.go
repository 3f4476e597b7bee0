//go:build servers

package e2e

import (
	"context"
	"errors"
	"io"
	"net"
	"strings"
	"sync"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/protobuf/proto"
)

// etcdProxy stands between a coordinator and etcd. It passes everything through, and lets a test look at every write
// of records before it goes on and before its answer goes back.
type etcdProxy struct {
	addr string

	mu       sync.Mutex
	onWrite  func(txn *pb.TxnRequest) error // before etcd sees it; an error answers instead
	onAnswer func(txn *pb.TxnRequest) error // after etcd has answered; an error takes the answer's place
	onResult func(txn *pb.TxnRequest, succeeded bool)
	watches  chan struct{} // while not nil and open, nothing that a watch brings is passed on
}

type frame struct{ data []byte }

type frameCodec struct{}

// Name, Marshal and Unmarshal are encoding.CodecV2's.
func (frameCodec) Name() string { return "proto" }

func (frameCodec) Marshal(v any) (mem.BufferSlice, error) {
	return mem.BufferSlice{mem.SliceBuffer(v.(*frame).data)}, nil
}

func (frameCodec) Unmarshal(data mem.BufferSlice, v any) error {
	v.(*frame).data = data.Materialize()
	return nil
}

func newEtcdProxy(t *testing.T, target string) *etcdProxy {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	conn, err := grpc.NewClient(strings.TrimPrefix(target, "http://"), grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithDefaultCallOptions(grpc.ForceCodecV2(frameCodec{}), grpc.MaxCallRecvMsgSize(64<<20)))
	if err != nil {
		t.Fatal(err)
	}
	p := &etcdProxy{addr: l.Addr().String()}
	srv := grpc.NewServer(grpc.ForceServerCodecV2(frameCodec{}), grpc.MaxRecvMsgSize(64<<20), grpc.UnknownServiceHandler(func(_ any, ss grpc.ServerStream) error {
		return p.pass(conn, ss)
	}))
	go func() { _ = srv.Serve(l) }() // ends with Stop
	t.Cleanup(func() { srv.Stop(); conn.Close() })
	return p
}

func (p *etcdProxy) hooks(onWrite, onAnswer func(*pb.TxnRequest) error) {
	p.mu.Lock()
	p.onWrite, p.onAnswer = onWrite, onAnswer
	p.mu.Unlock()
}

// results tells f of every write of records that etcd has answered, and whether its guards still stood.
func (p *etcdProxy) results(f func(txn *pb.TxnRequest, succeeded bool)) {
	p.mu.Lock()
	p.onResult = f
	p.mu.Unlock()
}

// holdWatches keeps the news of other holders from the coordinator until resume is called.
func (p *etcdProxy) holdWatches() (resume func()) {
	ch := make(chan struct{})
	p.mu.Lock()
	p.watches = ch
	p.mu.Unlock()
	return sync.OnceFunc(func() { close(ch) })
}

func (p *etcdProxy) pass(conn *grpc.ClientConn, ss grpc.ServerStream) error {
	method, _ := grpc.MethodFromServerStream(ss)
	ctx, cancel := context.WithCancel(ss.Context())
	defer cancel()
	if md, ok := metadata.FromIncomingContext(ctx); ok {
		ctx = metadata.NewOutgoingContext(ctx, md)
	}
	if method == pb.KV_Txn_FullMethodName {
		return p.txn(ctx, conn, ss)
	}
	cs, err := conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true, ClientStreams: true}, method)
	if err != nil {
		return err
	}
	go func() {
		for {
			f := &frame{}
			if err := ss.RecvMsg(f); err != nil {
				if errors.Is(err, io.EOF) {
					_ = cs.CloseSend()
				} else {
					cancel()
				}
				return
			}
			if cs.SendMsg(f) != nil {
				return
			}
		}
	}()
	for {
		f := &frame{}
		if err := cs.RecvMsg(f); err != nil {
			if errors.Is(err, io.EOF) {
				return nil
			}
			return err
		}
		if method == pb.Watch_Watch_FullMethodName {
			p.mu.Lock()
			held := p.watches
			p.mu.Unlock()
			if held != nil {
				select {
				case <-held:
				case <-ctx.Done():
					return ctx.Err()
				}
			}
		}
		if err := ss.SendMsg(f); err != nil {
			return err
		}
	}
}

// txn passes one transaction through the hooks.
func (p *etcdProxy) txn(ctx context.Context, conn *grpc.ClientConn, ss grpc.ServerStream) error {
	in, out := &frame{}, &frame{}
	if err := ss.RecvMsg(in); err != nil {
		return err
	}
	req := &pb.TxnRequest{}
	if err := proto.Unmarshal(in.data, req); err != nil {
		return status.Error(codes.Internal, err.Error())
	}
	p.mu.Lock()
	onWrite, onAnswer, onResult := p.onWrite, p.onAnswer, p.onResult
	p.mu.Unlock()
	writes := writesRecords(req)
	if writes && onWrite != nil {
		if err := onWrite(req); err != nil {
			return err
		}
	}
	// What is on its way to etcd arrives, whether or not its sender still waits.
	if err := conn.Invoke(context.WithoutCancel(ctx), pb.KV_Txn_FullMethodName, in, out); err != nil {
		return err
	}
	if writes && onResult != nil {
		resp := &pb.TxnResponse{}
		if err := proto.Unmarshal(out.data, resp); err != nil {
			return status.Error(codes.Internal, err.Error())
		}
		onResult(req, resp.Succeeded)
	}
	if writes && onAnswer != nil {
		if err := onAnswer(req); err != nil {
			return err
		}
	}
	return ss.SendMsg(out)
}

// writesRecords says that a transaction puts transactions' records, not members or slots.
func writesRecords(r *pb.TxnRequest) bool {
	for _, op := range r.Success {
		if put := op.GetRequestPut(); put != nil && strings.HasPrefix(string(put.Key), "/lockstep/1/tx/") {
			return true
		}
	}
	return false
}

// errLost is what a client sees when a connection breaks before the answer.
var errLost = status.Error(codes.Unavailable, "the test ate the answer")
