// Package client is the Go client of Lockstep's native API.
//
// One call runs a whole payment: the coordinator tries both branches in parallel, decides, and confirms or cancels.
//
//	c, err := client.Dial("127.0.0.1:36790")
//	if err != nil { … }
//	defer c.Close()
//	tx, err := c.Execute(ctx, client.Tx{
//		IdempotencyKey: "order-4711",
//		Branches: []client.Branch{
//			{ID: "buyer", Try: buyer + "/try", Confirm: buyer + "/confirm", Cancel: buyer + "/cancel", Payload: freeze},
//			{ID: "merchant", Try: shop + "/try", Confirm: shop + "/confirm", Cancel: shop + "/cancel", Payload: book},
//		},
//		Messages: []client.Message{{ID: "points", URL: points + "/add", Payload: add}},
//	}, client.Decided)
//	switch {
//	case err != nil: // nothing is known, or the request was wrong: see Retryable
//	case tx.Committed(): // decided; the confirms follow, whatever crashes
//	default: // aborted: tx.Reason says why
//	}
//
// A repeat with the same idempotency key and body gets the same answer, also after a crash of either side. The
// example in this package's tests compiles and runs.
package client

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/lockstep-tx/lockstep/coordinator/api/apipb"
)

// Until is what an answer waits for.
type Until = apipb.Wait

// The milestones of a transaction.
const (
	Accepted = apipb.Wait_WAIT_ACCEPTED // durable
	Decided  = apipb.Wait_WAIT_DECIDED  // the decision is durable
	Settled  = apipb.Wait_WAIT_SETTLED  // every branch but the messages has answered
	Finished = apipb.Wait_WAIT_FINISHED // everything has answered
)

// Branch is one participant's part. Addresses are http(s)://host:port/path, or host:port/package.Service/Method for
// gRPC. Payload is the body of each of its calls; the client keeps no reference to it after the call returns.
type Branch struct {
	ID                   string
	Try, Confirm, Cancel string
	Payload              []byte
	// After are ids of branches whose tries come first (Execute only).
	After []string
	// UseResults: the try carries what the tries in After answered: the field "results" of a JSON payload, or the gRPC
	// metadata lockstep-result-<id>-bin.
	UseResults bool
	// Account that the branch works on: it is called in that account's home, which may be another region than the
	// transaction's. Empty: the transaction's own slot stands for it.
	Account string
}

// Message is delivered at least once if and only if the transaction commits.
type Message struct {
	ID, URL string
	Payload []byte
}

// Options of a transaction; zero fields are the coordinator's defaults. Times are rounded down to milliseconds.
type Options struct {
	Timeout        time.Duration // undecided after this: aborted; 35 s
	RequestTimeout time.Duration // of one branch call; 3 s
	RetryInterval  time.Duration // first pause after a failure; 500 ms
	RetryLimit     int           // failed tries, all branches together, before Execute aborts; none
	Headers        map[string]string
	Durability     Durability // where the decision must be durable; the deployment's default
}

// Durability is where a decision must be durable before it counts.
type Durability = apipb.Durability

const (
	Regional = apipb.Durability_DURABILITY_REGIONAL // in the region's etcd
	Global   = apipb.Durability_DURABILITY_GLOBAL   // in the arbiter: it survives the loss of the region
)

// Tx is a transaction to be begun. Give a Gid, or an IdempotencyKey, or neither: then the coordinator makes a gid and a
// repeat is another transaction.
type Tx struct {
	Gid            string
	IdempotencyKey string
	// HashTag, with an IdempotencyKey, names the account whose home the transaction shall share.
	HashTag  string
	Branches []Branch
	Messages []Message
	Options  Options
}

// Phase is where a transaction stands.
type Phase = apipb.Phase

// State is a transaction as the coordinator answered.
type State struct {
	*apipb.Transaction
}

// Committed says that the decision is commit, durable and final.
func (s State) Committed() bool {
	return s.GetPhase() == apipb.Phase_PHASE_COMMITTING || s.GetPhase() == apipb.Phase_PHASE_COMMITTED
}

// Aborted says that the decision is abort, durable and final.
func (s State) Aborted() bool {
	return s.GetPhase() == apipb.Phase_PHASE_ABORTING || s.GetPhase() == apipb.Phase_PHASE_ABORTED
}

// Ended says that every branch has answered.
func (s State) Ended() bool {
	return s.GetPhase() == apipb.Phase_PHASE_COMMITTED || s.GetPhase() == apipb.Phase_PHASE_ABORTED
}

// Client talks to one coordinator, which forwards what it does not hold. Safe for concurrent use.
type Client struct {
	conn *grpc.ClientConn
	api  apipb.CoordinatorClient
}

