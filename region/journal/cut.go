package journal

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"time"

	"github.com/lockstep-tx/lockstep/coordinator/record"
	"github.com/lockstep-tx/lockstep/coordinator/txn"
	"github.com/lockstep-tx/lockstep/region/slot"
)

// ErrContradicts: a journal's chain is not the one that a seal ends.
var ErrContradicts = errors.New("the chains are not the same")

// Cut takes everything of the chain of (seal's region, n) that is past a forced seal out of the journal: events of its
// epoch or an earlier one with a number above the seal's (ADR 9). Each goes to the divergence record, once. A row whose
// decision is past the seal is deleted; a row whose finish alone is past it is unfinished again; carries and seals are
// deleted. How far the chain is applied, published, acknowledged by peers and brought to the copies goes back to the seal.
// What belongs to a later epoch of the region stays.
//
// It gives the events past the seal, also when it is repeated, with what came later of the epoch; a body that was trimmed
// is empty. All of it is one SQL transaction: durable on nil, nothing on an error. ErrContradicts: the event that the seal
// names is another one here, or a transaction that was decided past the seal is finished by a later epoch.
//
// Not undone is what was done because of these events: effects that this region's participants applied to copies, what
// was published to Kafka, and what other processes of the region remember (an Applier of copies: see applier.Applier.Back).
//
// For the own region the caller has closed the slot, and has dropped what waits to be appended. Another process may still append
// of the epoch: that brings rows back until Cut is repeated. Whoever reads Cuts after its Append and finds none past which it went
// may be sure that Cut has taken its rows out, or will.
func (j *Journal) Cut(ctx context.Context, n int, seal slot.Seal) ([]record.Event, error) {
	origin := seal.Epoch.Region()
	switch {
	case !seal.Forced:
		return nil, fmt.Errorf("cut slot %d: the seal of epoch %d is not forced", n, seal.Epoch)
	case n < 0 || n >= slot.Count:
		return nil, fmt.Errorf("cut: slot %d of %d", n, slot.Count)
	}
	pass := func(int) error {
		return j.inTx(ctx, func(tx *sql.Tx) error {
			var m *Mark
			if origin != int(j.own.Load()) {
				marks, err := j.lockMarks(ctx, tx, origin, []int{n})
				if err != nil {
					return err
				}
				m = marks[n]
			}
			_, reason, err := j.cut(ctx, tx, origin, n, m, &seal)
			if err == nil && reason != "" {
				err = fmt.Errorf("%w: %s", ErrContradicts, reason)
			}
			return err
		})
	}
	err := j.retry(ctx, pass)
	if err == nil && origin == int(j.own.Load()) {
		// An Append beside it holds no lock of ours, and may have committed after our statements and before our commit: then its
		// process finds no cut, and this is who sees its rows.
		err = j.retry(ctx, pass)
	}
	var out []record.Event
	if err == nil {
		out, err = j.pastEvents(ctx, origin, n, &seal)
	}
	if err != nil {
		return nil, fmt.Errorf("cut slot %d of origin %d to event %d in the journal at %s: %w", n, origin, seal.Seq, j.where, err)
	}
	return out, nil
}

