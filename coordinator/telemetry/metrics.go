// Package telemetry is how a coordinator is seen: Prometheus metrics, alerts to a webhook, profiles to Pyroscope.
//
// The law it keeps: no label holds a gid, a branch, an address or anything else of a client's making; units stand in
// the names. docs/reference/metrics.md lists every metric, and a test compares it with Catalogue.
package telemetry

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"github.com/lockstep-tx/lockstep/coordinator/engine"
	"github.com/lockstep-tx/lockstep/coordinator/txn"
)

// Metrics are the coordinator's. It is an engine.Observer. Safe for concurrent use.
type Metrics struct {
	reg *prometheus.Registry

	decided     *prometheus.CounterVec
	finished    *prometheus.CounterVec
	finishTime  *prometheus.HistogramVec
	calls       *prometheus.CounterVec
	callTime    *prometheus.HistogramVec
	batches     *prometheus.CounterVec
	batchTime   prometheus.Observer
	batchWrites prometheus.Observer
	journalRows *prometheus.CounterVec
	journalTime prometheus.Observer
	live        prometheus.Gauge
	unsaved     prometheus.Gauge
	stuck       prometheus.Gauge
	slots       prometheus.Gauge
	backlog     prometheus.Gauge
	storeUsed   prometheus.Gauge
	storeQuota  prometheus.Gauge
	requests    *prometheus.CounterVec
	requestTime *prometheus.HistogramVec
	alerts      *prometheus.CounterVec

	onCall    func(r engine.CallResult, fails int)
	catalogue []Entry
}

// Entry describes one metric of our own.
type Entry struct {
	Name, Kind, Help string
	Labels           []string
}

// Catalogue lists every metric of our own, in the order of their making: docs/reference/metrics.md is compared with it.
func (m *Metrics) Catalogue() []Entry { return m.catalogue }

// latency buckets, in seconds: from a fast local write to a transaction that waited for a person.
var latency = []float64{.0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30}

// NewMetrics makes the metrics on a registry of their own. onCall, if not nil, is told of every branch call.
func NewMetrics(onCall func(r engine.CallResult, fails int)) *Metrics {
	m := &Metrics{reg: prometheus.NewRegistry(), onCall: onCall}
	counter := func(name, help string, labels ...string) *prometheus.CounterVec {
		c := prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, labels)
		m.reg.MustRegister(c)
		m.catalogue = append(m.catalogue, Entry{name, "counter", help, labels})
		return c
	}
	histogram := func(name, help string, buckets []float64, labels ...string) *prometheus.HistogramVec {
		h := prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: name, Help: help, Buckets: buckets}, labels)
		m.reg.MustRegister(h)
		m.catalogue = append(m.catalogue, Entry{name, "histogram", help, labels})
		return h
	}
	gauge := func(name, help string) prometheus.Gauge {
		g := prometheus.NewGauge(prometheus.GaugeOpts{Name: name, Help: help})
		m.reg.MustRegister(g)
		m.catalogue = append(m.catalogue, Entry{name, "gauge", help, nil})
		return g
	}
	m.decided = counter("lockstep_transactions_decided_total", "Decisions that became durable.", "mode", "decision")
	m.finished = counter("lockstep_transactions_finished_total", "Transactions that ended.", "mode", "decision")
	m.finishTime = histogram("lockstep_transaction_duration_seconds", "From begin to end.", latency, "mode", "decision")
	m.calls = counter("lockstep_branch_calls_total", "Branch calls by what was learned.", "mode", "op", "outcome")
	m.callTime = histogram("lockstep_branch_call_duration_seconds", "Branch calls that were sent.", latency, "op")
	m.batches = counter("lockstep_store_batches_total", "Batches by verdict: durable, not_written, doubtful.", "verdict")
	m.batchTime = histogram("lockstep_store_batch_duration_seconds", "One batch's write.", latency).WithLabelValues()
	m.batchWrites = histogram("lockstep_store_batch_writes", "Records written or deleted by one batch.", []float64{1, 2, 4, 8, 16, 32, 64, 120}).WithLabelValues()
	m.journalRows = counter("lockstep_journal_rows_total", "Rows that reached the journal, or did not.", "result")
	m.journalTime = histogram("lockstep_journal_append_duration_seconds", "One append to the journal.", latency).WithLabelValues()
	m.live = gauge("lockstep_transactions_live", "Transactions in memory.")
	m.unsaved = gauge("lockstep_transactions_unsaved", "Transactions that wait to be saved.")
	m.stuck = gauge("lockstep_transactions_stuck", "Transactions with a call that keeps failing.")
	m.slots = gauge("lockstep_slots_held", "Slots that this coordinator holds.")
	m.backlog = gauge("lockstep_journal_backlog_rows", "Rows on their way to the journal.")
	m.storeUsed = gauge("lockstep_store_used_bytes", "Bytes in use in the store.")
	m.storeQuota = gauge("lockstep_store_quota_bytes", "Bytes at which the store refuses writes; 0 where there is no limit.")
	m.requests = counter("lockstep_requests_total", "Requests by protocol, route and status.", "protocol", "route", "status")
	m.requestTime = histogram("lockstep_request_duration_seconds", "Requests by protocol and route.", latency, "protocol", "route")
	m.alerts = counter("lockstep_alerts_total", "Alerts sent to the webhook, or not.", "result")
	m.reg.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return m
}

