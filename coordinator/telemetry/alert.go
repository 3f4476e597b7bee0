package telemetry

import (
	"bytes"
	"context"
	"encoding/json"
	"log/slog"
	"net/http"
	"time"

	"github.com/lockstep-tx/lockstep/coordinator/engine"
	"github.com/lockstep-tx/lockstep/coordinator/txn"
)

// Alerts posts to a webhook when a branch call keeps failing, in DTM's form:
// {"gid","status","branch","error","retry_count"}. Alerts that find the queue full are counted, never waited for: the
// path of the money does not wait for a webhook.
type Alerts struct {
	url     string
	fails   int
	log     *slog.Logger
	metrics *Metrics
	queue   chan alert
	client  *http.Client
}

type alert struct {
	Gid        string `json:"gid"`
	Status     string `json:"status"`
	Branch     string `json:"branch"`
	Error      string `json:"error"`
	RetryCount int    `json:"retry_count"`
}

// alertQueue bounds the alerts that wait.
const alertQueue = 1000

// NewAlerts makes alerts for calls that failed at least fails times in a row. Run sends them.
func NewAlerts(url string, fails int, log *slog.Logger) *Alerts {
	return &Alerts{url: url, fails: fails, log: log, queue: make(chan alert, alertQueue), client: &http.Client{Timeout: 5 * time.Second}}
}

// Count makes m count what is sent.
func (a *Alerts) Count(m *Metrics) { a.metrics = m }

// Called looks at one call; it never blocks.
func (a *Alerts) Called(r engine.CallResult, fails int) {
	if fails < a.fails || r.Outcome == txn.Done {
		return
	}
	status := "submitted"
	switch r.Call.Op {
	case txn.OpCancel, txn.OpCompensate, txn.OpRollback:
		status = "aborting"
	case txn.OpQuery, txn.OpCallback, txn.OpTry:
		status = "prepared"
	case txn.OpAction, txn.OpConfirm, txn.OpCommit:
	}
	select {
	case a.queue <- alert{Gid: string(r.Call.Gid), Status: status, Branch: r.Call.URL, Error: r.Text, RetryCount: fails}:
	default:
		a.count("dropped")
	}
}

func (a *Alerts) count(result string) {
	if a.metrics != nil {
		a.metrics.alerts.WithLabelValues(result).Inc()
	}
}

// Run sends alerts until ctx ends.
func (a *Alerts) Run(ctx context.Context) {
	for {
		select {
		case al := <-a.queue:
			if err := a.send(ctx, al); err != nil {
				a.count("error")
				a.log.Warn("an alert could not be sent", "gid", al.Gid, "err", err)
			} else {
				a.count("sent")
			}
		case <-ctx.Done():
			return
		}
	}
}

func (a *Alerts) send(ctx context.Context, al alert) error {
	body, err := json.Marshal(al)
	if err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, a.url, bytes.NewReader(body))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := a.client.Do(req)
	if err != nil {
		return err
	}
	resp.Body.Close()
	if resp.StatusCode >= 300 {
		return &statusError{resp.Status}
	}
	return nil
}

type statusError struct{ status string }

func (e *statusError) Error() string { return "the webhook answered " + e.status }
