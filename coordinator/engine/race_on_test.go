//go:build race

package engine_test

// seedsUsual: the simulation is one goroutine, in which there is nothing to race, and the race detector makes it ten times
// slower: all of the seeds run without it. One of lossShare of them is of a lost region.
const (
	seedsUsual = 60
	lossShare  = 1
)