// Registry is where the metrics live; etcd's own are added there beside an embedded member.
func (m *Metrics) Registry() *prometheus.Registry { return m.reg }

func decision(p txn.Phase) string {
	if p.Commit() {
		return "commit"
	}
	return "abort"
}

// Changed is engine.Observer's.
func (m *Metrics) Changed(c engine.Change) {
	mode, d := c.Mode.String(), decision(c.Phase)
	if c.Decided {
		m.decided.WithLabelValues(mode, d).Inc()
	}
	if c.Phase.Finished() {
		m.finished.WithLabelValues(mode, d).Inc()
		m.finishTime.WithLabelValues(mode, d).Observe(float64(c.At-c.BegunAt) / 1000)
	}
}

// Called is engine.Observer's.
func (m *Metrics) Called(r engine.CallResult, fails int) {
	op := r.Call.Op.String()
	m.calls.WithLabelValues(r.Call.Mode.String(), op, r.Outcome.String()).Inc()
	if r.Outcome != txn.Deferred {
		m.callTime.WithLabelValues(op).Observe(r.Took.Seconds())
	}
	if m.onCall != nil {
		m.onCall(r, fails)
	}
}

// Wrote is engine.Observer's.
func (m *Metrics) Wrote(puts, deletes int, took time.Duration, v engine.Verdict) {
	word := "durable"
	switch v {
	case engine.NotWritten:
		word = "not_written"
	case engine.Doubtful:
		word = "doubtful"
	case engine.Durable:
	}
	m.batches.WithLabelValues(word).Inc()
	m.batchTime.Observe(took.Seconds())
	m.batchWrites.Observe(float64(puts + deletes))
}

// Journaled is engine.Observer's.
func (m *Metrics) Journaled(rows int, took time.Duration, err error) {
	result := "ok"
	if err != nil {
		result = "error"
	}
	m.journalRows.WithLabelValues(result).Add(float64(rows))
	m.journalTime.Observe(took.Seconds())
}

// Sampled is engine.Observer's.
func (m *Metrics) Sampled(g engine.Gauges) {
	m.live.Set(float64(g.Live))
	m.unsaved.Set(float64(g.Unsaved))
	m.stuck.Set(float64(g.Stuck))
	m.slots.Set(float64(g.Slots))
	m.backlog.Set(float64(g.JournalBacklog))
	m.storeUsed.Set(float64(g.Usage.UsedBytes))
	m.storeQuota.Set(float64(g.Usage.QuotaBytes))
}

// Request counts one request. route and status come from small fixed sets.
func (m *Metrics) Request(protocol, route, status string, took time.Duration) {
	m.requests.WithLabelValues(protocol, route, status).Inc()
	m.requestTime.WithLabelValues(protocol, route).Observe(took.Seconds())
}