// Option of Dial.
type Option func(*options)

type options struct {
	tls        *tls.Config
	token      string
	inTheClear bool
	extra      []grpc.DialOption
}

// ErrTokenInTheClear: a token would go to another machine without TLS, where everybody on the way could read it and act
// with it. Dial gives it for WithToken, a call for WithAuth; nothing was sent.
var ErrTokenInTheClear = errors.New("a token would go to another machine in the clear: give WithTLS (or, if you must, WithTokenInTheClear)")

// WithTLS speaks TLS with the configuration given; a client certificate in it names the caller.
func WithTLS(c *tls.Config) Option { return func(o *options) { o.tls = c } }

// WithToken sends a bearer token with every call. Off loopback it needs WithTLS.
func WithToken(token string) Option { return func(o *options) { o.token = token } }

// WithTokenInTheClear sends tokens without TLS to other machines: everybody on the way can read them and act with them.
func WithTokenInTheClear() Option { return func(o *options) { o.inTheClear = true } }

// WithDialOptions adds gRPC options, for interceptors and the like.
func WithDialOptions(extra ...grpc.DialOption) Option {
	return func(o *options) { o.extra = append(o.extra, extra...) }
}

// Dial makes a Client for the gRPC address of a coordinator (host:port). It sends nothing: the first call connects.
func Dial(addr string, opts ...Option) (*Client, error) {
	var o options
	for _, f := range opts {
		f(&o)
	}
	creds := insecure.NewCredentials()
	if o.tls != nil {
		creds = credentials.NewTLS(o.tls)
	}
	dial := append([]grpc.DialOption{grpc.WithTransportCredentials(creds), grpc.WithDisableServiceConfig()}, o.extra...)
	if o.tls == nil && !o.inTheClear && !onThisMachine(addr) {
		if o.token != "" {
			return nil, fmt.Errorf("dial coordinator %s: %w", addr, ErrTokenInTheClear)
		}
		dial = append(dial, grpc.WithChainUnaryInterceptor(noToken), grpc.WithChainStreamInterceptor(noTokenStream))
	}
	if o.token != "" {
		dial = append(dial, grpc.WithPerRPCCredentials(bearer(o.token)))
	}
	conn, err := grpc.NewClient(addr, dial...)
	if err != nil {
		return nil, fmt.Errorf("dial coordinator %s: %w", addr, err)
	}
	return &Client{conn: conn, api: apipb.NewCoordinatorClient(conn)}, nil
}

// onThisMachine says that an address, with or without a resolver's scheme, is of the loopback or a socket file.
func onThisMachine(addr string) bool {
	if strings.HasPrefix(addr, "unix:") || strings.HasPrefix(addr, "unix-abstract:") {
		return true
	}
	if scheme, rest, ok := strings.Cut(addr, ":///"); ok && scheme != "" {
		addr = rest
	}
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		host = addr
	}
	ip, err := netip.ParseAddr(host)
	return host == "localhost" || err == nil && ip.IsLoopback()
}

// bears says that the call carries a token of WithAuth.
func bears(ctx context.Context) error {
	if md, ok := metadata.FromOutgoingContext(ctx); ok && len(md.Get("authorization")) > 0 {
		return ErrTokenInTheClear
	}
	return nil
}

func noToken(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
	if err := bears(ctx); err != nil {
		return err
	}
	return invoke(ctx, method, req, reply, cc, opts...)
}

func noTokenStream(ctx context.Context, desc *grpc.StreamDesc, cc *grpc.ClientConn, method string, open grpc.Streamer, opts ...grpc.CallOption) (grpc.ClientStream, error) {
	if err := bears(ctx); err != nil {
		return nil, err
	}
	return open(ctx, desc, cc, method, opts...)
}

// bearer is a token sent with every call. On loopback it may go in the clear.
type bearer string

// GetRequestMetadata is credentials.PerRPCCredentials's.
func (b bearer) GetRequestMetadata(context.Context, ...string) (map[string]string, error) {
	return map[string]string{"authorization": "Bearer " + string(b)}, nil
}

// RequireTransportSecurity is credentials.PerRPCCredentials's.
func (b bearer) RequireTransportSecurity() bool { return false }

// Close ends the connection. Transactions go on.
func (c *Client) Close() error { return c.conn.Close() }

// Retryable says that err says nothing of the transaction's fate and that the same request may be sent again: with a
// gid or an idempotency key it has one effect. After is how long the coordinator asks to wait, 0 when it does not say.
func Retryable(err error) bool {
	switch status.Code(err) {
	case codes.Unavailable, codes.ResourceExhausted, codes.DeadlineExceeded:
		return true
	}
	return false
}

