package replica

import (
	"cmp"
	"slices"
	"strconv"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics are the counters, and gauges that are worked out when they are asked for.
type metrics struct {
	s                                         *Service
	published                                 prometheus.Counter
	applied, duplicates, dropped, filled, odd *prometheus.CounterVec
	diverged                                  *prometheus.CounterVec
	delay                                     *prometheus.HistogramVec
	gauges                                    map[string]*prometheus.Desc
}

func newMetrics(s *Service) *metrics {
	counter := func(name, help string, labels ...string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: "lockstep_replication_" + name, Help: help}, labels)
	}
	m := &metrics{s: s, gauges: map[string]*prometheus.Desc{}}
	m.published = prometheus.NewCounter(prometheus.CounterOpts{Name: "lockstep_replication_published_total", Help: "Events that the region's Kafka has acknowledged."})
	m.applied = counter("applied_total", "Events of another region written into the journal.", "origin")
	m.duplicates = counter("duplicates_total", "Events that came again.", "origin")
	m.dropped = counter("dropped_total", "Events read while their slot was stopped; they are asked for again when it goes on.", "origin")
	m.filled = counter("filled_total", "Events that were missing in Kafka and were asked of the origin's journal.", "origin")
	m.diverged = counter("diverged_total", "Events after a forced seal, which are kept as divergences and not applied; a repeat counts again.", "origin")
	m.odd = counter("oddities_total", "Reading did not simply go on: expired, rewound, stalled, unreadable, gap_unfilled.", "origin", "kind")
	m.delay = prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name: "lockstep_replication_delay_seconds", Help: "From a decision in its region to its row here, by both clocks.",
		Buckets: []float64{.005, .01, .02, .04, .06, .08, .1, .15, .2, .25, .35, .5, 1, 2, 5, 15, 60, 300, 3600},
	}, []string{"origin"})
	for name, help := range map[string]string{
		"lag_events": "Events known and not applied.", "lag_seconds": "Since when the oldest of them is known, or nothing was heard.",
		"heard_seconds": "Since the origin was last heard of.", "stopped_slots": "Slots that do not go on.", "waiting_slots": "Slots that wait for the seal of another region.",
	} {
		m.gauges[name] = prometheus.NewDesc("lockstep_replication_"+name, help, []string{"origin"}, nil)
	}
	for name, help := range map[string]string{
		"slot_lag_events":  "Events of one slot known and not applied; only of slots that are stopped or behind, the worst of each origin.",
		"slot_lag_seconds": "Since when the slot is behind.",
	} {
		m.gauges[name] = prometheus.NewDesc("lockstep_replication_"+name, help, []string{"origin", "slot"}, nil)
	}
	m.gauges["unacknowledged_events"] = prometheus.NewDesc("lockstep_replication_unacknowledged_events", "Events published that the peer's journal is not known to have.", []string{"peer"}, nil)
	m.gauges["unpublished_events"] = prometheus.NewDesc("lockstep_replication_unpublished_events", "Events decided or finished here that Kafka does not have.", nil, nil)
	m.gauges["unpublishable_slots"] = prometheus.NewDesc("lockstep_replication_unpublishable_slots", "Slots of this region whose next event in the journal does not continue its chain: the peers get nothing more of them.", nil, nil)
	for _, p := range s.cfg.Peers {
		for _, c := range []*prometheus.CounterVec{m.applied, m.duplicates, m.dropped, m.filled, m.diverged} {
			c.WithLabelValues(p.Name)
		}
	}
	return m
}

func (m *metrics) collectors() []prometheus.Collector {
	return []prometheus.Collector{m.published, m.applied, m.duplicates, m.dropped, m.filled, m.diverged, m.odd, m.delay}
}

// Describe is prometheus.Collector's.
func (m *metrics) Describe(to chan<- *prometheus.Desc) {
	for _, c := range m.collectors() {
		c.Describe(to)
	}
	for _, d := range m.gauges {
		to <- d
	}
}

// Collect is prometheus.Collector's.
func (m *metrics) Collect(to chan<- prometheus.Metric) {
	for _, c := range m.collectors() {
		c.Collect(to)
	}
	gauge := func(name string, v float64, labels ...string) {
		to <- prometheus.MustNewConstMetric(m.gauges[name], prometheus.GaugeValue, v, labels...)
	}
	st := m.s.Status()
	gauge("unpublished_events", float64(st.Unpublished))
	gauge("unpublishable_slots", float64(len(st.Unpublishable)))
	for peer, n := range st.Unacknowledged {
		gauge("unacknowledged_events", float64(n), peer)
	}
	for _, o := range st.Origins {
		gauge("lag_events", float64(o.LagEvents), o.Region)
		gauge("lag_seconds", float64(o.LagMillis)/1000, o.Region)
		gauge("heard_seconds", float64(o.HeardMillis)/1000, o.Region)
		gauge("stopped_slots", float64(len(o.Stopped)), o.Region)
		gauge("waiting_slots", float64(o.Waiting), o.Region)
		for _, sl := range worst(&o) {
			gauge("slot_lag_events", float64(sl.Head-sl.Applied), o.Region, strconv.Itoa(sl.Slot))
			gauge("slot_lag_seconds", float64(sl.LagMillis)/1000, o.Region, strconv.Itoa(sl.Slot))
		}
	}
}

const (
	// worstSlots bounds the series of an origin: behind a cut link every slot is behind.
	worstSlots = 50
	// worstFrom is for how long a slot is behind before it has a series: under load many are, for a moment.
	worstFrom = 1000
)

// worst are the slots of an origin that do not go on, and then those that are behind for the longest.
func worst(o *OriginStatus) []SlotStatus {
	stopped := map[int]int{}
	for _, s := range o.Stopped {
		stopped[s.Slot] = 1
	}
	var out []SlotStatus
	for _, s := range o.Slots {
		if stopped[s.Slot] == 1 || s.LagMillis >= worstFrom {
			out = append(out, s)
		}
	}
	slices.SortFunc(out, func(a, b SlotStatus) int {
		return cmp.Or(cmp.Compare(stopped[b.Slot], stopped[a.Slot]), cmp.Compare(b.LagMillis, a.LagMillis), cmp.Compare(a.Slot, b.Slot))
	})
	return out[:min(len(out), worstSlots)]
}
