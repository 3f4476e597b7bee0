package reconcile

import (
	"slices"

	"github.com/lockstep-tx/lockstep/coordinator/mutant"
)

// kept are the findings that are kept: all of them, but in a build that is broken on purpose (package mutant).
func kept(found []Finding) []Finding {
	if !mutant.On(mutant.QuarantineDropped) {
		return found
	}
	return slices.DeleteFunc(found, func(f Finding) bool { return f.Repair == "" })
}
