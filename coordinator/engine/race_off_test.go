//go:build !race

package engine_test

const (
	seedsUsual = 300
	lossShare  = 3
)
