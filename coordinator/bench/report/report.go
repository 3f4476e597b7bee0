// Package report turns the samples of one run into one table, and says target by target whether it was met.
package report

import (
	"cmp"
	"fmt"
	"io"
	"slices"
	"text/tabwriter"

	"github.com/lockstep-tx/lockstep/coordinator/bench/rig"
	"github.com/lockstep-tx/lockstep/coordinator/bench/stats"
)

// Key is one cell of the comparison.
type Key struct {
	Contender string `json:"contender"`
	API       string `json:"api"`
	Clients   int    `json:"clients"`
}

// Run is everything one run measured.
type Run struct {
	Samples map[Key][]rig.Sample // in order of the rounds
	Failed  []error              // measurements that gave nothing or contradict the participants
}

// New returns a run without samples.
func New() *Run { return &Run{Samples: map[Key][]rig.Sample{}} }

// Median returns the median over the rounds, each column by itself; false when there is no sample.
func (r *Run) Median(k Key) (rig.Sample, bool) {
	list := r.Samples[k]
	if len(list) == 0 {
		return rig.Sample{}, false
	}
	of := func(column func(*rig.Sample) float64) float64 {
		values := make([]float64, len(list))
		for i := range list {
			values[i] = column(&list[i])
		}
		return stats.Median(values)
	}
	var m rig.Sample
	m.PerSecond = of(func(s *rig.Sample) float64 { return s.PerSecond })
	m.P50MS = of(func(s *rig.Sample) float64 { return s.P50MS })
	m.P99MS = of(func(s *rig.Sample) float64 { return s.P99MS })
	m.CPUMicros = of(func(s *rig.Sample) float64 { return s.CPUMicros })
	m.ServerCPUMicros = of(func(s *rig.Sample) float64 { return s.ServerCPUMicros })
	m.WrittenKB = of(func(s *rig.Sample) float64 { return s.WrittenKB })
	m.ServerKB = of(func(s *rig.Sample) float64 { return s.ServerKB })
	m.DiskKB = of(func(s *rig.Sample) float64 { return s.DiskKB })
	for _, s := range list {
		m.TotalFailed += s.TotalFailed
	}
	return m, true
}

// Table writes the medians, grouped by API and number of clients, with the ratio of each contender's throughput to
// Lockstep's (how many times faster Lockstep is) where Lockstep took part.
func (r *Run) Table(w io.Writer) error {
	keys := make([]Key, 0, len(r.Samples))
	for k := range r.Samples {
		keys = append(keys, k)
	}
	order := rig.Names()
	slices.SortFunc(keys, func(a, b Key) int {
		return cmp.Or(cmp.Compare(a.API, b.API), cmp.Compare(a.Clients, b.Clients),
			cmp.Compare(slices.Index(order, a.Contender), slices.Index(order, b.Contender)))
	})
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(t, "api\tclients\tcontender\ttx/s\tp50 ms\tp99 ms\tcpu us/tx\tserver cpu us/tx\tKB/tx\tserver KB/tx\tdisk KB/tx\tlockstep is\tfailed tx\t")
	for i, k := range keys {
		if i > 0 && (keys[i-1].API != k.API || keys[i-1].Clients != k.Clients) {
			fmt.Fprintln(t, "\t\t\t\t\t\t\t\t\t\t\t\t\t")
		}
		m, _ := r.Median(k)
		ratio := "-"
		if own, ok := r.Median(Key{rig.Lockstep, k.API, k.Clients}); ok && m.PerSecond > 0 {
			ratio = fmt.Sprintf("%.2fx", own.PerSecond/m.PerSecond)
		}
		fmt.Fprintf(t, "%s\t%d\t%s\t%.0f\t%.2f\t%.2f\t%.0f\t%.0f\t%.1f\t%.1f\t%.1f\t%s\t%d\t\n", k.API, k.Clients, k.Contender,
			m.PerSecond, m.P50MS, m.P99MS, m.CPUMicros, m.ServerCPUMicros, m.WrittenKB, m.ServerKB, m.DiskKB, ratio, m.TotalFailed)
	}
	return t.Flush()
}
