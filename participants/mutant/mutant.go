// Package mutant breaks participants on purpose, so that the chaos suite can show that it would notice. Built without the
// tag chaos, nothing is ever broken, and nothing of it is in the program: On is a constant there.
package mutant

// The mutants, as LOCKSTEP_MUTANT names them.
const (
	// NoBarrierOnConfirm runs confirms without their barrier's row.
	NoBarrierOnConfirm = "no-barrier-on-confirm"
	// NoEmptyCancelRow answers a cancel without a try, and leaves no row that would block a late one.
	NoEmptyCancelRow = "no-empty-cancel-row"
	// NoFencing takes calls of epochs that have ended.
	NoFencing = "no-fencing"
	// SkipBalanceCheck lets wallets be debited beyond what they have.
	SkipBalanceCheck = "skip-balance-check"
	// RepairNotIdempotent adds to an account's counters what a finding says that they lack, once for each time that it is asked.
	RepairNotIdempotent = "repair-not-idempotent"
	// WrongSign credits the copies of accounts that are to be debited, and the other way round.
	WrongSign = "wrong-sign"
	// FloatRounding posts amounts to the counters in whole pairs of the minor unit.
	FloatRounding = "float-rounding"
	// CancelWithoutBarrier runs cancels without their barrier's row.
	CancelWithoutBarrier = "cancel-without-barrier"
	// NoSuspensionCheck takes a try that comes after its cancel.
	NoSuspensionCheck = "no-suspension-check"
	// AckBeforeFsync answers before what it has written to SQLite is on the disk.
	AckBeforeFsync = "ack-before-fsync"
)
