package journal

import (
	"context"
	"database/sql"
	"errors"
	"fmt"

	"github.com/lockstep-tx/lockstep/coordinator/engine"
	"github.com/lockstep-tx/lockstep/coordinator/record"
	"github.com/lockstep-tx/lockstep/region/slot"
)

// next takes the event after a watermark. wait: its turn has not come. reason: it contradicts what is here.
func (w *applying) next(ctx context.Context, tx *sql.Tx, m *Mark, e *record.Event) (wait bool, reason string, err error) {
	switch {
	case w.held(m, e):
		return true, "", nil
	case e.Origin() != m.Origin:
		return false, fmt.Sprintf("event %d is of epoch %d, which belongs to region %d", e.Head.Seq, e.Epoch, e.Origin()), nil
	case !e.Follows(m.Head) && inOrder():
		return false, fmt.Sprintf("event %d does not continue the chain: it was altered, or the origin's history is another", e.Head.Seq), nil
	case e.Epoch < m.Epoch:
		return false, fmt.Sprintf("event %d is of epoch %d after one of epoch %d", e.Head.Seq, e.Epoch, m.Epoch), nil
	case m.sealed && e.Epoch == m.Epoch:
		return false, fmt.Sprintf("event %d comes after the seal of its epoch %d", e.Head.Seq, e.Epoch), nil
	case w.unknown[m.Slot] && e.Epoch > m.Epoch:
		return true, "", nil
	}
	for _, s := range w.a.sealsOf(m.Slot) {
		if s.Epoch == slot.Epoch(e.Epoch) || s.Forced && s.Epoch.Region() == m.Origin {
			if reason := againstSeal(e, &s); reason != "" {
				return false, reason, nil
			}
		}
		if e.Epoch == m.Epoch || s.Epoch >= slot.Epoch(e.Epoch) || s.Epoch.Region() == m.Origin || slot.Overtaken(w.a.sealsOf(m.Slot), s) {
			continue
		}
		reached, reason, err := w.reached(ctx, tx, m.Slot, &s)
		if err != nil || reason != "" || !reached {
			return reason == "", reason, err
		}
	}
	reason = w.take(e)
	return false, reason, nil
}

// againstSeal says how an event contradicts the seal of its epoch, or a forced one of its origin. What a forced seal names
// may be of any kind and of an earlier epoch.
func againstSeal(e *record.Event, s *slot.Seal) string {
	switch {
	case s.Forced && slot.Epoch(e.Epoch) > s.Epoch && e.Head.Seq <= s.Seq:
		return fmt.Sprintf("event %d is of epoch %d, and epoch %d ends with event %d", e.Head.Seq, e.Epoch, s.Epoch, s.Seq)
	case s.Forced && e.Head.Seq == s.Seq && slot.SealOf(s.Epoch, e.Head.Seq, e.Head.Chain[:]).Chain != s.Chain:
		return fmt.Sprintf("event %d is not the one at which the arbiter has epoch %d sealed by force", e.Head.Seq, s.Epoch)
	case s.Forced:
		return ""
	case e.Head.Seq > s.Seq:
		return fmt.Sprintf("event %d comes after the seal of its epoch %d, which is event %d", e.Head.Seq, e.Epoch, s.Seq)
	case e.Head.Seq == s.Seq && (e.Kind != record.KindSeal || *slot.SealOf(s.Epoch, e.Head.Seq, e.Head.Chain[:]) != *s):
		return fmt.Sprintf("event %d is not the seal of epoch %d that the arbiter has", e.Head.Seq, e.Epoch)
	case e.Head.Seq < s.Seq && e.Kind == record.KindSeal:
		return fmt.Sprintf("event %d seals epoch %d, and the arbiter has event %d as its seal", e.Head.Seq, e.Epoch, s.Seq)
	}
	return ""
}

// reached says whether a seal is in the journal: events of a chain are here only with all before them, and of the own
// region a seal is known to the arbiter only after the journal had everything.
//
// A forced seal says nothing of what the journals had: of another region the watermark does, which bind has cut already; of
// the own region, that it was cut.
func (w *applying) reached(ctx context.Context, tx *sql.Tx, n int, s *slot.Seal) (ok bool, reason string, err error) {
	if s.Forced {
		return w.reachedForced(ctx, tx, n, s)
	}
	ok, err = w.reachedSeal(ctx, tx, n, s)
	return ok, "", err
}

func (w *applying) reachedForced(ctx context.Context, tx *sql.Tx, n int, s *slot.Seal) (bool, string, error) {
	origin := s.Epoch.Region()
	if origin == w.a.cfg.Own {
		var cuts int
		err := tx.QueryRowContext(ctx, w.a.j.d.bind("SELECT count(*) FROM lockstep_cut WHERE origin = ? AND slot = ? AND epoch = ?"), origin, n, int64(s.Epoch)).Scan(&cuts)
		return cuts > 0, "", err
	}
	var seq int64
	var chain []byte
	err := tx.QueryRowContext(ctx, w.a.j.d.bind("SELECT seq, chain FROM lockstep_watermark WHERE origin = ? AND slot = ?"), origin, n).Scan(&seq, &chain)
	switch {
	case errors.Is(err, sql.ErrNoRows):
		return s.Seq == 0, "", nil
	case err != nil:
		return false, "", err
	}
	if s.Seq > 0 && uint64(seq) == s.Seq && slot.SealOf(s.Epoch, s.Seq, chain).Chain != s.Chain {
		return false, fmt.Sprintf("event %d of region %d here is not the one at which the arbiter has epoch %d sealed by force", seq, origin, s.Epoch), nil
	}
	return s.Reached(uint64(seq)), "", nil
}

