//go:build unix

package reconcile

import (
	"syscall"
	"time"
)

// cpuTime is what this process has used of the cores; 0 where nobody can say.
func cpuTime() time.Duration {
	var u syscall.Rusage
	if syscall.Getrusage(syscall.RUSAGE_SELF, &u) != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
