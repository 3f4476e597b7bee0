package participanttest

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/lockstep-tx/lockstep/participants/barrier"
	"github.com/lockstep-tx/lockstep/participants/branch"
	"github.com/lockstep-tx/lockstep/participants/branch/batchpb"
	"github.com/lockstep-tx/lockstep/participants/branch/rawgrpc"
)

// run is one run of the suite.
type run struct {
	ctx    context.Context
	target Target
	client *http.Client
	conns  map[string]*grpc.ClientConn
	offer  string // where batches are taken
	gids   int
	raised map[int]bool  // slots whose epochs a check has raised: other checks speak at lower ones
	probe1 *branch.Probe // the probe's answer, once it was asked for
	report Report
}

func newRun(ctx context.Context, t Target) (*run, error) {
	if t.Timeout <= 0 {
		t.Timeout = 10 * time.Second
	}
	if t.Seed == "" {
		t.Seed = "check-" + rand.Text()
	}
	for _, a := range []struct{ name, url string }{{"try", t.Try}, {"confirm", t.Confirm}, {"cancel", t.Cancel}} {
		if !isHTTP(a.url) && !strings.Contains(a.url, "/") || strings.Contains(a.url, "://") && !isHTTP(a.url) {
			return nil, fmt.Errorf("%s %q: write http://host:port/path or host:port/package.Service/Method", a.name, a.url)
		}
	}
	return &run{ctx: ctx, target: t, client: &http.Client{Timeout: t.Timeout}, conns: map[string]*grpc.ClientConn{}, raised: map[int]bool{}}, nil
}

func (r *run) close() {
	for _, c := range r.conns {
		c.Close()
	}
	r.client.CloseIdleConnections()
}

func isHTTP(u string) bool {
	return strings.HasPrefix(u, "http://") || strings.HasPrefix(u, "https://")
}

// gid is one that no call has had, of a slot that no check has raised.
func (r *run) gid() string {
	for {
		r.gids++
		if g := fmt.Sprintf("%s-%d", r.target.Seed, r.gids); !r.raised[barrier.SlotOf(g)] {
			return g
		}
	}
}

// answer is what came of a call, in HTTP's terms; 0 where nothing came.
type answer struct {
	status int
	text   string
}

func (a answer) String() string {
	if a.status == 0 {
		return "no answer: " + a.text
	}
	return fmt.Sprintf("%d %.200s", a.status, a.text)
}

// call is a call as a coordinator at epoch makes it; epoch 0 sends none.
type call struct {
	gid, op string
	epoch   int64
	slot    int // of the gid, unless shifted
	payload []byte
}

func (r *run) newCall(gid, op string, epoch int64) call {
	return call{gid: gid, op: op, epoch: epoch, slot: barrier.SlotOf(gid), payload: r.target.Payload}
}

func (r *run) address(op string) string {
	switch op {
	case barrier.OpTry:
		return r.target.Try
	case barrier.OpConfirm:
		return r.target.Confirm
	case branch.OpApply, branch.OpHold:
		return strings.TrimSuffix(r.target.Confirm, "/confirm") + "/" + op
	}
	return r.target.Cancel
}

// epoch is what this run's calls carry; a participant without fences gets none.
func (r *run) epoch() int64 {
	if r.target.Unfenced {
		return 0
	}
	return 2
}

// do makes the call of a coordinator that is in its right.
func (r *run) do(gid, op string) answer { return r.send(r.newCall(gid, op, r.epoch())) }

func (r *run) send(c call) answer {
	ctx, cancel := context.WithTimeout(r.ctx, r.target.Timeout)
	defer cancel()
	if isHTTP(r.address(c.op)) {
		return r.sendHTTP(ctx, c)
	}
	return r.sendGRPC(ctx, c)
}

func (r *run) sendHTTP(ctx context.Context, c call) answer {
	u, err := url.Parse(r.address(c.op))
	if err != nil {
		return answer{text: err.Error()}
	}
	q := u.Query()
	for k, v := range map[string]string{"gid": c.gid, "trans_type": "tcc", "branch_id": "01", "op": c.op} {
		q.Set(k, v)
	}
	u.RawQuery = q.Encode()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, u.String(), bytes.NewReader(c.payload))
	if err != nil {
		return answer{text: err.Error()}
	}
	req.Header.Set("Content-Type", "application/json")
	if c.epoch != 0 {
		for _, h := range []string{barrier.HeaderSlot, barrier.HeaderAccountSlot} {
			req.Header.Set(h, strconv.Itoa(c.slot))
		}
		for _, h := range []string{barrier.HeaderEpoch, barrier.HeaderAccountEpoch} {
			req.Header.Set(h, strconv.FormatInt(c.epoch, 10))
		}
	}
	resp, err := r.client.Do(req)
	if err != nil {
		return answer{text: err.Error()}
	}
	defer resp.Body.Close()
	if o := resp.Header.Get(branch.OfferHeader); strings.HasPrefix(o, "/") && r.offer == "" {
		r.offer = u.Scheme + "://" + u.Host + o
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if err != nil {
		return answer{text: err.Error()}
	}
	a := answer{resp.StatusCode, strings.TrimSpace(string(body))}
	if a.status == http.StatusOK { // as services written for DTM before 1.10 say it
		switch {
		case bytes.Contains(body, []byte("ONGOING")):
			a.status = http.StatusTooEarly
		case bytes.Contains(body, []byte("FAILURE")):
			a.status = http.StatusConflict
		}
	}
	return a
}