func (w *applying) reachedSeal(ctx context.Context, tx *sql.Tx, n int, s *slot.Seal) (bool, error) {
	if w.others[n] == nil {
		rows, err := tx.QueryContext(ctx, w.a.j.d.bind("SELECT origin, seq FROM lockstep_event WHERE slot = ? AND kind = 4"), n)
		if err != nil {
			return false, err
		}
		defer rows.Close()
		at := map[int]uint64{}
		for rows.Next() {
			var origin int
			var seq int64
			if err := rows.Scan(&origin, &seq); err != nil {
				return false, err
			}
			at[origin] = max(at[origin], uint64(seq))
		}
		if err := rows.Err(); err != nil {
			return false, err
		}
		w.others[n] = at
	}
	return s.Reached(w.others[n][s.Epoch.Region()]), nil
}

// take adds what an event says to what will be written.
func (w *applying) take(e *record.Event) (reason string) {
	if skips(e) {
		return ""
	}
	switch e.Kind {
	case record.KindDecision:
		return w.decision(e)
	case record.KindFinish:
		return w.finish(e)
	case record.KindCarry:
		if tx, err := record.Decode(e.Body); err != nil || tx.State.Gid != e.Gid {
			return fmt.Sprintf("event %d carries no record of %q: %v", e.Head.Seq, string(e.Gid), err)
		}
		w.moved = append(w.moved, *e)
	case record.KindSeal:
		w.moved = append(w.moved, *e)
	default:
		return fmt.Sprintf("event %d is a %s, which this program does not know", e.Head.Seq, e.Kind)
	}
	return ""
}

func (w *applying) decision(e *record.Event) string {
	tx, err := record.FromParts(e.Body, nil, e.Head, record.Head{}, e.Epoch, 0)
	switch {
	case err != nil:
		return fmt.Sprintf("event %d is no decision of %q: %v", e.Head.Seq, string(e.Gid), err)
	case tx.State.Gid != e.Gid || !tx.State.Phase.Decided():
		return fmt.Sprintf("event %d is a decision of %q, its body %q in phase %s", e.Head.Seq, string(e.Gid), string(tx.State.Gid), tx.State.Phase)
	}
	if k := w.rows[e.Gid]; k != nil {
		if k.row.Decision != e.Head || k.row.DecisionEpoch != e.Epoch {
			return fmt.Sprintf("event %d decides %q, which is decided here by event %d of epoch %d: the transaction was decided twice", e.Head.Seq, string(e.Gid), k.row.Decision.Seq, k.row.DecisionEpoch)
		}
		return ""
	}
	k := &known{row: engine.Row{
		Gid: e.Gid, Slot: e.Slot, Mode: tx.State.Mode, Phase: tx.State.Phase, BegunAt: tx.State.BegunAt, DecidedAt: tx.State.DecidedAt,
		Closed: e.Body, Decision: e.Head, DecisionEpoch: e.Epoch,
	}}
	w.rows[e.Gid] = k
	w.change(k)
	w.res.DecidedAt = append(w.res.DecidedAt, tx.State.DecidedAt)
	return ""
}

func (w *applying) finish(e *record.Event) string {
	k := w.rows[e.Gid]
	if k == nil {
		return fmt.Sprintf("event %d finishes %q, whose decision is not here", e.Head.Seq, string(e.Gid))
	}
	if k.row.Finish.Seq != 0 {
		if k.row.Finish != e.Head || k.row.FinishEpoch != e.Epoch {
			return fmt.Sprintf("event %d finishes %q, which is finished here by event %d of epoch %d", e.Head.Seq, string(e.Gid), k.row.Finish.Seq, k.row.FinishEpoch)
		}
		return ""
	}
	tx, err := record.FromParts(k.row.Closed, e.Body, k.row.Decision, e.Head, k.row.DecisionEpoch, e.Epoch)
	if err == nil && !tx.State.Phase.Finished() {
		err = fmt.Errorf("it is %s after it", tx.State.Phase)
	}
	if err != nil {
		return fmt.Sprintf("event %d is no finish of %q: %v", e.Head.Seq, string(e.Gid), err)
	}
	k.row.Phase, k.row.FinishedAt, k.row.Progress, k.row.Finish, k.row.FinishEpoch = tx.State.Phase, tx.State.FinishedAt, e.Body, e.Head, e.Epoch
	w.change(k)
	return ""
}

func (w *applying) change(k *known) {
	if !k.queued {
		k.queued = true
		w.changed = append(w.changed, &k.row)
	}
}
