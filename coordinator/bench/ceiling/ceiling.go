// Package ceiling is a coordinator that stores nothing: it speaks what DTM's Go SDK needs for TCC with wait_result, over
// HTTP and gRPC, keeps the branches in memory, calls the confirms (or cancels) in parallel and answers. No coordinator
// that speaks this protocol through net/http and grpc-go and calls the same participants can be faster by much, so its
// throughput is the ceiling for those that keep their promises.
//
// It never retries, has no timeouts of its own and forgets everything when it ends.
package ceiling

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"hash/maphash"
	"io"
	"math/rand/v2"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"

	"github.com/lockstep-tx/lockstep/participants/branch/rawgrpc"
)

const (
	stripes      = 64   // of the table of open transactions
	idleConnsMax = 1024 // kept per participant: more than any number of clients tried here
)

// branch is one registered branch.
type branch struct {
	id, confirm, cancel string
	payload             []byte
}

// Coordinator holds the open transactions. It is safe for concurrent use.
type Coordinator struct {
	seed  maphash.Seed
	table [stripes]struct {
		sync.Mutex
		open map[string][]branch
	}
	transport *http.Transport

	mu    sync.RWMutex
	conns map[string]*grpc.ClientConn
}

// New returns a coordinator without transactions.
func New() *Coordinator {
	c := &Coordinator{seed: maphash.MakeSeed(), conns: map[string]*grpc.ClientConn{}}
	for i := range c.table {
		c.table[i].open = map[string][]branch{}
	}
	c.transport = &http.Transport{
		MaxIdleConns: idleConnsMax, MaxIdleConnsPerHost: idleConnsMax, DisableCompression: true,
	}
	return c
}

var (
	errUnknown  = errors.New("no trans with that gid and status prepared found FAILURE")
	errExists   = errors.New("gid exists FAILURE")
	errNotGiven = errors.New("no gid given")
)

func newGid() string {
	return strconv.FormatUint(rand.Uint64()|1<<63, 36) + strconv.FormatUint(rand.Uint64()|1<<63, 36)
}

// prepare begins a transaction.
func (c *Coordinator) prepare(gid string) error {
	if gid == "" {
		return errNotGiven
	}
	t := &c.table[maphash.String(c.seed, gid)%stripes]
	t.Lock()
	defer t.Unlock()
	if _, ok := t.open[gid]; ok {
		return errExists
	}
	t.open[gid] = make([]branch, 0, 2)
	return nil
}

func (c *Coordinator) register(gid string, b branch) error {
	t := &c.table[maphash.String(c.seed, gid)%stripes]
	t.Lock()
	defer t.Unlock()
	list, ok := t.open[gid]
	if !ok {
		return errUnknown
	}
	t.open[gid] = append(list, b)
	return nil
}

// finish takes the transaction out of the table and calls confirm or cancel of all branches at once. It returns when all
// have answered, with the errors of those that did not succeed.
func (c *Coordinator) finish(ctx context.Context, gid, op string) error {
	t := &c.table[maphash.String(c.seed, gid)%stripes]
	t.Lock()
	list, ok := t.open[gid]
	delete(t.open, gid)
	t.Unlock()
	if !ok {
		return errUnknown
	}
	if len(list) == 0 {
		return nil
	}
	errs := make([]error, len(list))
	var others sync.WaitGroup
	for i := range list[1:] {
		others.Go(func() { errs[i+1] = c.call(ctx, gid, op, &list[i+1]) })
	}
	errs[0] = c.call(ctx, gid, op, &list[0])
	others.Wait()
	return errors.Join(errs...)
}

func (c *Coordinator) call(ctx context.Context, gid, op string, b *branch) error {
	target := b.confirm
	if op == "cancel" {
		target = b.cancel
	}
	switch {
	case target == "":
		return nil
	case strings.HasPrefix(target, "http://"):
		return c.callHTTP(ctx, target, gid, op, b)
	default:
		return c.callGRPC(ctx, target, gid, op, b)
	}
}

var jsonType = []string{"application/json"}

