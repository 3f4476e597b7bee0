// Package mutant breaks the coordinator on purpose, so that the chaos suite can show that it would notice. Built without
// the tag chaos, nothing is ever broken, and nothing of it is in the program: On is a constant there.
package mutant

import "time"

// The mutants, as LOCKSTEP_MUTANT names them.
const (
	// AckBeforeStore answers clients before what they are told is stored.
	AckBeforeStore = "ack-before-store"
)

// StoreDelay is how late AckBeforeStore stores: as a busy disk would, so that a crash hits what was answered.
const StoreDelay = 300 * time.Millisecond
