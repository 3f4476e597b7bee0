//go:build servers

package dtmimport_test

import (
	"testing"

	"github.com/lockstep-tx/lockstep/coordinator/bench/build"
)

// TestResultsAreOfTheseSources: the program that all tests run is built before go test takes note of anything.
func TestResultsAreOfTheseSources(*testing.T) { build.NoteSources() }
