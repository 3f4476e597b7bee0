//go:build servers

package dtmimport_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/lockstep-tx/lockstep/coordinator/bench/build"
)

// program is the coordinator's binary, built once.
var program string

func TestMain(m *testing.M) { os.Exit(testMain(m)) }

func testMain(m *testing.M) int {
	dir, err := os.MkdirTemp("", "lockstep-import-*")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	program = filepath.Join(dir, "lockstep")
	cmd := build.ForTest("-o", program, "../cmd/lockstep")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "build lockstep: %v\n%s", err, out)
		return 1
	}
	return m.Run()
}

// background outlives the test's context, for cleaning up.
func background(ctx context.Context) context.Context { return context.WithoutCancel(ctx) }

// move is one store's move: DTM, Lockstep and the participants between them.
type move struct {
	t             *testing.T
	dtm, lockstep string // what DTM's HTTP clients take
	admin         string
	part          string // the participants' address
	printed       bytes.Buffer

	mu      sync.Mutex
	calls   map[string]int // "gid/branch/op"
	effects map[string]bool
	answers map[string]int // what a call is answered with, instead of taking effect
	next    map[string]int // the same, after the move
}

func newMove(t *testing.T, dtm string) *move {
	h := &move{t: t, dtm: dtm, calls: map[string]int{}, effects: map[string]bool{}, answers: map[string]int{}, next: map[string]int{}}
	srv := httptest.NewServer(h)
	t.Cleanup(srv.Close)
	h.part = srv.URL + "/x"
	return h
}

// undoes are the calls that must not both take effect, but for the try or action that they undo.
var undoes = map[string]string{"confirm": "cancel", "cancel": "confirm", "commit": "rollback", "rollback": "commit"}

// ServeHTTP is every participant, with a barrier: a call takes effect once.
func (h *move) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	gid, branch, op := q.Get("gid"), q.Get("branch_id"), q.Get("op")
	key := gid + "/" + branch + "/" + op
	h.mu.Lock()
	h.calls[key]++
	code, odd := h.answers[key]
	if !odd {
		h.effects[key] = true
		if u := undoes[op]; u != "" && h.effects[gid+"/"+branch+"/"+u] {
			h.t.Errorf("%s: %s and %s took effect", gid, op, u)
		}
		code = http.StatusOK
	}
	h.mu.Unlock()
	if op == "pay" && !odd {
		h.finishWorkflow(gid)
	}
	w.WriteHeader(code)
}

// finishWorkflow is the workflow's client when it is called back: it finds its progress and ends it.
func (h *move) finishWorkflow(gid string) {
	progress := h.at(h.lockstep, "prepareWorkflow", `{"gid":"%s","trans_type":"workflow","protocol":"http","query_prepared":"%s","custom_data":"{\"name\":\"pay\",\"data\":\"aGVsbG8=\"}"}`, gid, h.part)
	if !strings.Contains(progress, `"branch_id":"01"`) || !strings.Contains(progress, `"cGFpZA=="`) {
		h.t.Errorf("%s: its progress was lost: %s", gid, progress)
	}
	h.at(h.lockstep, "submit", `{"gid":"%s","trans_type":"workflow","req_extra":{"status":"succeed"}}`, gid)
}

// answer makes a call be answered with a status, without effect.
func (h *move) answer(key string, status int) { h.set(h.answers, key, status) }

// later does the same after the move.
func (h *move) later(key string, status int) { h.set(h.next, key, status) }

func (h *move) set(m map[string]int, key string, status int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	m[key] = status
}

// heal lets everything take effect from now on, but for what was said to be refused later.
func (h *move) heal() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.answers = h.next
}

func (h *move) count(key string) int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.calls[key]
}

func (h *move) total() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	n := 0
	for _, c := range h.calls {
		n += c
	}
	return n
}

func (h *move) called(key string) {
	h.t.Helper()
	h.eventually(20*time.Second, key+" is called", func() bool { return h.count(key) > 0 })
}

// at posts one of DTM's requests, which must be taken, and gives the answer.
func (h *move) at(base, path, format string, args ...any) string {
	h.t.Helper()
	resp, err := http.Post(base+"/"+path, "application/json", strings.NewReader(fmt.Sprintf(format, args...)))
	if err != nil {
		h.t.Errorf("%s: %v", path, err)
		return ""
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		h.t.Errorf("%s answered %d: %s %v", path, resp.StatusCode, body, err)
	}
	return string(body)
}

func (h *move) begin(gid, mode, options string) {
	h.t.Helper()
	h.at(h.dtm, "prepare", `{%s"gid":"%s","trans_type":"%s"}`, options, gid, mode)
}

func (h *move) registerAt(base, gid, branch string) {
	h.t.Helper()
	h.at(base, "registerBranch", `{"gid":"%s","trans_type":"tcc","branch_id":"%s","data":"{}","confirm":"%s","cancel":"%s"}`, gid, branch, h.part, h.part)
}

