// Package peer is how the coordinators of one region hand requests to one another: in one hop, to the holder of the
// transaction's slot, whatever protocol the client spoke.
//
// The law it keeps: a request that came from a peer is never forwarded again, so that no loop is possible; and an
// error keeps its meaning: a refusal stays a refusal, an unknown outcome stays unknown.
//
// It is tested by round trips of every request and error and by three real coordinators.
package peer

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/status"

	"github.com/lockstep-tx/lockstep/coordinator/engine"
	"github.com/lockstep-tx/lockstep/coordinator/peer/peerpb"
	"github.com/lockstep-tx/lockstep/coordinator/record"
	"github.com/lockstep-tx/lockstep/coordinator/txn"
)

// A connection that says nothing for silence is asked for a sign, and given up without one after answer: a link that is cut
// loses packets, and would hold a request until its caller's deadline. gRPC asks no sooner than every 10 s.
const (
	silence = 10 * time.Second
	answer  = 3 * time.Second
)

// Client forwards requests. Safe for concurrent use.
type Client struct {
	creds credentials.TransportCredentials
	mu    sync.Mutex
	conns map[string]*grpc.ClientConn
}

// NewClient makes a Client; creds nil means without TLS, for loopback.
func NewClient(creds credentials.TransportCredentials) *Client {
	if creds == nil {
		creds = insecure.NewCredentials()
	}
	return &Client{creds: creds, conns: map[string]*grpc.ClientConn{}}
}

var (
	_ engine.Forwarder = (*Client)(nil)
	_ engine.Lister    = (*Client)(nil)
)

// Close ends every connection.
func (c *Client) Close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, conn := range c.conns {
		conn.Close()
	}
	clear(c.conns)
}

func (c *Client) peer(addr string) (peerpb.PeerClient, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	conn := c.conns[addr]
	if conn == nil {
		var err error
		if conn, err = grpc.NewClient("passthrough:///"+addr, grpc.WithTransportCredentials(c.creds), grpc.WithDisableServiceConfig(),
			grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(64<<20)), grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: silence, Timeout: answer})); err != nil {
			return nil, fmt.Errorf("connect to coordinator at %s: %w", addr, err)
		}
		c.conns[addr] = conn
	}
	return peerpb.NewPeerClient(conn), nil
}

// Forward is engine.Forwarder's. When the other one cannot be reached before anything was sent it is ErrNotHolder, so
// that the caller looks again who holds the slot; when the answer is lost the outcome is unknown.
func (c *Client) Forward(ctx context.Context, to engine.Member, req engine.Request) (engine.Reply, error) {
	in, err := encode(req)
	if err != nil {
		return engine.Reply{}, err
	}
	p, err := c.peer(to.GRPC)
	if err != nil {
		return engine.Reply{}, err
	}
	out, err := p.Do(ctx, in)
	if err != nil {
		if ctx.Err() != nil {
			return engine.Reply{}, context.Cause(ctx)
		}
		if status.Code(err) == codes.Unavailable {
			// It may have been carried out. The engine sends it again, marked Resent: an outcome that stands as it asks
			// is then its answer.
			return engine.Reply{}, fmt.Errorf("%w: coordinator %q at %s: %w", engine.ErrNotHolder, to.ID, to.GRPC, err)
		}
		return engine.Reply{}, fmt.Errorf("forward to coordinator %q: %w", to.ID, err)
	}
	return decodeReply(out, req.Gid)
}

// ListLive is engine.Lister's.
func (c *Client) ListLive(ctx context.Context, from engine.Member, f engine.Filter, after engine.LiveCursor, limit int) ([]engine.Reply, error) {
	p, err := c.peer(from.GRPC)
	if err != nil {
		return nil, err
	}
	in := &peerpb.ListRequest{
		Mode: uint32(f.Mode), Slot: int32(f.Slot), GidPrefix: f.GidPrefix, BegunAfter: f.BegunAfter, BegunBefore: f.BegunBefore,
		StuckFails: uint32(f.StuckFails), Stopped: f.Stopped, InDoubt: f.InDoubt, CursorBegunAt: after.BegunAt, CursorGid: string(after.Gid), Limit: uint32(limit),
	}
	for _, ph := range f.Phases {
		in.Phases = append(in.Phases, uint32(ph))
	}
	cctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	out, err := p.ListLive(cctx, in)
	if err != nil {
		return nil, err
	}
	var list []engine.Reply
	for _, raw := range out.Records {
		tx, err := record.Decode(raw)
		if err != nil {
			return nil, err
		}
		list = append(list, engine.Reply{State: tx.State, Timeline: tx.Timeline, Decision: tx.Decision, Finish: tx.Finish})
	}
	return list, nil
}

// Engine is what a Server needs.
type Engine interface {
	Do(ctx context.Context, req engine.Request) (engine.Reply, error)
	ListLive(ctx context.Context, f engine.Filter, after engine.LiveCursor, limit int) ([]engine.Reply, error)
}

// Register adds the service to a gRPC server.
func Register(g grpc.ServiceRegistrar, e Engine) { peerpb.RegisterPeerServer(g, server{e: e}) }

