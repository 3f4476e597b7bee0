package barrier

import (
	"context"
	"database/sql"

	"github.com/lockstep-tx/lockstep/participants/mutant"
)

// mutate is what the mutants do instead of what was judged (package mutant): nothing, in a build without them.
func (b *Barrier) mutate(ctx context.Context, tx *sql.Tx, call *Call, m *member, own *found, outcome Outcome) (Outcome, error) {
	switch {
	case mutant.On(mutant.NoBarrierOnConfirm) && call.Op == OpConfirm && (outcome == Done || outcome == Repeated):
		return Done, b.forget(ctx, tx, m, own)
	case mutant.On(mutant.CancelWithoutBarrier) && call.Op == OpCancel && (outcome == Done || outcome == Repeated):
		return Done, b.forget(ctx, tx, m, own)
	case mutant.On(mutant.NoEmptyCancelRow) && outcome == Empty:
		return Empty, b.forget(ctx, tx, m, own)
	}
	return outcome, nil
}

// synced is how SQLite syncs: at every commit.
func synced() string {
	if mutant.On(mutant.AckBeforeFsync) {
		return "OFF"
	}
	return "FULL"
}
