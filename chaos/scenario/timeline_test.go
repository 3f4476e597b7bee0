package scenario

import (
	"slices"
	"testing"

	"github.com/lockstep-tx/lockstep/chaos/history"
)

func TestATimelineKeepsSecondsInWhichNothingEnded(t *testing.T) {
	got := Timeline([]history.Op{
		{End: 3_999_999_999, Outcome: history.Unknown}, {End: 1_000_000_000, Outcome: history.OK},
		{End: 1_500_000_000, Outcome: history.OK}, {End: 1_700_000_000, Outcome: history.Fail},
	})
	if want := []Second{{}, {OK: 2, Fail: 1}, {}, {Unknown: 1}}; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}
