package invoke

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"sync"
	"time"

	"github.com/valyala/fasthttp"

	"github.com/lockstep-tx/lockstep/coordinator/engine"
	"github.com/lockstep-tx/lockstep/participants/branch/batchpb"
)

// answerBytesMax bounds the body of an answer; a larger one is Unknown.
const answerBytesMax = 16 << 20

// caller speaks HTTP/1.1 to branches. A call runs on its own goroutine from the first byte out to the last byte in:
// half the work of net/http's client, which hands every call over to two others.
type caller struct {
	client *fasthttp.Client
	conns  *openConns
}

func newCaller(dial dialFunc, inFlight int, secure *tls.Config) *caller {
	c := &caller{conns: &openConns{open: map[net.Conn]struct{}{}}}
	c.client = &fasthttp.Client{
		NoDefaultUserAgentHeader: true, DisablePathNormalizing: true, MaxConnsPerHost: 4 * inFlight, MaxIdleConnDuration: 50 * time.Second,
		MaxResponseBodySize: answerBytesMax, ReadBufferSize: 16 << 10, WriteBufferSize: 2 << 10, TLSConfig: secure,
		DialTimeout: func(addr string, timeout time.Duration) (net.Conn, error) {
			ctx, cancel := context.WithTimeout(context.Background(), max(timeout, dialTimeoutMin))
			defer cancel()
			conn, err := dial(ctx, "tcp", addr, addr)
			if err != nil {
				return nil, err
			}
			return c.conns.add(conn)
		},
		// Only what certainly was not read by the other side is sent again by itself: a kept connection that was closed
		// before it gave a byte. All else is the retry schedule's business.
		RetryIfErr: func(_ *fasthttp.Request, attempts int, err error) (bool, bool) {
			return false, attempts <= 1 && errors.Is(err, fasthttp.ErrConnectionClosed)
		},
	}
	return c
}

const dialTimeoutMin = 100 * time.Millisecond

// interrupt ends the calls under way: their connections are closed.
func (c *caller) interrupt() { c.conns.closeAll() }

// roundTrip makes one HTTP call and gives the answer's body and status. It follows what keeps method and body, and
// nothing else: a login page that answers 200 is no confirm.
func (v *Invoker) roundTrip(ctx context.Context, c *engine.Call, method, target string, body []byte) ([]byte, int, error) {
	req, resp := fasthttp.AcquireRequest(), fasthttp.AcquireResponse()
	defer fasthttp.ReleaseRequest(req)
	defer fasthttp.ReleaseResponse(resp)
	deadline, _ := ctx.Deadline()
	for hops := 0; ; hops++ {
		req.Reset()
		resp.Reset()
		u, err := url.Parse(target)
		if err != nil || u.Host == "" || (u.Scheme != "http" && u.Scheme != "https") {
			return nil, 0, fmt.Errorf("bad branch url: %q", target)
		}
		if u.Path == "" {
			u.Path = "/"
			target = u.String()
		}
		req.SetRequestURI(target)
		req.Header.SetMethod(method)
		req.Header.SetContentType("application/json")
		for k, val := range c.Headers {
			if !ours(k) {
				req.Header.Set(k, val)
			}
		}
		fence(c, req.Header.Set) // last: a client's header never takes its place
		if method == http.MethodPost {
			req.SetBodyRaw(body)
		}
		if err := v.http.client.DoDeadline(req, resp, deadline); err != nil {
			if errors.Is(err, fasthttp.ErrTimeout) || errors.Is(err, fasthttp.ErrDialTimeout) {
				err = errCallTimeout
			}
			if ctx.Err() != nil {
				err = context.Cause(ctx)
			}
			return nil, 0, err
		}
		status := resp.StatusCode()
		next := resp.Header.Peek("Location")
		follow := status == http.StatusTemporaryRedirect || status == http.StatusPermanentRedirect || (status == http.StatusMovedPermanently && method == http.MethodGet)
		if !follow || len(next) == 0 {
			if offer := resp.Header.Peek(batchpb.OfferHeader); len(offer) > 0 && hops == 0 {
				v.offered(c, string(offer))
			}
			answer, err := resp.BodyUncompressed()
			if err != nil {
				return nil, 0, err
			}
			return append([]byte(nil), answer...), status, nil
		}
		if hops == redirectsMax {
			return nil, 0, errors.New("too many redirects")
		}
		ref, err := u.Parse(string(next))
		if err != nil {
			return nil, 0, fmt.Errorf("bad redirect: %w", err)
		}
		target = ref.String()
	}
}

// redirectsMax bounds the redirects of one call.
const redirectsMax = 5

// openConns knows every open connection, so that a shutdown ends the calls under way.
type openConns struct {
	mu     sync.Mutex
	open   map[net.Conn]struct{}
	closed bool
}

func (o *openConns) add(c net.Conn) (net.Conn, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.closed {
		c.Close()
		return nil, net.ErrClosed
	}
	t := &trackedConn{Conn: c, all: o}
	o.open[t] = struct{}{}
	return t, nil
}

func (o *openConns) closeAll() {
	o.mu.Lock()
	o.closed = true
	all := make([]net.Conn, 0, len(o.open))
	for c := range o.open {
		all = append(all, c)
	}
	o.mu.Unlock()
	for _, c := range all {
		c.Close()
	}
}

type trackedConn struct {
	net.Conn
	all *openConns
}

// Close is net.Conn's.
func (t *trackedConn) Close() error {
	t.all.mu.Lock()
	delete(t.all.open, t)
	t.all.mu.Unlock()
	return t.Conn.Close()
}
