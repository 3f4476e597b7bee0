package recall

import (
	"math"
	"testing"
)

func TestTheBoundsAreThoseOfTheReference(t *testing.T) {
	for n, want := range map[int][4]float64{ // in percent: 0, 1 and 2 misses; none, joint over 24 classes
		5: {54.9, 34.3, 18.9, 29.1}, 60: {95.1, 92.3, 89.9, 90.2}, 121: {97.6, 96.1, 94.9, 95.0}, 300: {99.0, 98.4, 97.9, 98.0}, 1440: {99.8, 99.7, 99.6, -1},
		120: {97.5, -1, -1, -1}, 59: {95.0, -1, -1, -1},
	} {
		for m, percent := range want {
			got, err := 0.0, error(nil)
			if m < 3 {
				got, err = Lower(n, m, 0.05)
			} else {
				got, err = Joint(n, 0, 0.05, 24)
			}
			if percent > 0 && (err != nil || math.Abs(got*100-percent) > 0.051) {
				t.Errorf("%d seeds, column %d: %.3f %%, not %.1f, %v", n, m, got*100, percent, err)
			}
		}
	}
}

func TestWhatIsNoSampleHasNoBound(t *testing.T) {
	for _, tc := range []struct {
		n, m  int
		alpha float64
	}{{0, 0, 0.05}, {5, -1, 0.05}, {5, 6, 0.05}, {5, 0, 0}, {5, 0, 1}, {5, 0, math.NaN()}} {
		if got, err := Lower(tc.n, tc.m, tc.alpha); err == nil {
			t.Errorf("%+v: %v", tc, got)
		}
	}
	if got, err := Lower(7, 7, 0.05); err != nil || got != 0 {
		t.Errorf("%v, %v", got, err)
	}
}
