// Package mutant breaks the coordinator and the regions' replication on purpose, so that the chaos suite can show that it
// would notice. Built without the tag chaos, nothing is ever broken, and nothing of it is in the program: On is a constant
// there.
package mutant

import "time"

// The mutants, as LOCKSTEP_MUTANT names them.
const (
	// AckBeforeStore answers clients before what they are told is stored.
	AckBeforeStore = "ack-before-store"
	// EventSkipped leaves some transactions' events out of another region's journal, and goes on behind them.
	EventSkipped = "event-skipped"
	// ApplyOutOfOrder writes another region's events as they come: of two that are new the second goes first, and what
	// comes after it is taken for a repeat.
	ApplyOutOfOrder = "apply-out-of-order"
	// WatermarkTooEarly notes that the copies of accounts have an effect before it has been sent to them.
	WatermarkTooEarly = "watermark-too-early"
	// CancelAfterDecision cancels a branch of some transactions that are decided commit.
	CancelAfterDecision = "timeout-cancels-after-decision"
	// StaleRead shows a transaction as undecided for a while after its decision, as a replica that lags would.
	StaleRead = "stale-replica-read"
	// SkipsLastPage leaves the last page of what a region has decided out of a look for drift.
	SkipsLastPage = "skips-last-page"
	// WatermarkTooLate judges what is on its way to another region as if it had to be there.
	WatermarkTooLate = "watermark-too-late"
	// GuessesAmbiguous ends holds of transactions that nobody knows, as if that were a repair.
	GuessesAmbiguous = "repair-guesses-ambiguous"
)

// StoreDelay is how late AckBeforeStore stores: as a busy disk would, so that a crash hits what was answered. ApplyDelay is
// how late WatermarkTooEarly applies: longer than it takes to be noted, as behind a slow participant. ReadDelay is by how much
// StaleRead lags.
const (
	StoreDelay = 300 * time.Millisecond
	ApplyDelay = 600 * time.Millisecond
	ReadDelay  = 3 * time.Second
)
