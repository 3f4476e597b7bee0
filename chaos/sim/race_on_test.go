//go:build race

package sim_test

// raced: the race detector slows everything down; what is measured under it says nothing.
const raced = true