type server struct {
	peerpb.UnimplementedPeerServer
	e Engine
}

// Do is peerpb.PeerServer's. Errors of the engine travel inside the answer.
func (s server) Do(ctx context.Context, in *peerpb.DoRequest) (*peerpb.DoReply, error) {
	req, err := decode(in)
	if err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	rep, err := s.e.Do(ctx, req)
	out := &peerpb.DoReply{Error: encodeError(err), Trimmed: rep.Trimmed}
	if rep.State.Phase != txn.PhaseNone {
		if out.Record, err = encodeState(rep); err != nil {
			return nil, status.Error(codes.Internal, err.Error())
		}
	}
	return out, nil
}

// ListLive is peerpb.PeerServer's.
func (s server) ListLive(ctx context.Context, in *peerpb.ListRequest) (*peerpb.ListReply, error) {
	f := engine.Filter{
		Mode: txn.Mode(in.Mode), Slot: int(in.Slot), GidPrefix: in.GidPrefix, BegunAfter: in.BegunAfter, BegunBefore: in.BegunBefore,
		StuckFails: int(in.StuckFails), Stopped: in.Stopped, InDoubt: in.InDoubt,
	}
	for _, p := range in.Phases {
		f.Phases = append(f.Phases, txn.Phase(p))
	}
	list, err := s.e.ListLive(ctx, f, engine.LiveCursor{BegunAt: in.CursorBegunAt, Gid: txn.Gid(in.CursorGid)}, int(min(in.Limit, 10_000)))
	if err != nil {
		return nil, status.Error(codes.Unavailable, err.Error())
	}
	out := &peerpb.ListReply{}
	for _, rep := range list {
		raw, err := encodeState(rep)
		if err != nil {
			return nil, status.Error(codes.Internal, err.Error())
		}
		out.Records = append(out.Records, raw)
	}
	return out, nil
}

func encodeState(rep engine.Reply) ([]byte, error) {
	tx := record.Tx{State: rep.State, Timeline: rep.Timeline, Decision: rep.Decision, Finish: rep.Finish}
	return tx.Encode()
}

func decodeReply(out *peerpb.DoReply, gid txn.Gid) (engine.Reply, error) {
	rep := engine.Reply{}
	if len(out.Record) > 0 {
		tx, err := record.Decode(out.Record)
		if err != nil {
			return rep, fmt.Errorf("answer for %q: %w", string(gid), err)
		}
		if tx.State.Gid != gid {
			return rep, fmt.Errorf("answer for %q: it holds transaction %q", string(gid), string(tx.State.Gid))
		}
		rep = engine.Reply{State: tx.State, Timeline: tx.Timeline, Decision: tx.Decision, Finish: tx.Finish, Trimmed: out.Trimmed}
	}
	return rep, decodeError(out.Error, gid)
}

const (
	errRefused     = 1
	errOverloaded  = 2
	errNotHolder   = 3
	errUnavailable = 4
	errStopping    = 5
	errOther       = 6
)

func encodeError(err error) *peerpb.Error {
	var te *txn.Error
	var oe *engine.OverloadedError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &te):
		return &peerpb.Error{Kind: errRefused, Code: uint32(te.Code), Mode: uint32(te.Mode), Phase: uint32(te.Phase), Stopped: te.Stopped, Text: te.Text}
	case errors.As(err, &oe):
		return &peerpb.Error{Kind: errOverloaded, Text: oe.Why, RetryAfterMs: oe.RetryAfter.Milliseconds()}
	case errors.Is(err, engine.ErrNotHolder):
		return &peerpb.Error{Kind: errNotHolder}
	case errors.Is(err, engine.ErrUnavailable):
		return &peerpb.Error{Kind: errUnavailable}
	case errors.Is(err, engine.ErrStopping):
		return &peerpb.Error{Kind: errStopping}
	}
	return &peerpb.Error{Kind: errOther, Text: err.Error()}
}

func decodeError(e *peerpb.Error, gid txn.Gid) error {
	if e == nil {
		return nil
	}
	switch e.Kind {
	case errRefused:
		if e.Code < uint32(txn.CodeInvalid) || e.Code > uint32(txn.CodeIncomplete) || e.Mode > uint32(txn.ModeWorkflow) || e.Phase > uint32(txn.PhaseAborted) {
			return fmt.Errorf("the holder refuses in a way that this version does not know (code %d): %s", e.Code, e.Text)
		}
		return &txn.Error{Code: txn.Code(e.Code), Gid: gid, Mode: txn.Mode(e.Mode), Phase: txn.Phase(e.Phase), Stopped: e.Stopped, Text: e.Text}
	case errOverloaded:
		return &engine.OverloadedError{Why: e.Text, RetryAfter: time.Duration(min(max(e.RetryAfterMs, 0), millisMax)) * time.Millisecond}
	case errNotHolder, errStopping:
		return engine.ErrNotHolder // look again who holds the slot
	case errUnavailable:
		return engine.ErrUnavailable
	}
	return fmt.Errorf("the holder says: %s", e.Text)
}
