package arbiter

import (
	"slices"

	"github.com/lockstep-tx/lockstep/coordinator/mutant"
)

// reused gives slots that change hands the epoch that they had, where that is switched on: two owners use one.
func reused(changes []Change) []Change {
	if !mutant.On(mutant.EpochReuse) {
		return changes
	}
	changes = slices.Clone(changes)
	for i := range changes {
		if c := &changes[i]; c.From.Region != "" && c.To.Region != c.From.Region {
			c.To.Epoch = c.From.Epoch
		}
	}
	return changes
}
