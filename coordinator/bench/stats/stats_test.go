package stats_test

import (
	"slices"
	"testing"
	"time"

	"github.com/lockstep-tx/lockstep/coordinator/bench/stats"
)

func TestMedian(t *testing.T) {
	for _, c := range []struct {
		values []float64
		want   float64
	}{{nil, 0}, {[]float64{7}, 7}, {[]float64{9, 1}, 5}, {[]float64{9, 1, 2}, 2}, {[]float64{4, 1, 3, 2}, 2.5}} {
		before := slices.Clone(c.values)
		if got := stats.Median(c.values); got != c.want || !slices.Equal(before, c.values) {
			t.Errorf("of %v: %v, want %v; left as %v", before, got, c.want, c.values)
		}
	}
}

func TestPercentile(t *testing.T) {
	hundred := make([]time.Duration, 100)
	for i := range hundred {
		hundred[i] = time.Duration(100 - i) // 100 down to 1
	}
	for percent, want := range map[int]time.Duration{0: 1, 50: 51, 99: 100, 100: 100} {
		if got := stats.Percentile(hundred, percent); got != want || hundred[0] != 100 {
			t.Errorf("%d of 100: %d, want %d", percent, got, want)
		}
	}
	if got := stats.Percentile([]int(nil), 99); got != 0 {
		t.Errorf("of none: %d", got)
	}
	if got := stats.Percentile([]int{3, 1, 2}, 50); got != 2 {
		t.Errorf("the middle of three: %d", got)
	}
}
