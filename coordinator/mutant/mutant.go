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
	// CacheIgnoresCompaction has a coordinator go on with a watch whose past was compacted as if it had missed nothing.
	CacheIgnoresCompaction = "cache-ignores-watch-compaction"
	// QuarantineDropped forgets findings that are for a person.
	QuarantineDropped = "quarantine-dropped"
	// SkipConfirmRetry takes a confirm for done whatever came of it.
	SkipConfirmRetry = "skip-confirm-retry"
	// RecoverForgetsConfirming drives transactions on after a restart, but for those that are being confirmed.
	RecoverForgetsConfirming = "recover-forgets-confirming"
	// EventOnlyInMemory takes a transaction's record out of the store while its events are on their way to the journal.
	EventOnlyInMemory = "event-after-ack-only-in-memory"
	// DoubleOutbox gives some events two numbers.
	DoubleOutbox = "double-outbox"
	// DedupeTooSmall takes a repeat of an event for a new one, but where it is the last that was applied.
	DedupeTooSmall = "dedupe-window-too-small"
	// OffsetBeforeApply notes that events are applied, and applies them later.
	OffsetBeforeApply = "offset-commit-before-apply"
	// LostLastOfBatch leaves the last of several transactions out of what is applied at once.
	LostLastOfBatch = "lost-last-batch-item"
	// TransitionOutsideStep changes a state after the core has given it.
	TransitionOutsideStep = "transition-outside-step"
	// AckBeforeFsync has the embedded etcd answer before what it has written is on the disk.
	AckBeforeFsync = "ack-before-fsync"
	// SkipsLastPage leaves the last page of what a region has decided out of a look for drift.
	SkipsLastPage = "skips-last-page"
	// WatermarkTooLate judges what is on its way to another region as if it had to be there.
	WatermarkTooLate = "watermark-too-late"
	// GuessesAmbiguous ends holds of transactions that nobody knows, as if that were a repair.
	GuessesAmbiguous = "repair-guesses-ambiguous"
	// EpochReuse gives a slot that changes hands the epoch that its owner of before had.
	EpochReuse = "epoch-reuse"
)

// StoreDelay is how late AckBeforeStore stores: as a busy disk would, so that a crash hits what was answered. ApplyDelay is
// how late WatermarkTooEarly applies: longer than it takes to be noted, as behind a slow participant. ReadDelay is by how much
// StaleRead lags. JournalDelay is how long EventOnlyInMemory has events in memory alone, and OffsetBeforeApply applies them later.
const (
	StoreDelay = 300 * time.Millisecond
	ApplyDelay = 600 * time.Millisecond
	ReadDelay  = 3 * time.Second

	JournalDelay = 1500 * time.Millisecond
)
