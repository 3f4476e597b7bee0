package replica

import (
	"fmt"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
)

// series gives the values of a metric of a service by origin and slot.
func series(t *testing.T, s *Service, name string) map[string]float64 {
	t.Helper()
	reg := prometheus.NewRegistry()
	reg.MustRegister(newMetrics(s))
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]float64{}
	for _, f := range families {
		if f.GetName() != name {
			continue
		}
		for _, m := range f.GetMetric() {
			key := ""
			for _, l := range m.GetLabel() {
				key += l.GetValue() + " "
			}
			out[key] = m.GetGauge().GetValue()
		}
	}
	return out
}

// Behind a cut link every slot is behind: those that are stopped come first, then those that wait for the longest.
func TestTheWorstSlotsHaveSeriesAndNoMore(t *testing.T) {
	o := OriginStatus{Region: "east", Stopped: []SlotStop{{Slot: 900}}}
	for n := range 1000 {
		one := SlotStatus{Slot: n, Applied: 5, Head: 5 + uint64(n%2), LagMillis: int64(n%2) * int64(n) * 10}
		if n == 900 {
			one.Head = 7
		}
		o.Slots = append(o.Slots, one)
	}
	got := worst(&o)
	if len(got) != worstSlots {
		t.Fatalf("%d slots", len(got))
	}
	if got[0].Slot != 900 || got[1].Slot != 999 || got[2].Slot != 997 {
		t.Errorf("first %+v", got[:3])
	}
	o.Stopped, o.Slots = nil, o.Slots[:102]
	if got := worst(&o); len(got) != 1 || got[0].Slot != 101 { // 99 is behind for less than a second
		t.Error(fmt.Sprint(got))
	}
}
