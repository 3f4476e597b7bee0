package server

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/lockstep-tx/lockstep/coordinator/api/client"
	"github.com/lockstep-tx/lockstep/coordinator/dtmwire/dtmwiretest"
)

// TestSeenFromOutside runs one coordinator with everything that lets it be seen and moved.
func TestSeenFromOutside(t *testing.T) {
	pyro := newPyroscope(t)
	p := serve(t, "--debug-clock", "--insecure", "--pyroscope-url", pyro.url)
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	cl, err := client.Dial(p.addr.GRPC)
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	admin, dtm := "http://"+p.addr.Admin, "http://"+p.addr.HTTP
	c := web(t, nil)

	for _, loud := range []string{"level=WARN msg=\"INSECURE:", "level=WARN msg=\"DEBUG CLOCK:"} {
		if !strings.Contains(p.log.String(), loud) {
			t.Errorf("the log does not say %s", loud)
		}
	}

	t.Run("the debug clock aborts what timed out", func(t *testing.T) {
		part := dtmwiretest.NewParticipant(t)
		if _, err := cl.Begin(ctx, client.Tx{Gid: "too-late", Branches: []client.Branch{{ID: "a", Confirm: part.HTTP("ok"), Cancel: part.HTTP("undo")}}}); err != nil {
			t.Fatal(err)
		}
		for _, by := range []string{"", "soon", "-5s"} {
			if code, _, body := ask(t, c, "POST", admin+"/debug/clock/advance?by="+by, "", ""); code != 400 || !strings.Contains(body, `"next"`) {
				t.Errorf("by=%s: got %d %s, want 400 with a next line", by, code, body)
			}
		}
		advance := func(by string, want ...string) {
			t.Helper()
			var out struct{ Gids []string }
			code, _, body := ask(t, c, "POST", admin+"/debug/clock/advance?by="+by, "", "")
			if code != 200 || json.Unmarshal([]byte(body), &out) != nil || !slices.Equal(out.Gids, want) {
				t.Fatalf("advance by %s: got %d %s, want gids %v", by, code, body, want)
			}
		}
		advance("30s")
		if st, err := cl.Get(ctx, "too-late"); err != nil || st.Aborted() {
			t.Fatalf("after 30 s: got %v %v, want it undecided", st, err)
		}
		advance("5s", "too-late")
		if st, err := cl.Get(ctx, "too-late"); err != nil || !st.Aborted() || !strings.Contains(st.GetReason(), "Timeout") {
			t.Errorf("after 35 s: got %v %v, want it aborted for its timeout", st, err)
		}
	})

	t.Run("labels stay bounded", func(t *testing.T) {
		for _, path := range []string{"/api/dtmsvr/xyz", "/api/dtmsvr/xyz/newGid", "/wp-login.php", "/api/dtmsvr/query?gid=g-4711", "/t/lk_secret/api/dtmsvr/zzz", "/api/dtmsvr/newGid/more"} {
			ask(t, c, "GET", dtm+path, "", "")
		}
		ask(t, c, "BREW", dtm+"/api/dtmsvr/newGid", "", "")
		conn, err := grpc.NewClient("passthrough:///"+p.addr.GRPC, grpc.WithTransportCredentials(insecure.NewCredentials()))
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		for _, method := range []string{"/odd.Service/Odd", "/lockstep.v1.Coordinator/Odd", "/dtmgimp.Dtm/Odd"} {
			if err := conn.Invoke(ctx, method, &emptypb.Empty{}, &emptypb.Empty{}); status.Code(err) != codes.Unimplemented {
				t.Errorf("%s: got %v, want Unimplemented", method, err)
			}
		}
		if _, err := cl.NewGid(ctx); err != nil {
			t.Fatal(err)
		}
		_, _, metrics := ask(t, c, "GET", admin+"/metrics", "", "")
		for _, odd := range []string{"xyz", "zzz", "lk_secret", "wp-login", "g-4711", "too-late", "odd.Service", "Odd", "BREW", "127.0.0.1"} {
			for _, line := range strings.Split(metrics, "\n") {
				if strings.HasPrefix(line, "lockstep_") && strings.Contains(line, odd) {
					t.Errorf("a client wrote a label: %s", line)
				}
			}
		}
		for _, want := range []string{`lockstep_requests_total\{protocol="http",route="other",status="404"\} [1-9]`, `lockstep_requests_total\{protocol="grpc",route="[a-z.0-9]+Coordinator/NewGid",status="OK"\} 1`,
			`lockstep_transactions_decided_total\{decision="abort",mode="tcc"\} 1`, `lockstep_slots_held `, `etcd_`} {
			if !regexp.MustCompile("(?m)^" + want).MatchString(metrics) {
				t.Errorf("the metrics have no %s", want)
			}
		}
	})

	t.Run("profiles are labelled", func(t *testing.T) {
		part := dtmwiretest.NewParticipant(t)
		part.Always("a", "try", dtmwiretest.Hang)
		answered := make(chan error, 1)
		go func() {
			_, err := cl.Execute(ctx, client.Tx{Gid: "profiled", Branches: []client.Branch{{ID: "a", Try: part.HTTP("try"), Confirm: part.HTTP("ok"), Cancel: part.HTTP("undo")}}}, client.Decided)
			answered <- err
		}()
		part.Await("profiled", "a", "try", 1)
		if _, err := cl.Get(ctx, "profiled"); err != nil {
			t.Fatal(err)
		}
		// a stop sends what was not sent: while the engine runs, so that its goroutines are in it
		pyro.flush(t, p)
		got := pyro.labels()
		for _, want := range []string{"any/engine", "any/request", "tcc/try"} {
			if !slices.Contains(got, want) {
				t.Errorf("no sample has mode/phase %s; there are %v", want, got)
			}
		}
		part.Release()
		if err := <-answered; err != nil {
			t.Error(err)
		}
	})

	t.Run("alive and not ready while it stops", func(t *testing.T) {
		h := p.adminServer().Handler
		get := func(path string) (int, string) {
			w := httptest.NewRecorder()
			h.ServeHTTP(w, httptest.NewRequest("GET", path, nil))
			return w.Code, w.Body.String()
		}
		if code, body := get("/readyz"); code != 200 {
			t.Errorf("running: readyz says %d %s", code, body)
		}
		if err := p.stop(); err != nil {
			t.Fatal(err)
		}
		if code, body := get("/readyz"); code != 503 || !strings.Contains(body, "not ready") {
			t.Errorf("stopped: readyz says %d %s, want 503", code, body)
		}
		if code, body := get("/healthz"); code != 200 {
			t.Errorf("stopped: healthz says %d %s, want 200 as long as it answers", code, body)
		}
	})
}

