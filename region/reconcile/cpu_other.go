//go:build !unix

package reconcile

import "time"

// cpuTime is what this process has used of the cores; 0 where nobody can say.
func cpuTime() time.Duration { return 0 }
