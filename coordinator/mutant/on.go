//go:build chaos

package mutant

import "os"

var name = os.Getenv("LOCKSTEP_MUTANT")

// On says that a mutant is switched on.
func On(mutant string) bool { return name == mutant }
