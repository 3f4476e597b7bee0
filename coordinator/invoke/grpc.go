package invoke

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/lockstep-tx/lockstep/coordinator/engine"
	"github.com/lockstep-tx/lockstep/coordinator/txn"
	"github.com/lockstep-tx/lockstep/participants/branch/batchpb"
	"github.com/lockstep-tx/lockstep/participants/branch/rawgrpc"
)

// grpcPool keeps one connection per server and way to reach it.
type grpcPool struct {
	dial  dialFunc
	tls   credentials.TransportCredentials
	mu    sync.Mutex
	conns map[endpoint]*grpc.ClientConn
}

// endpoint is a server as an address names it: over TLS, or in the clear.
type endpoint struct {
	target string // host:port
	tls    bool
}

func newGRPCPool(d dialFunc, c *tls.Config) *grpcPool {
	return &grpcPool{dial: d, tls: credentials.NewTLS(c), conns: map[endpoint]*grpc.ClientConn{}}
}

func (p *grpcPool) get(s endpoint) (*grpc.ClientConn, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if c := p.conns[s]; c != nil {
		return c, nil
	}
	creds := insecure.NewCredentials()
	if s.tls {
		creds = p.tls
	}
	target := s.target
	c, err := grpc.NewClient("dns:///"+target,
		grpc.WithTransportCredentials(creds),
		grpc.WithDefaultCallOptions(grpc.ForceCodecV2(rawgrpc.Codec{}), grpc.MaxCallRecvMsgSize(bodyMax)),
		grpc.WithDisableServiceConfig(),
		grpc.WithContextDialer(func(ctx context.Context, addr string) (net.Conn, error) {
			return p.dial(ctx, "tcp", addr, target)
		}),
		// gRPC's own pauses grow to two minutes; a participant that is back must not wait for them.
		grpc.WithConnectParams(grpc.ConnectParams{MinConnectTimeout: 3 * time.Second, Backoff: backoff.Config{
			BaseDelay: 100 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: 2 * time.Second,
		}}))
	if err != nil {
		return nil, err
	}
	p.conns[s] = c
	return c, nil
}

func (p *grpcPool) close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, c := range p.conns {
		c.Close()
	}
	clear(p.conns)
}

// grpcsScheme begins the address of a gRPC server that is called over TLS.
const grpcsScheme = "grpcs://"

// splitGRPC splits host:port/pkg.Service/Method, or the same behind grpcs://, at the first slash behind the host.
func splitGRPC(url string) (s endpoint, method string, err error) {
	url, s.tls = strings.CutPrefix(url, grpcsScheme)
	if strings.Contains(url, "://") {
		return s, "", fmt.Errorf("no driver for the scheme of %q: give host:port/pkg.Service/Method, behind grpcs:// over TLS", url)
	}
	i := strings.IndexByte(url, '/')
	if i <= 0 {
		return s, "", fmt.Errorf("bad url: '%s'. no '/' found", url)
	}
	s.target = url[:i]
	return s, url[i:], nil
}

func (v *Invoker) callGRPC(ctx context.Context, c *engine.Call, res *engine.CallResult) {
	server, method, err := splitGRPC(c.URL)
	if err != nil {
		unknown(res, err)
		return
	}
	conn, err := v.grpc.get(server)
	if err != nil {
		unknown(res, err)
		return
	}
	kv := make([]string, 0, 24)
	for k, val := range c.Headers {
		// A client's header never takes the place of what names the call.
		if k = strings.ToLower(k); !strings.HasPrefix(k, "dtm-") && !strings.HasPrefix(k, "lockstep-") {
			kv = append(kv, k, val)
		}
	}
	kv = append(kv, "dtm-gid", string(c.Gid), "dtm-trans_type", c.Mode.String(), "dtm-branch_id", string(c.Branch), "dtm-op", c.OpWord, "dtm-dtm", "")
	fence(c, func(k, val string) { kv = append(kv, strings.ToLower(k), val) })
	for _, r := range c.Results {
		kv = append(kv, "lockstep-result-"+strings.ToLower(string(r.Branch))+"-bin", string(r.Body))
	}
	in, out := c.Payload, []byte(nil)
	if c.Op == txn.OpCallback {
		// A workflow's callback is a message of its own: WorkflowData{bytes Data = 1}.
		in = workflowData(c.Payload)
	}
	var answered metadata.MD
	err = conn.Invoke(metadata.NewOutgoingContext(ctx, metadata.Pairs(kv...)), method, &in, &out, v.askOffer(c, &answered)...)
	if offer := answered.Get(batchpb.OfferHeader); len(offer) > 0 {
		v.offered(c, offer[0])
	}
	res.Outcome, res.Text = judgeGRPC(err)
	if res.Outcome == txn.Done && c.WantResult {
		keep(res, out, v.cfg.ResultBytesMax)
	}
}

// workflowData encodes WorkflowData: field 1, bytes.
func workflowData(b []byte) []byte {
	if len(b) == 0 {
		return nil
	}
	out := []byte{0x0a}
	for n := uint64(len(b)); ; n >>= 7 {
		if n < 0x80 {
			out = append(out, byte(n))
			break
		}
		out = append(out, byte(n)|0x80)
	}
	return append(out, b...)
}

// judgeGRPC reads a branch's gRPC status; 409 and 425 are what PHP's client answers.
func judgeGRPC(err error) (txn.Outcome, string) {
	if err == nil {
		return txn.Done, ""
	}
	st := status.Convert(err)
	switch code := st.Code(); {
	case code == codes.FailedPrecondition, uint32(code) == 425, code == codes.Aborted && st.Message() == "ONGOING":
		return txn.Ongoing, st.Message()
	case code == codes.Aborted, uint32(code) == 409:
		return txn.Refused, st.Message()
	case code == codes.OutOfRange:
		return txn.Stale, st.Message()
	case uint32(code) == statusMoved:
		return txn.Deferred, st.Message()
	default:
		return txn.Unknown, fmt.Sprintf("gRPC %s: %s", code, st.Message())
	}
}
