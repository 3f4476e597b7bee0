package telemetry

import (
	"context"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	dto "github.com/prometheus/client_model/go"

	"github.com/lockstep-tx/lockstep/coordinator/engine"
	"github.com/lockstep-tx/lockstep/coordinator/txn"
)

func failed(op txn.Op) engine.CallResult {
	return engine.CallResult{Call: &engine.Call{Gid: "g", URL: "http://shop/confirm", Op: op}, Outcome: txn.Unknown, Text: "out of order"}
}

// TestAlertsFromTheThirdFailureOn: in DTM's form, in order, and nothing for what went well.
func TestAlertsFromTheThirdFailureOn(t *testing.T) {
	got := make(chan string, 10)
	srv := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		raw, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		got <- r.Method + " " + r.Header.Get("Content-Type") + " " + string(raw)
	}))
	defer srv.Close()
	a := NewAlerts(srv.URL, 3, slog.New(slog.DiscardHandler))
	for fails := 1; fails <= 4; fails++ {
		a.Called(failed(txn.OpConfirm), fails)
	}
	well := failed(txn.OpConfirm)
	well.Outcome = txn.Done
	a.Called(well, 9)
	a.Called(failed(txn.OpCancel), 3)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); a.Run(ctx) }()
	for _, want := range []string{`"status":"submitted","branch":"http://shop/confirm","error":"out of order","retry_count":3}`, `"status":"submitted","branch":"http://shop/confirm","error":"out of order","retry_count":4}`, `"status":"aborting","branch":"http://shop/confirm","error":"out of order","retry_count":3}`} {
		select {
		case s := <-got:
			if s != `POST application/json {"gid":"g",`+want {
				t.Errorf("got %s, want %s", s, want)
			}
		case <-time.After(20 * time.Second):
			t.Fatalf("no alert came; want %s", want)
		}
	}
	cancel()
	<-done
	if len(got) > 0 {
		t.Errorf("too much: %s", <-got)
	}
}

// TestAFullQueueNeverBlocks: nobody sends, and the calls go on; what is dropped is counted.
func TestAFullQueueNeverBlocks(t *testing.T) {
	a := NewAlerts("http://127.0.0.1:1", 3, slog.New(slog.DiscardHandler))
	m := NewMetrics(a.Called)
	a.Count(m)
	for range alertQueue + 5 {
		m.Called(failed(txn.OpConfirm), 3)
	}
	var out dto.Metric
	if err := m.alerts.WithLabelValues("dropped").Write(&out); err != nil || out.GetCounter().GetValue() != 5 {
		t.Errorf("dropped: got %v %v, want 5", out.GetCounter().GetValue(), err)
	}
}
