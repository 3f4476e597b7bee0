package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/lockstep-tx/lockstep/participants/barrier"
	"github.com/lockstep-tx/lockstep/region/slot"
)

const asProgram = "LOCKSTEP_PARTICIPANTS_AS_PROGRAM"

// TestMain turns the test binary into the program when its environment says so, so that it can be killed.
func TestMain(m *testing.M) {
	if os.Getenv(asProgram) != "" {
		os.Exit(run(context.Background(), os.Args[1:], os.Stdout, os.Stderr))
	}
	os.Exit(m.Run())
}

type program struct {
	*exec.Cmd
	addr, url string
}

// start runs the program until its log says that it serves.
func start(t *testing.T, dir string) program {
	t.Helper()
	portFile := filepath.Join(dir, "port")
	p := program{Cmd: exec.Command(os.Args[0], "serve", "--db-buyer", filepath.Join(dir, "buyer.db"), "--db-merchant",
		filepath.Join(dir, "merchant.db"), "--port-file", portFile)}
	p.Env = append(os.Environ(), asProgram+"=1")
	stderr, err := p.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Start(); err != nil {
		t.Fatal(err)
	}
	copied := make(chan struct{})
	t.Cleanup(func() { _ = p.Process.Kill(); <-copied; _ = p.Wait() })
	lines := bufio.NewReader(stderr)
	line, err := lines.ReadString('\n')
	for err == nil && !strings.Contains(line, "serving") { // DTM's SDK, which pay uses, says a line of its own
		line, err = lines.ReadString('\n')
	}
	go func() { defer close(copied); _, _ = io.Copy(t.Output(), lines) }()
	if err != nil || !strings.Contains(line, "serving") {
		t.Fatalf("the program says %q (%v)", line, err)
	}
	port, err := os.ReadFile(portFile)
	if err != nil {
		t.Fatal(err)
	}
	p.addr = "127.0.0.1:" + strings.TrimSpace(string(port))
	p.url = "http://" + p.addr
	return p
}