// try is a TCC client at one branch: it registers it at DTM and calls its try.
func (h *move) try(gid, branch string) {
	h.t.Helper()
	h.registerAt(h.dtm, gid, branch)
	resp, err := http.Post(h.part+"?gid="+gid+"&branch_id="+branch+"&op=try", "application/json", strings.NewReader("{}"))
	if err != nil {
		h.t.Fatal(err)
	}
	resp.Body.Close()
}

func (h *move) saga(gid, options string) {
	h.t.Helper()
	step := fmt.Sprintf(`{"action":"%s","compensate":"%s"}`, h.part, h.part)
	h.at(h.dtm, "submit", `{%s"gid":"%s","trans_type":"saga","steps":[%s,%s,%s],"payloads":["{}","{}","{}"]}`, options, gid, step, step, step)
}

func (h *move) msg(gid, how, options string) {
	h.t.Helper()
	step := fmt.Sprintf(`{"action":"%s"}`, h.part)
	h.at(h.dtm, how, `{%s"gid":"%s","trans_type":"msg","query_prepared":"%s","steps":[%s,%s],"payloads":["{}","{}"]}`, options, gid, h.part, step, step)
}

// view is what /query answers.
type view struct {
	Transaction *struct{ Status string }
	Branches    []struct {
		BranchID string `json:"branch_id"`
		Op       string
		Status   string
	}
}

func (h *move) query(base, gid string) view {
	h.t.Helper()
	var v view
	resp, err := http.Get(base + "/query?gid=" + gid)
	if err != nil {
		h.t.Fatal(err)
	}
	defer resp.Body.Close()
	if err := json.NewDecoder(resp.Body).Decode(&v); err != nil {
		h.t.Fatal(err)
	}
	return v
}

// rowIs waits until DTM's store has a branch's call so.
func (h *move) rowIs(gid, branch, op, status string) {
	h.t.Helper()
	h.eventually(20*time.Second, fmt.Sprintf("%s/%s/%s is %s at DTM", gid, branch, op, status), func() bool {
		for _, b := range h.query(h.dtm, gid).Branches {
			if b.BranchID == branch && b.Op == op {
				return b.Status == status
			}
		}
		return false
	})
}

// status is DTM's word for where Lockstep has a transaction; empty for an unknown one.
func (h *move) status(gid string) string {
	h.t.Helper()
	if tr := h.query(h.lockstep, gid).Transaction; tr != nil {
		return tr.Status
	}
	return ""
}

// audit compares what took effect with what should have.
func (h *move) audit(s *scene) {
	h.t.Helper()
	h.mu.Lock()
	defer h.mu.Unlock()
	var got []string
	for _, key := range slices.Sorted(maps.Keys(h.effects)) {
		if rest, ok := strings.CutPrefix(key, s.gid+"/"); ok {
			got = append(got, rest)
		}
	}
	want := slices.Sorted(slices.Values(s.effects))
	if !slices.Equal(got, want) {
		h.t.Errorf("%s: these took effect: %v, want %v", s.gid, got, want)
	}
	for _, call := range s.once {
		if n := h.calls[s.gid+"/"+call]; n != 1 {
			h.t.Errorf("%s: %s was called %d times; DTM knew its answer", s.gid, call, n)
		}
	}
}

// run runs the real command line and gives what it printed and its exit code.
func (h *move) run(args ...string) (string, int) {
	h.t.Helper()
	cmd := exec.CommandContext(h.t.Context(), program, args...)
	out, err := cmd.CombinedOutput()
	h.printed.Write(out)
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		h.t.Fatal(err)
	}
	return string(out), cmd.ProcessState.ExitCode()
}

// serve starts a coordinator on its own etcd.
func (h *move) serve() {
	h.t.Helper()
	dir := h.t.TempDir()
	file := filepath.Join(dir, "addr.json")
	var log bytes.Buffer
	cmd := exec.Command(program, "serve", "--embedded", "--data-dir", h.t.TempDir(), "--addr-file", file,
		"--http-addr", "127.0.0.1:0", "--grpc-addr", "127.0.0.1:0", "--admin-addr", "127.0.0.1:0")
	cmd.Stdout, cmd.Stderr = &log, &log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(func() {
		_ = cmd.Process.Kill() // it may be dead already
		_ = cmd.Wait()
		if h.t.Failed() {
			h.t.Logf("the coordinator said:\n%s", log.String())
		}
	})
	var addr struct{ HTTP, Admin string }
	h.eventually(30*time.Second, "the coordinator is ready", func() bool {
		raw, err := os.ReadFile(file)
		if err != nil || json.Unmarshal(raw, &addr) != nil {
			return false
		}
		resp, err := http.Get("http://" + addr.Admin + "/readyz")
		if err != nil {
			return false
		}
		resp.Body.Close()
		return resp.StatusCode == http.StatusOK
	})
	h.lockstep, h.admin = "http://"+addr.HTTP+"/api/dtmsvr", addr.Admin
}

// eventually polls: what is waited for happens in other processes.
func (h *move) eventually(within time.Duration, what string, ok func() bool) {
	h.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), within)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-tick.C:
		case <-ctx.Done():
			h.t.Fatalf("not within %v: %s", within, what)
		}
	}
}