func (r *run) conn(address string) (*grpc.ClientConn, string, error) {
	host, method, _ := strings.Cut(address, "/")
	if c := r.conns[host]; c != nil {
		return c, "/" + method, nil
	}
	c, err := grpc.NewClient(host, grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithDefaultCallOptions(grpc.ForceCodecV2(rawgrpc.Codec{})))
	if err == nil {
		r.conns[host] = c
	}
	return c, "/" + method, err
}

func (r *run) sendGRPC(ctx context.Context, c call) answer {
	conn, method, err := r.conn(r.address(c.op))
	if err != nil {
		return answer{text: err.Error()}
	}
	kv := []string{"dtm-gid", c.gid, "dtm-trans_type", "tcc", "dtm-branch_id", "01", "dtm-op", c.op}
	if c.epoch != 0 {
		slot, epoch := strconv.Itoa(c.slot), strconv.FormatInt(c.epoch, 10)
		kv = append(kv, "lockstep-slot", slot, "lockstep-epoch", epoch, "lockstep-account-slot", slot, "lockstep-account-epoch", epoch)
	}
	var md metadata.MD
	var out []byte
	err = conn.Invoke(metadata.AppendToOutgoingContext(ctx, kv...), method, &c.payload, &out, grpc.Header(&md))
	if o := md.Get(branch.OfferHeader); len(o) > 0 && r.offer == "" {
		r.offer = strings.TrimSuffix(r.address(c.op), method) + o[0]
	}
	st := status.Convert(err)
	http := map[codes.Code]int{
		codes.OK: 200, codes.Aborted: 409, codes.FailedPrecondition: 425, codes.OutOfRange: 412, codes.InvalidArgument: 400, codes.Unavailable: 503,
	}
	n, ok := http[st.Code()]
	if !ok {
		n = 500
	}
	return answer{n, strings.TrimSpace(st.Code().String() + " " + st.Message())}
}

// sendBatch sends calls in one request.
func (r *run) sendBatch(calls []call) ([]answer, error) {
	req := &batchpb.BatchRequest{}
	for _, c := range calls {
		target := "/" + strings.SplitN(r.address(c.op), "/", 2)[1]
		if isHTTP(r.address(c.op)) {
			u, err := url.Parse(r.address(c.op))
			if err != nil {
				return nil, err
			}
			target = u.RequestURI()
		}
		req.Calls = append(req.Calls, &batchpb.BranchCall{
			Target: target, Gid: c.gid, TransType: "tcc", BranchId: "01", Op: c.op, Payload: c.payload,
			Slot: uint32(c.slot), Epoch: uint64(c.epoch), AccountSlot: uint32(c.slot), AccountEpoch: uint64(c.epoch),
		})
	}
	raw, err := proto.Marshal(req)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(r.ctx, r.target.Timeout)
	defer cancel()
	if raw, err = r.exchange(ctx, raw); err != nil {
		return nil, err
	}
	reply := &batchpb.BatchReply{}
	if err := proto.Unmarshal(raw, reply); err != nil {
		return nil, err
	}
	if len(reply.Answers) != len(calls) {
		return nil, fmt.Errorf("%d answers to %d calls", len(reply.Answers), len(calls))
	}
	out := make([]answer, len(calls))
	for i, a := range reply.Answers {
		out[i] = answer{int(a.GetStatus()), a.GetMessage()}
	}
	return out, nil
}

func (r *run) exchange(ctx context.Context, raw []byte) ([]byte, error) {
	if !isHTTP(r.offer) {
		conn, method, err := r.conn(r.offer)
		if err != nil {
			return nil, err
		}
		var out []byte
		err = conn.Invoke(ctx, method, &raw, &out)
		return out, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, r.offer, bytes.NewReader(raw))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Content-Type", branch.BatchContentType)
	resp, err := r.client.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 8<<20))
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %.200s", resp.Status, body)
	}
	return body, err
}

// balances reads the state.
func (r *run) balances() (map[string]int64, error) {
	ctx, cancel := context.WithTimeout(r.ctx, r.target.Timeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, r.target.StateURL, nil)
	if err != nil {
		return nil, err
	}
	resp, err := r.client.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 64<<20))
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("the state URL answers %s: %.200s", resp.Status, body)
	}
	var nested struct {
		Balances map[string]int64 `json:"balances"`
	}
	if err := json.Unmarshal(body, &nested); err == nil && len(nested.Balances) > 0 {
		return nested.Balances, nil
	}
	var flat map[string]int64
	if err := json.Unmarshal(body, &flat); err != nil || len(flat) == 0 {
		return nil, errors.Join(errors.New(`the state URL answers neither {"balances":{"name":minor}} nor {"name":minor}`), err)
	}
	return flat, nil
}