// TestNotReadyBeforeSlotsAreHeld asks between New and Run.
func TestNotReadyBeforeSlotsAreHeld(t *testing.T) {
	cfg := parse(t, "--embedded", "--data-dir", t.TempDir(), "--http-addr=127.0.0.1:0", "--grpc-addr=127.0.0.1:0", "--admin-addr=127.0.0.1:0")
	s, err := New(context.Background(), cfg, "test", discard())
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	for path, want := range map[string]int{"/healthz": 200, "/readyz": 503} {
		w := httptest.NewRecorder()
		s.adminServer().Handler.ServeHTTP(w, httptest.NewRequest("GET", path, nil))
		if w.Code != want {
			t.Errorf("%s before Run: got %d, want %d", path, w.Code, want)
		}
	}
	// Its ports are taken now: a second one says all of them at once.
	a := s.Addresses()
	_, err = New(context.Background(), parse(t, "--embedded", "--data-dir", t.TempDir(), "--http-addr", a.HTTP, "--grpc-addr", a.GRPC, "--admin-addr", a.Admin), "test", discard())
	if err == nil {
		t.Fatal("it listens on ports in use")
	}
	for _, key := range []string{"http-addr: ", "grpc-addr: ", "admin-addr: "} {
		if !strings.Contains("\n"+err.Error(), "\n"+key) {
			t.Errorf("no line begins with %s: %v", key, err)
		}
	}
}

// pyroscope is a server that takes profiles.
type pyroscope struct {
	url string
	mu  sync.Mutex
	got map[string]bool // mode/phase of every sample
}

func newPyroscope(t *testing.T) *pyroscope {
	y := &pyroscope{got: map[string]bool{}}
	srv := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		f, _, err := r.FormFile("profile")
		if err != nil {
			t.Errorf("an upload without a profile: %v", err)
			return
		}
		defer f.Close()
		raw, err := io.ReadAll(f)
		if err == nil && bytes.HasPrefix(raw, []byte{0x1f, 0x8b}) {
			var z *gzip.Reader
			if z, err = gzip.NewReader(bytes.NewReader(raw)); err == nil {
				raw, err = io.ReadAll(z)
			}
		}
		if err != nil {
			t.Errorf("an upload cannot be read: %v", err)
			return
		}
		y.mu.Lock()
		defer y.mu.Unlock()
		for _, l := range labelsOf(raw) {
			y.got[l] = true
		}
	}))
	t.Cleanup(srv.Close)
	y.url = srv.URL
	return y
}

func (y *pyroscope) labels() (out []string) {
	y.mu.Lock()
	defer y.mu.Unlock()
	for l := range y.got {
		out = append(out, l)
	}
	slices.Sort(out)
	return out
}

// flush makes the process send its profiles now.
func (y *pyroscope) flush(t *testing.T, p *process) {
	t.Helper()
	for i, stop := range p.stops {
		if i == len(p.stops)-1 { // opened last, in Run
			if err := stop(); err != nil {
				t.Fatal(err)
			}
			p.stops[i] = func() error { return nil }
		}
	}
}

// labelsOf reads mode/phase of each sample of a pprof profile: Profile.sample is field 2, Profile.string_table 6,
// Sample.label 3, Label.key 1, Label.str 2.
func labelsOf(profile []byte) (out []string) {
	var table []string
	var samples [][]byte
	fields(profile, func(n protowire.Number, b []byte, _ uint64) {
		switch n {
		case 2:
			samples = append(samples, b)
		case 6:
			table = append(table, string(b))
		}
	})
	for _, s := range samples {
		label := map[string]string{}
		fields(s, func(n protowire.Number, b []byte, _ uint64) {
			if n != 3 {
				return
			}
			var kv [3]uint64
			fields(b, func(n protowire.Number, _ []byte, v uint64) {
				if n < 3 {
					kv[n] = v
				}
			})
			if kv[1] < uint64(len(table)) && kv[2] < uint64(len(table)) {
				label[table[kv[1]]] = table[kv[2]]
			}
		})
		if label["mode"] != "" || label["phase"] != "" {
			out = append(out, label["mode"]+"/"+label["phase"])
		}
	}
	return out
}

func fields(b []byte, each func(n protowire.Number, bytes []byte, v uint64)) {
	for len(b) > 0 {
		n, typ, size := protowire.ConsumeTag(b)
		if size < 0 {
			return
		}
		b = b[size:]
		var raw []byte
		var v uint64
		switch typ {
		case protowire.BytesType:
			raw, size = protowire.ConsumeBytes(b)
		case protowire.VarintType:
			v, size = protowire.ConsumeVarint(b)
		default:
			size = protowire.ConsumeFieldValue(n, typ, b)
		}
		if size < 0 {
			return
		}
		each(n, raw, v)
		b = b[size:]
	}
}