func (c *Coordinator) callHTTP(ctx context.Context, target, gid, op string, b *branch) error {
	sep := "?"
	if strings.Contains(target, "?") {
		sep = "&"
	}
	target += sep + "gid=" + url.QueryEscape(gid) + "&trans_type=tcc&branch_id=" + url.QueryEscape(b.id) + "&op=" + op
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, target, bytes.NewReader(b.payload))
	if err != nil {
		return err
	}
	req.Header["Content-Type"] = jsonType
	resp, err := c.transport.RoundTrip(req)
	if err != nil {
		return err
	}
	body, err := io.ReadAll(resp.Body)
	resp.Body.Close()
	if err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK || bytes.Contains(body, []byte("FAILURE")) || bytes.Contains(body, []byte("ONGOING")) {
		return fmt.Errorf("%s of %s: status %d: %.200s", op, b.id, resp.StatusCode, body)
	}
	return nil
}

func (c *Coordinator) callGRPC(ctx context.Context, target, gid, op string, b *branch) error {
	i := strings.IndexByte(target, '/')
	if i < 0 {
		return fmt.Errorf("bad url: '%s'. no '/' found", target)
	}
	conn, err := c.conn(target[:i])
	if err != nil {
		return err
	}
	ctx = metadata.AppendToOutgoingContext(ctx, "dtm-gid", gid, "dtm-trans_type", "tcc", "dtm-branch_id", b.id,
		"dtm-op", op, "dtm-dtm", "")
	var reply []byte
	return conn.Invoke(ctx, target[i:], &b.payload, &reply)
}

func (c *Coordinator) conn(addr string) (*grpc.ClientConn, error) {
	c.mu.RLock()
	conn := c.conns[addr]
	c.mu.RUnlock()
	if conn != nil {
		return conn, nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if conn := c.conns[addr]; conn != nil {
		return conn, nil
	}
	conn, err := grpc.NewClient(addr, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.ForceCodecV2(rawgrpc.Codec{})))
	if err == nil {
		c.conns[addr] = conn
	}
	return conn, err
}

// request is what the SDK's bodies hold that matters here.
type request struct {
	Gid       string `json:"gid"`
	TransType string `json:"trans_type"`
	BranchID  string `json:"branch_id"`
	Data      string `json:"data"`
	Confirm   string `json:"confirm"`
	Cancel    string `json:"cancel"`
}

// Handler serves DTM's HTTP paths.
func (c *Coordinator) Handler() http.Handler { return http.HandlerFunc(c.serve) }

var (
	success    = []byte(`{"dtm_result":"SUCCESS"}`)
	successLen = []string{strconv.Itoa(len(success))}
)

func (c *Coordinator) serve(w http.ResponseWriter, r *http.Request) {
	h := w.Header()
	h["Content-Type"] = jsonType
	path, ok := strings.CutPrefix(r.URL.Path, "/api/dtmsvr/")
	if ok && path == "newGid" {
		_, _ = io.WriteString(w, `{"dtm_result":"SUCCESS","gid":"`+newGid()+`"}`)
		return
	}
	body := make([]byte, max(r.ContentLength, 0))
	_, err := io.ReadFull(r.Body, body)
	var req request
	if err == nil && path != "version" {
		err = json.Unmarshal(body, &req)
	}
	if err == nil {
		switch path {
		case "prepare":
			err = c.prepare(req.Gid)
		case "registerBranch":
			err = c.register(req.Gid, branch{
				id: req.BranchID, confirm: req.Confirm, cancel: req.Cancel, payload: []byte(req.Data),
			})
		case "submit":
			err = c.finish(r.Context(), req.Gid, "confirm")
		case "abort":
			err = c.finish(r.Context(), req.Gid, "cancel")
		case "version":
		default:
			http.NotFound(w, r)
			return
		}
	}
	if err != nil {
		w.WriteHeader(http.StatusConflict)
		_ = json.NewEncoder(w).Encode(map[string]string{"dtm_result": "FAILURE", "message": err.Error()})
		return
	}
	h["Content-Length"] = successLen
	_, _ = w.Write(success)
}