// Bind is Cut for chains of another region that end here exactly at their forced seals: nothing is past them, and what is left to write
// is that they are bound. It gives those slots, in order; the others, which have more or less or something else, are Cut's. When a region
// is lost nearly all of its chains are of this kind, and each would cost an SQL transaction of its own. Durable on nil.
func (j *Journal) Bind(ctx context.Context, origin int, seals map[int]slot.Seal) (bound []int, err error) {
	if origin == int(j.own.Load()) {
		return nil, fmt.Errorf("bind: origin %d is this region, which has no watermark of its own chains", origin)
	}
	heads := map[int]record.Head{}
	for n, seal := range seals {
		if !seal.Forced || seal.Epoch.Region() != origin || n < 0 || n >= slot.Count {
			return nil, fmt.Errorf("bind slot %d of origin %d: not a forced seal of it: %+v", n, origin, seal)
		}
		if heads[n], err = headOf(&seal); err != nil {
			return nil, fmt.Errorf("bind slot %d: %w", n, err)
		}
	}
	err = j.retry(ctx, func(int) error {
		bound = nil
		return j.inTx(ctx, func(tx *sql.Tx) error {
			marks, err := j.lockMarks(ctx, tx, origin, slices.Sorted(maps.Keys(seals)))
			if err != nil {
				return err
			}
			var cuts, rows [][]any
			now := time.Now().UnixMilli()
			for _, n := range slices.Sorted(maps.Keys(seals)) {
				m, seal, head := marks[n], seals[n], heads[n]
				if m.Head != head || m.Epoch > uint64(seal.Epoch) {
					continue
				}
				m.Frozen, m.Bounded = max(m.Frozen, uint64(seal.Epoch)), max(m.Bounded, uint64(seal.Epoch))
				bound = append(bound, n)
				rows = append(rows, m.values(now))
				cuts = append(cuts, []any{origin, n, int64(seal.Epoch), int64(seal.Seq), head.Chain[:], now})
			}
			if len(bound) == 0 {
				return nil
			}
			if err := j.put(ctx, tx, cutTable, cutKey, cutAgain, cuts); err != nil {
				return err
			}
			return j.put(ctx, tx, markTable, "origin, slot", "updated_at = new(updated_at), frozen = new(frozen), bounded = new(bounded)", rows)
		})
	})
	if err != nil {
		return nil, fmt.Errorf("bind %d chains of origin %d in the journal at %s: %w", len(seals), origin, j.where, err)
	}
	return bound, nil
}

// cut does it in an SQL transaction. m is the chain's watermark, which is locked; nil where the origin is the own region: the
// row that says that it was cut is the lock then. reason: the chains contradict; then an own chain's SQL transaction is to be undone.
func (j *Journal) cut(ctx context.Context, tx *sql.Tx, origin, n int, m *Mark, seal *slot.Seal) (taken []record.Event, reason string, err error) {
	head, err := headOf(seal)
	if err != nil {
		return nil, err.Error(), nil
	}
	if m == nil { // it is the lock
		if err := j.putCut(ctx, tx, origin, n, seal, head); err != nil {
			return nil, "", err
		}
	}
	from := uint64(0)
	if seal.Seq > 0 {
		from = seal.Seq - 1
	}
	events, _, err := j.chainIn(ctx, tx, origin, n, from, math.MaxInt64)
	if err != nil {
		return nil, "", err
	}
	epoch := seal.Epoch // of the last event that stays
	later := false
	for i := range events {
		e := &events[i]
		switch {
		case e.Head.Seq == seal.Seq && slot.Epoch(e.Epoch) <= seal.Epoch:
			if e.Head != head {
				return nil, fmt.Sprintf("event %d here is not the one at which epoch %d was sealed by force", seal.Seq, seal.Epoch), nil
			}
			epoch = slot.Epoch(e.Epoch)
		case e.Head.Seq > seal.Seq && slot.Epoch(e.Epoch) <= seal.Epoch:
			taken = append(taken, *e)
		default:
			later = true
		}
	}
	if reason, err := j.finishedLater(ctx, tx, origin, n, seal); err != nil || reason != "" {
		return nil, reason, err
	}
	if err := j.parkPast(ctx, tx, origin, n, "it was taken out:", seal, taken); err != nil {
		return nil, "", err
	}
	if len(taken) > 0 {
		if err := j.takeOut(ctx, tx, origin, n, seal); err != nil {
			return nil, "", err
		}
	}
	// Where the next epoch has begun here, its positions stand, unless they may be those of what was taken.
	if len(taken) > 0 || !later {
		if err := j.positionsBack(ctx, tx, origin, n, head); err != nil {
			return nil, "", err
		}
	}
	if m == nil {
		return taken, "", nil
	}
	if err := j.putCut(ctx, tx, origin, n, seal, head); err != nil {
		return nil, "", err
	}
	if m.Head.Seq > seal.Seq && m.Epoch <= uint64(seal.Epoch) {
		if seal.Seq == 0 {
			epoch = 0
		}
		m.Head, m.Epoch, m.Stopped = head, uint64(epoch), "" // what it stopped at is judged again
		m.sealed = false
	}
	m.Frozen, m.Bounded = max(m.Frozen, uint64(seal.Epoch)), max(m.Bounded, uint64(seal.Epoch))
	return taken, "", j.put(ctx, tx, markTable, "origin, slot",
		"epoch = new(epoch), seq = new(seq), chain = new(chain), stopped = new(stopped), updated_at = new(updated_at), frozen = new(frozen), bounded = new(bounded)",
		[][]any{m.values(time.Now().UnixMilli())})
}

