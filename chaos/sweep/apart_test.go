package sweep

import (
	"slices"
	"testing"
	"time"

	"github.com/lockstep-tx/lockstep/chaos/seed"
)

// TestWhatIsPublishedAnewIsAsOldAsItWas: a repair gives old events a new time. A second truncation of their partition does not
// ask the product, which looks back for so long only, to have them back.
func TestWhatIsPublishedAnewIsAsOldAsItWas(t *testing.T) {
	w := &world{truncated: map[string]bool{}}
	now := time.Now()
	if got := w.young([]seed.Message{{Key: "old", At: now.Add(-ageMax)}, {Key: "young", At: now}}, now); !slices.Equal(got, []string{"young"}) {
		t.Errorf("the first has %q", got)
	}
	later := now.Add(ageMax)
	if got := w.young([]seed.Message{{Key: "old", At: later}, {Key: "young", At: later}, {Key: "new", At: later}}, later); !slices.Equal(got, []string{"new"}) {
		t.Errorf("the second has %q", got)
	}
}
