package report

import (
	"strings"
	"testing"

	"github.com/lockstep-tx/lockstep/coordinator/bench/load"
	"github.com/lockstep-tx/lockstep/coordinator/bench/rig"
)

func sample(perSecond, cpu float64) rig.Sample {
	return rig.Sample{Result: load.Result{PerSecond: perSecond}, CPUMicros: cpu}
}

func TestTargets(t *testing.T) {
	r := New()
	add := func(name, api string, list ...rig.Sample) { r.Samples[Key{name, api, targetClients}] = list }
	add(rig.Lockstep, "http", sample(100, 9), sample(700, 200), sample(690, 300)) // medians 690 and 200
	add(rig.DTMBoltdb, "http", sample(115, 0))
	add(rig.DTMRedis, "http", sample(690, 0))
	add(rig.Ceiling, "http", sample(1000, 100))
	add(rig.Lockstep, load.Native, sample(1035, 0))
	want := map[string]Verdict{
		"http: throughput at least 6 times dtm-boltdb":                           Pass,
		"http: throughput more than 1 times dtm-redis":                           FallsShort,
		"http: throughput at least 0.7 times ceiling":                            FallsShort,
		"http: CPU per transaction at most 2 times the ceiling's":                Pass,
		"http: throughput at least 4 times dtm-postgres":                         NotMeasured,
		"grpc: throughput at least 6 times dtm-boltdb":                           NotMeasured,
		"native one-call API: at least 1.5 times our throughput over DTM's wire": Pass,
	}
	checks := r.Targets()
	if len(checks) != 16 {
		t.Errorf("%d targets, want 16", len(checks))
	}
	for _, c := range checks {
		if v, ok := want[c.Text]; ok && v != c.Verdict {
			t.Errorf("%s: %s (%s), want %s", c.Text, c.Verdict, c.Figure, v)
		}
		delete(want, c.Text)
	}
	for text := range want {
		t.Errorf("no target %q", text)
	}
	var out strings.Builder
	if err := r.Table(&out); err != nil || !strings.Contains(out.String(), "6.00x") {
		t.Errorf("table (%v):\n%s", err, out.String())
	}
}
