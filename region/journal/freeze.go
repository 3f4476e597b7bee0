package journal

import (
	"context"
	"database/sql"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/lockstep-tx/lockstep/coordinator/record"
	"github.com/lockstep-tx/lockstep/region/slot"
)

// Frozen is a chain of which nothing of an epoch, or of an earlier one, is to be applied any more before its seal is known.
type Frozen struct {
	Slot  int
	Epoch uint64
}

// ErrOwnChain: the journal's own region's chains are not applied here, and cannot be frozen.
var ErrOwnChain = errors.New("the origin is the journal's own region")

// Freeze holds chains of another region: from then on no process that shares this journal applies an event of (origin,
// slot) with an epoch up to the one given, before a seal of that epoch or a later one of the origin is known to it (ADR 9).
// It gives how far each chain is, by slot: what was being applied is in it, and nothing is added to it. It is never lowered,
// and may be repeated. Durable on nil.
//
// ErrOwnChain where an Applier of this Journal says that the origin is its own.
func (j *Journal) Freeze(ctx context.Context, origin int, at []Frozen) ([]Mark, error) {
	epochs := map[int]uint64{}
	var slots []int
	for _, f := range at {
		switch {
		case f.Slot < 0 || f.Slot >= slot.Count:
			return nil, fmt.Errorf("freeze: slot %d of %d", f.Slot, slot.Count)
		case slot.Epoch(f.Epoch).Region() != origin:
			return nil, fmt.Errorf("freeze: slot %d: epoch %d is not of region %d", f.Slot, f.Epoch, origin)
		}
		if _, ok := epochs[f.Slot]; !ok {
			slots = append(slots, f.Slot)
		}
		epochs[f.Slot] = max(epochs[f.Slot], f.Epoch)
	}
	if origin == int(j.own.Load()) {
		return nil, fmt.Errorf("freeze origin %d: %w", origin, ErrOwnChain)
	}
	slices.Sort(slots)
	var out []Mark
	err := j.retry(ctx, func(int) error {
		out = nil
		return j.inTx(ctx, func(tx *sql.Tx) error {
			marks, err := j.lockMarks(ctx, tx, origin, slots)
			if err != nil {
				return err
			}
			var rows [][]any
			for _, n := range slots {
				m := marks[n]
				if m.Frozen < epochs[n] {
					m.Frozen = epochs[n]
					rows = append(rows, m.values(time.Now().UnixMilli()))
				}
				out = append(out, *m)
			}
			return j.put(ctx, tx, markTable, "origin, slot", "frozen = new(frozen), updated_at = new(updated_at)", rows)
		})
	})
	if err != nil {
		return nil, fmt.Errorf("freeze %d slots of origin %d in the journal at %s: %w", len(slots), origin, j.where, err)
	}
	return out, nil
}

const markTable = "lockstep_watermark (origin, slot, epoch, seq, chain, stopped, updated_at, frozen, bounded)"

// values of a mark in the order of markTable.
func (m *Mark) values(now int64) []any {
	return []any{m.Origin, m.Slot, int64(m.Epoch), int64(m.Head.Seq), m.Head.Chain[:], m.Stopped, now, int64(m.Frozen), int64(m.Bounded)}
}

// lockMarks reads watermarks of slots, which are in order, makes those that are missing, and keeps others from moving
// them until the SQL transaction ends. That a chain is frozen or bounded is in the very row that is locked: on PostgreSQL
// a statement that has waited for a row sees the row as it is now, and everything else as it was when the statement began.
func (j *Journal) lockMarks(ctx context.Context, tx *sql.Tx, origin int, slots []int) (map[int]*Mark, error) {
	out := map[int]*Mark{}
	if len(slots) == 0 {
		return out, nil
	}
	in := make([]string, len(slots))
	for i, n := range slots {
		in[i] = strconv.Itoa(n)
	}
	stmt := `SELECT w.origin, w.slot, w.epoch, w.seq, w.chain, w.stopped, w.updated_at, w.frozen, w.bounded,
		CASE WHEN EXISTS (SELECT 1 FROM lockstep_event e WHERE e.origin = w.origin AND e.slot = w.slot AND e.seq = w.seq AND e.kind = 4) THEN 1 ELSE 0 END
		FROM lockstep_watermark w WHERE w.origin = ? AND w.slot IN (` + strings.Join(in, ", ") + `) ORDER BY w.slot`
	if !j.d.single {
		stmt += " FOR UPDATE"
	}
	for range 2 {
		list, err := j.marks(ctx, tx, stmt, origin)
		if err != nil {
			return nil, err
		}
		for i := range list {
			out[list[i].Slot] = &list[i]
		}
		var missing [][]any
		for _, n := range slots {
			if out[n] == nil {
				missing = append(missing, (&Mark{Origin: origin, Slot: n}).values(time.Now().UnixMilli()))
			}
		}
		if missing == nil {
			return out, nil
		}
		// Another process may be making them too: the second look takes the locks.
		if err := j.put(ctx, tx, markTable, "origin, slot", "", missing); err != nil {
			return nil, err
		}
	}
	return nil, errors.New("the watermarks could not be made")
}