func (t *Tx) wire() ([]*apipb.Branch, []*apipb.Message, *apipb.Options) {
	var bs []*apipb.Branch
	for i := range t.Branches {
		bs = append(bs, t.Branches[i].wire())
	}
	var ms []*apipb.Message
	for _, m := range t.Messages {
		ms = append(ms, &apipb.Message{Id: m.ID, Url: m.URL, Payload: m.Payload})
	}
	o := t.Options
	return bs, ms, &apipb.Options{
		TimeoutMs: o.Timeout.Milliseconds(), RequestTimeoutMs: o.RequestTimeout.Milliseconds(), RetryIntervalMs: o.RetryInterval.Milliseconds(),
		RetryLimit: uint32(max(0, o.RetryLimit)), Headers: o.Headers, Durability: o.Durability,
	}
}

func (b *Branch) wire() *apipb.Branch {
	return &apipb.Branch{
		Id: b.ID, TryUrl: b.Try, ConfirmUrl: b.Confirm, CancelUrl: b.Cancel, Payload: b.Payload, After: b.After, UseResults: b.UseResults, Account: b.Account,
	}
}

// Execute runs a whole transaction and answers when until is reached. On nil the decision is durable unless until is
// Accepted; the caller asks Committed or Aborted.
func (c *Client) Execute(ctx context.Context, t Tx, until Until) (State, error) {
	bs, ms, o := t.wire()
	return answer(c.api.Execute(ctx, &apipb.ExecuteRequest{
		Gid: t.Gid, IdempotencyKey: t.IdempotencyKey, HashTag: t.HashTag, Branches: bs, Messages: ms, Options: o, Wait: until,
	}))
}

// Begin stores a transaction with all its branches. On nil it is durable, and the caller makes the tries, then calls
// Commit or Abort with the gid that the State names.
func (c *Client) Begin(ctx context.Context, t Tx) (State, error) {
	bs, ms, o := t.wire()
	return answer(c.api.Begin(ctx, &apipb.BeginRequest{
		Gid: t.Gid, IdempotencyKey: t.IdempotencyKey, HashTag: t.HashTag, Branches: bs, Messages: ms, Options: o,
	}))
}

// Register adds a branch to a transaction that was begun and is undecided. On nil it is durable: then make its try.
func (c *Client) Register(ctx context.Context, gid string, b Branch) (State, error) {
	return answer(c.api.Register(ctx, &apipb.RegisterRequest{Gid: gid, Branch: b.wire()}))
}

// Commit decides commit and answers when until is reached. A repeat gets the same answer.
func (c *Client) Commit(ctx context.Context, gid string, until Until) (State, error) {
	return answer(c.api.Commit(ctx, &apipb.DecideRequest{Gid: gid, Wait: until}))
}

// Abort decides abort for the reason given and answers when until is reached. A repeat gets the same answer.
func (c *Client) Abort(ctx context.Context, gid, reason string, until Until) (State, error) {
	return answer(c.api.Abort(ctx, &apipb.DecideRequest{Gid: gid, Wait: until, Reason: reason}))
}

// Get reads a transaction, live or finished.
func (c *Client) Get(ctx context.Context, gid string) (State, error) {
	return answer(c.api.Get(ctx, &apipb.GetRequest{Gid: gid}))
}

// NewGid makes a gid whose transaction lives at this coordinator.
func (c *Client) NewGid(ctx context.Context) (string, error) {
	out, err := c.api.NewGid(ctx, &apipb.NewGidRequest{})
	return out.GetGid(), err
}

// Watch calls each with the transaction now and after every change, until it has finished (nil), each returns an
// error, or ctx ends.
func (c *Client) Watch(ctx context.Context, gid string, each func(State) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := c.api.Watch(ctx, &apipb.GetRequest{Gid: gid})
	if err != nil {
		return err
	}
	for {
		tx, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if err := each(State{tx}); err != nil {
			return err
		}
	}
}

// List gives a page of transactions, newest first, and the token of the next page, "" at the end.
func (c *Client) List(ctx context.Context, q *apipb.ListRequest) ([]State, string, error) {
	out, err := c.api.List(ctx, q)
	if err != nil {
		return nil, "", err
	}
	var list []State
	for _, t := range out.GetTransactions() {
		list = append(list, State{t})
	}
	return list, out.GetNextPageToken(), nil
}

// WithAuth adds a token to the metadata of one call, for programs that act for several callers. Off loopback the Client
// needs WithTLS.
func WithAuth(ctx context.Context, token string) context.Context {
	return metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+token)
}

func answer(t *apipb.Transaction, err error) (State, error) {
	if err != nil {
		return State{}, err
	}
	return State{t}, nil
}
