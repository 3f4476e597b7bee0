package auth

import "testing"

// Whoever may not get in does not fill the disk: what is not logged is counted in the next line.
func TestAFloodOfRefusalsIsCounted(t *testing.T) {
	var r refusals
	for second := int64(7); second < 9; second++ {
		logged := 0
		for i := range 100 {
			skipped, ok := r.take(second)
			if ok {
				logged++
			}
			want := 0
			if second == 8 && i == 0 {
				want = 100 - refusalsPerSecond
			}
			if skipped != want {
				t.Errorf("second %d, refusal %d: %d were skipped before, want %d", second, i, skipped, want)
			}
		}
		if logged != refusalsPerSecond {
			t.Errorf("%d lines in second %d, want %d", logged, second, refusalsPerSecond)
		}
	}
}