// The rows that say which chains were cut.
const (
	cutTable = "lockstep_cut (origin, slot, epoch, seq, chain, at)"
	cutKey   = "origin, slot, epoch"
	cutAgain = "at = new(at)" // one that is there stays
)

func (j *Journal) putCut(ctx context.Context, tx *sql.Tx, origin, n int, seal *slot.Seal, head record.Head) error {
	return j.put(ctx, tx, cutTable, cutKey, cutAgain, [][]any{{origin, n, int64(seal.Epoch), int64(seal.Seq), head.Chain[:], time.Now().UnixMilli()}})
}

// finishedLater finds a transaction that was decided past the seal and finished by an epoch that does not end there. There
// is none: whoever owns the slot later does not know the decision.
func (j *Journal) finishedLater(ctx context.Context, tx *sql.Tx, origin, n int, seal *slot.Seal) (string, error) {
	var gid []byte
	err := tx.QueryRowContext(ctx, j.d.bind(`SELECT gid FROM lockstep_journal WHERE slot = ? AND decision_seq > ? AND decision_epoch % 100 = ? AND decision_epoch <= ?
		AND finish_epoch > ? LIMIT 1`), n, int64(seal.Seq), origin, int64(seal.Epoch), int64(seal.Epoch)).Scan(&gid)
	switch {
	case errors.Is(err, sql.ErrNoRows):
		return "", nil
	case err != nil:
		return "", err
	}
	return fmt.Sprintf("transaction %q was decided after the forced seal of epoch %d, and is finished by a later epoch", string(gid), seal.Epoch), nil
}

// takeOut deletes what is past a seal.
func (j *Journal) takeOut(ctx context.Context, tx *sql.Tx, origin, n int, seal *slot.Seal) error {
	if _, err := tx.ExecContext(ctx, j.d.bind("DELETE FROM lockstep_event WHERE origin = ? AND slot = ? AND seq > ? AND epoch <= ?"),
		origin, n, int64(seal.Seq), int64(seal.Epoch)); err != nil {
		return err
	}
	if _, err := tx.ExecContext(ctx, j.d.bind("DELETE FROM lockstep_journal WHERE slot = ? AND decision_seq > ? AND decision_epoch % 100 = ? AND decision_epoch <= ?"),
		n, int64(seal.Seq), origin, int64(seal.Epoch)); err != nil {
		return err
	}
	rows, err := tx.QueryContext(ctx, j.d.bind(selectRow+"WHERE slot = ? AND finish_seq > ? AND finish_epoch % 100 = ? AND finish_epoch <= ?"),
		n, int64(seal.Seq), origin, int64(seal.Epoch))
	if err != nil {
		return err
	}
	phases := map[int64]txn.Phase{}
	for rows.Next() {
		var s stored
		if err := s.scan(rows.Scan); err != nil {
			return errors.Join(err, rows.Close())
		}
		phases[s.id] = decidedPhase(&s)
	}
	if err := errors.Join(rows.Err(), rows.Close()); err != nil {
		return err
	}
	for id, phase := range phases {
		if _, err := tx.ExecContext(ctx, j.d.bind("UPDATE lockstep_journal SET phase = ?, finished_at = NULL, finish_seq = NULL, finish_epoch = NULL, finish_chain = NULL, progress = NULL WHERE id = ?"),
			int64(phase), id); err != nil {
			return err
		}
	}
	return nil
}