func (p program) call(t *testing.T, path, gid, branchID, op, body string) int {
	t.Helper()
	transType := "tcc"
	if op == "action" {
		transType = "msg"
	}
	req, err := http.NewRequest(http.MethodPost, fmt.Sprintf("%s%s?gid=%s&trans_type=%s&branch_id=%s&op=%s", p.url, path, gid, transType, branchID, op), strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set(barrier.HeaderSlot, fmt.Sprint(barrier.SlotOf(gid)))
	req.Header.Set(barrier.HeaderEpoch, "1")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	return resp.StatusCode
}

func (p program) create(t *testing.T, body string) int {
	t.Helper()
	resp, err := http.Post(p.url+"/accounts", "application/json", strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	return resp.StatusCode
}

func (p program) state(t *testing.T) state {
	t.Helper()
	resp, err := http.Get(p.url + "/state")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var s state
	if err := json.NewDecoder(resp.Body).Decode(&s); err != nil {
		t.Fatal(err)
	}
	return s
}

// A payment, with the program killed outright in the middle of it; then one that is refused; then SIGTERM.
func TestPaymentsAcrossAKill(t *testing.T) {
	dir := t.TempDir()
	p := start(t, dir)
	for body, want := range map[string]int{
		`{"kind":"buyer","id":"alice","balance":10000}`: 204, `{"kind":"merchant","id":"shop"}`: 204,
		`{"kind":"buyer","id":"x ","balance":1}`: 400, `{"kind":"buyer","id":"x\u0007"}`: 400, `{"kind":"merchant","id":" shop"}`: 400,
		`{"kind":"buyer","id":"b","mode":"aggregated"}`: 400, `{"kind":"buyer","id":"b","mode":"fast"}`: 400, `{"kind":"buyer","id":"house:paid:CNY"}`: 400,
		`{"kind":"merchant","id":"m","mode":"serial"}`: 400, `{"kind":"buyer","id":"b","mode":"direct","shards":2}`: 400,
		`{"kind":"article","id":"book ","balance":1}`: 400, `{"kind":"article","id":""}`: 400,
		`{"kind":"buyer","id":"x","balance":-1}`: 400, `{"kind":"who"}`: 400, `{"typo":1}`: 400, `{`: 400,
	} {
		if got := p.create(t, body); got != want {
			t.Fatalf("%s: %d, want %d", body, got, want)
		}
	}
	buyer, shop := `{"account":"alice","amount":2500,"memo":"order 7"}`, `{"account":"shop","amount":2500}`
	steps := func(steps ...[5]string) {
		t.Helper()
		for _, s := range steps {
			if got := p.call(t, s[0], s[1], s[2], s[3], s[4]); got != http.StatusOK {
				t.Fatalf("%v: %d", s, got)
			}
		}
	}
	steps([5]string{"/buyer/try", "g1", "01", "try", buyer}, [5]string{"/merchant/try", "g1", "02", "try", shop},
		[5]string{"/buyer/confirm", "g1", "01", "confirm", buyer})
	if s := p.state(t); s.Open != 1 || s.Settled || len(s.Faults) > 0 || s.Buyer.Spent != 2500 || s.Merchant.Pending != 2500 {
		t.Fatalf("%+v", s)
	}
	if err := p.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = p.Wait()

	p = start(t, dir)
	steps([5]string{"/buyer/confirm", "g1", "01", "confirm", buyer}, [5]string{"/merchant/confirm", "g1", "02", "confirm", shop},
		[5]string{"/points/action", "g1-points", "01", "action", `{"account":"alice","amount":25}`},
		[5]string{"/points/action", "g1-points", "01", "action", `{"account":"alice","amount":25}`})
	if got := p.call(t, "/buyer/try", "g2", "01", "try", `{"account":"alice","amount":7501}`); got != http.StatusConflict {
		t.Fatalf("overdraft: %d", got)
	}
	steps([5]string{"/merchant/try", "g2", "02", "try", shop}, [5]string{"/merchant/cancel", "g2", "02", "cancel", shop},
		[5]string{"/buyer/cancel", "g2", "01", "cancel", `{"account":"alice","amount":7501}`})
	s := p.state(t)
	if !s.Settled || len(s.Faults) > 0 || s.Buyer.Balance != 7500 || s.Buyer.Spent != 2500 || s.Merchant.Posted != 2500 || s.Points.Points != 25 {
		t.Fatalf("%+v", s)
	}

	if err := p.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := p.Wait(); err != nil {
		t.Fatalf("after SIGTERM: %v", err)
	}
	if _, err := os.Stat(filepath.Join(dir, "port")); !os.IsNotExist(err) {
		t.Errorf("the port file is still there: %v", err)
	}
}

// Once a slot's barrier rows up to a time were cleaned away, a try of a gid from before is refused: nobody could tell it
// from a repeat. One from after runs, and so does one whose gid carries no time.
func TestATryFromBeforeTheFloorIsRefused(t *testing.T) {
	dir := t.TempDir()
	p := start(t, dir)
	if got := p.create(t, `{"kind":"buyer","id":"alice","balance":100}`); got != 204 {
		t.Fatal(got)
	}
	const mine = 7 // the slot
	gid := func(at time.Time) string { return slot.NewGid(at, func(n int) bool { return n == mine }) }
	dtms := "VmF5cTkzNGNjYTY3NGQ"
	for n := 0; barrier.SlotOf(dtms) != mine; n++ {
		dtms = fmt.Sprintf("VmF5cTkzNGNj%06d", n)
	}
	floor := time.Now().Add(-time.Hour)
	const body = `{"account":"alice","amount":1}`
	if got := p.call(t, "/buyer/try", gid(floor), "01", "try", body); got != http.StatusOK {
		t.Fatalf("before there was a floor: %d", got)
	}
	db, err := barrier.OpenSQLite(t.Context(), filepath.Join(dir, "buyer.db"))
	if err != nil {
		t.Fatal(err)
	}
	res, err := db.Exec(`UPDATE lockstep_fence SET floor_ms = ? WHERE slot = ?`, floor.UnixMilli(), mine)
	if err := errors.Join(err, db.Close()); err != nil {
		t.Fatal(err)
	}
	if n, err := res.RowsAffected(); n != 1 || err != nil {
		t.Fatalf("%d floors, %v", n, err)
	}
	for name, c := range map[string]struct {
		gid  string
		want int
	}{
		"old":   {gid(floor.Add(-time.Minute)), http.StatusConflict},
		"new":   {gid(floor.Add(time.Minute)), http.StatusOK},
		"DTM's": {dtms, http.StatusOK},
	} {
		if got := p.call(t, "/buyer/try", c.gid, "01", "try", body); got != c.want {
			t.Errorf("%s: %d, want %d", name, got, c.want)
		}
	}
}

// SIGTERM lets an open call end. The call is open once the program asks for its body (100 Continue), and draining has
// begun once nobody listens any more.
func TestDrainWaitsForOpenCalls(t *testing.T) {
	p := start(t, t.TempDir())
	if got := p.create(t, `{"kind":"buyer","id":"alice","balance":100}`); got != 204 {
		t.Fatal(got)
	}
	conn, err := net.Dial("tcp", p.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	const body = `{"account":"alice","amount":1}`
	fmt.Fprintf(conn, "POST /buyer/try?gid=g1&trans_type=tcc&branch_id=01&op=try HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\nExpect: 100-continue\r\n\r\n", len(body))
	answers := bufio.NewReader(conn)
	if line, err := answers.ReadString('\n'); err != nil || !strings.Contains(line, "100 Continue") {
		t.Fatalf("%q, %v", line, err)
	}
	if err := p.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	for {
		c, err := net.Dial("tcp", p.addr)
		if err != nil {
			break
		}
		c.Close()
	}
	fmt.Fprint(conn, body)
	if _, err := answers.ReadString('\n'); err != nil { // the empty line that ends "100 Continue"
		t.Fatal(err)
	}
	resp, err := http.ReadResponse(answers, nil)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		t.Errorf("the open call got %s", resp.Status)
	}
	if err := p.Wait(); err != nil {
		t.Error(err)
	}
}

func TestMainsView(t *testing.T) {
	for name, args := range map[string][]string{
		"no command":              {},
		"no database":             {"serve"},
		"an address that changes": {"serve", "--db", "sqlite:.", "--coordinator", "127.0.0.1:1"},
		"off loopback":            {"serve", "--db-buyer", "a", "--db-merchant", "b", "--listen", "0.0.0.0:0"},
	} {
		var stderr bytes.Buffer
		if code := run(t.Context(), args, &bytes.Buffer{}, &stderr); code != 2 || stderr.Len() == 0 {
			t.Errorf("%s: exit %d, %q", name, code, stderr.String())
		}
	}
	var stdout bytes.Buffer
	if code := run(t.Context(), []string{"--help"}, &stdout, &bytes.Buffer{}); code != 0 || !strings.Contains(stdout.String(), "serve") {
		t.Errorf("help: exit %d, %q", code, stdout.String())
	}
}