// headOf is the head that a seal names.
func headOf(seal *slot.Seal) (record.Head, error) {
	h := record.Head{Seq: seal.Seq}
	if seal.Seq == 0 {
		return h, nil
	}
	b, err := hex.DecodeString(seal.Chain)
	if err != nil || len(b) != len(h.Chain) {
		return h, fmt.Errorf("the seal of epoch %d: its chain is not %d bytes in hexadecimal", seal.Epoch, len(h.Chain))
	}
	copy(h.Chain[:], b)
	return h, nil
}

// ChainOf is the chain of the event that a seal names; zero for number 0.
func ChainOf(seal slot.Seal) (record.Chain, error) {
	h, err := headOf(&seal)
	return h.Chain, err
}

// past gives the forced seal of the event's origin that the event comes after, if there is one.
func past(seals []slot.Seal, e *record.Event) *slot.Seal {
	for i := range seals {
		if s := &seals[i]; s.Forced && s.Epoch.Region() == e.Origin() && slot.Epoch(e.Epoch) <= s.Epoch && e.Head.Seq > s.Seq {
			return s
		}
	}
	return nil
}

// sealKnown says whether a seal of an origin is among the seals, of an epoch or of a later one.
func sealKnown(seals []slot.Seal, origin int, epoch uint64) bool {
	return slices.ContainsFunc(seals, func(s slot.Seal) bool { return s.Epoch.Region() == origin && s.Epoch >= slot.Epoch(epoch) })
}

// held says that an event of a frozen chain cannot be judged, as no seal is known that bounds its epoch.
func (w *applying) held(m *Mark, e *record.Event) bool {
	return e.Origin() == m.Origin && e.Epoch <= m.Frozen && !sealKnown(w.a.sealsOf(m.Slot), m.Origin, m.Frozen)
}

// diverge takes the events that are past a forced seal out of a slot's list, and into the divergence record.
func (w *applying) diverge(ctx context.Context, tx *sql.Tx, n int) error {
	seals := w.a.sealsOf(n)
	if !slices.ContainsFunc(seals, func(s slot.Seal) bool { return s.Forced }) {
		return nil
	}
	var of []*slot.Seal
	by := map[*slot.Seal][]record.Event{}
	w.events[n] = slices.DeleteFunc(slices.Clone(w.events[n]), func(e *record.Event) bool {
		if e.Origin() != w.b.Origin {
			return false // it contradicts, see next
		}
		s := past(seals, e)
		if s == nil {
			return false
		}
		if by[s] == nil {
			of = append(of, s)
		}
		by[s] = append(by[s], *e)
		w.res.Diverged = append(w.res.Diverged, Diverged{Slot: n, Seq: e.Head.Seq, Epoch: e.Epoch, Gid: e.Gid})
		return true
	})
	for _, s := range of {
		if err := w.a.j.parkPast(ctx, tx, w.b.Origin, n, "it came", s, by[s]); err != nil {
			return err
		}
	}
	return nil
}

// bind has this journal's chains end at the forced seals that bear on the batch: those of its origin, and those of other
// origins that its epochs follow. What is past one is taken out, before any row is read.
func (w *applying) bind(ctx context.Context, tx *sql.Tx) error {
	for _, n := range w.slots {
		top := uint64(0)
		for _, e := range w.events[n] {
			top = max(top, e.Epoch)
		}
		seals := w.a.sealsOf(n)
		for i := range seals {
			s := &seals[i]
			origin := s.Epoch.Region()
			if !s.Forced || origin == w.a.cfg.Own || origin != w.b.Origin && uint64(s.Epoch) > top || w.a.isBound(n, s.Epoch) {
				continue
			}
			if err := w.bindTo(ctx, tx, n, origin, s); err != nil {
				return err
			}
		}
	}
	return nil
}

func (w *applying) bindTo(ctx context.Context, tx *sql.Tx, n, origin int, s *slot.Seal) error {
	m := w.marks[n]
	if origin != w.b.Origin {
		marks, err := w.a.j.lockMarks(ctx, tx, origin, []int{n})
		if err != nil {
			return err
		}
		m = marks[n]
	}
	taken, reason, err := w.a.j.cut(ctx, tx, origin, n, m, s)
	switch {
	case err != nil:
		return err
	case reason != "":
		if mine := w.marks[n]; mine.Stopped == "" {
			w.stop(mine, s.Seq, reason, nil)
		}
		return nil
	}
	if len(taken) > 0 {
		w.res.Cuts = append(w.res.Cuts, Cut{Origin: origin, Slot: n, Seal: *s, Events: taken})
	}
	w.bound = append(w.bound, boundTo{n, s.Epoch})
	return nil
}

// boundTo is a forced seal of a slot at which a chain ends in this journal.
type boundTo struct {
	slot  int
	epoch slot.Epoch
}

func (a *Applier) isBound(n int, epoch slot.Epoch) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.bound[boundTo{n, epoch}]
}

// ForcedSeal gives the latest forced seal of a chain that the Applier has heard of; nil where it knows none. It asks nobody.
func (a *Applier) ForcedSeal(origin, n int) *slot.Seal {
	var out *slot.Seal
	for _, s := range a.sealsOf(n) {
		if s.Forced && s.Epoch.Region() == origin && (out == nil || s.Epoch > out.Epoch) {
			out = &s
		}
	}
	return out
}