// decidedPhase is the phase of a row without its finish.
func decidedPhase(s *stored) txn.Phase {
	if tx, err := record.FromParts(s.row.Closed, nil, s.row.Decision, record.Head{}, s.row.DecisionEpoch, 0); err == nil {
		return tx.State.Phase
	}
	if s.row.Phase.Commit() { // its body was trimmed: the outcome is left
		return txn.PhaseCommitting
	}
	return txn.PhaseAborting
}

// positionsBack takes what is noted of a chain back to a head.
func (j *Journal) positionsBack(ctx context.Context, tx *sql.Tx, origin, n int, to record.Head) error {
	seq := int64(to.Seq)
	for _, p := range []struct {
		stmt string
		args []any
	}{
		{"UPDATE lockstep_published SET seq = ?, chain = ? WHERE origin = ? AND slot = ? AND seq > ?", []any{seq, to.Chain[:], origin, n, seq}},
		{"UPDATE lockstep_ack SET seq = ? WHERE origin = ? AND slot = ? AND seq > ?", []any{seq, origin, n, seq}},
		{"UPDATE lockstep_applied SET seq = ? WHERE origin = ? AND slot = ? AND seq > ?", []any{seq, origin, n, seq}},
	} {
		if _, err := tx.ExecContext(ctx, j.d.bind(p.stmt), p.args...); err != nil {
			return err
		}
	}
	return nil
}

// PastCuts gives the forced seals past which the journal has something of an origin's chains, by slot: a process that had not heard of
// the cut has appended it since. Cut takes it out again.
func (j *Journal) PastCuts(ctx context.Context, origin int) (map[int]slot.Seal, error) {
	cuts, err := j.Cuts(ctx, origin)
	if err != nil {
		return nil, err
	}
	for n, seal := range cuts {
		past, err := j.hasPast(ctx, origin, n, &seal)
		if err != nil {
			return nil, fmt.Errorf("read what is past the cut of slot %d in the journal at %s: %w", n, j.where, err)
		}
		if !past {
			delete(cuts, n)
		}
	}
	return cuts, nil
}

func (j *Journal) hasPast(ctx context.Context, origin, n int, seal *slot.Seal) (bool, error) {
	for _, q := range []string{
		"SELECT 1 FROM lockstep_event WHERE slot = ? AND seq > ? AND origin = ? AND epoch <= ? LIMIT 1",
		"SELECT 1 FROM lockstep_journal WHERE slot = ? AND decision_seq > ? AND decision_epoch % 100 = ? AND decision_epoch <= ? LIMIT 1",
		"SELECT 1 FROM lockstep_journal WHERE slot = ? AND finish_seq > ? AND finish_epoch % 100 = ? AND finish_epoch <= ? LIMIT 1",
	} {
		var one int
		err := j.read.QueryRowContext(ctx, j.d.bind(q), n, int64(seal.Seq), origin, int64(seal.Epoch)).Scan(&one)
		if !errors.Is(err, sql.ErrNoRows) {
			return err == nil, err
		}
	}
	return false, nil
}

// Cuts gives the forced seals to which the chains of an origin were cut in this journal: of each slot the latest.
func (j *Journal) Cuts(ctx context.Context, origin int) (map[int]slot.Seal, error) {
	out, err := j.cutsIn(ctx, j.read, origin)
	if err != nil {
		return nil, fmt.Errorf("read the cuts in the journal at %s: %w", j.where, err)
	}
	return out, nil
}

func (j *Journal) cutsIn(ctx context.Context, q querierRows, origin int) (map[int]slot.Seal, error) {
	rows, err := q.QueryContext(ctx, j.d.bind("SELECT slot, epoch, seq, chain FROM lockstep_cut WHERE origin = ? ORDER BY epoch"), origin)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	out := map[int]slot.Seal{}
	for rows.Next() {
		var n int
		var epoch, seq int64
		var chain []byte
		if err := rows.Scan(&n, &epoch, &seq, &chain); err != nil {
			return nil, err
		}
		s := slot.SealOf(slot.Epoch(epoch), uint64(seq), chain)
		s.Forced = true
		out[n] = *s
	}
	return out, rows.Err()
}
