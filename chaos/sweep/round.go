package sweep

import (
	"context"
	"errors"
	"slices"
	"time"
)

// round looks, plants some, has the product look, plan and repair, and takes note of what became of each seed.
func (w *world) round(ctx context.Context, queue []*class, cut bool) ([]*class, error) {
	r, err := w.read(ctx)
	if err != nil {
		return queue, err
	}
	w.remember()
	if err := w.judge(ctx, r); err != nil {
		return queue, err
	}
	if time.Since(r.at) > settleAge { // a seed's transaction has its age by it
		if r, err = w.read(ctx); err != nil {
			return queue, err
		}
	}
	if cut {
		if err := w.cutRegions(cutFor, ""); err != nil {
			return queue, err
		}
	}
	planted, left := 0, queue[:0:0]
	for i, c := range queue {
		if planted == perRound {
			left = append(left, queue[i:]...)
			break
		}
		s, err := w.plant(ctx, r, c)
		switch {
		case errors.Is(err, errNoTarget):
			left = append(left, c)
		case err != nil:
			return queue, err
		default:
			planted++
			w.o.Say("planted %s in %s: gid %q branch %q account %q slot %d %s", s.ID, s.Region, s.Gid, s.Branch, s.Account, s.Slot, s.Variant)
		}
	}
	if err := w.seen(ctx); err != nil {
		return queue, err
	}
	if err := w.look(ctx); err != nil {
		return queue, err
	}
	if err := w.repair(ctx); err != nil {
		return left, err
	}
	return left, w.decide(ctx)
}

// seen has the suite's own checkers look at what was planted and is not found yet.
func (w *world) seen(ctx context.Context) error {
	r, err := w.read(ctx)
	if err != nil {
		return err
	}
	w.latest = r
	for _, s := range w.seeds {
		if s.applied || !s.Clean.IsZero() {
			continue
		}
		if s.class.id == d22 {
			n, err := w.lacking(ctx, s)
			if err != nil {
				return err
			}
			if n > 0 && !s.armed() {
				s.SeenBy = []string{"topic"}
			}
			continue
		}
		if s.class.id == d19 {
			s.upTo = r.head(int(s.Origin)-1, s.Origin, s.Slot, w.scaled(time.Second))
		}
		by, _ := w.witness(r, s)
		for _, id := range by {
			if !slices.Contains(s.SeenBy, id) {
				s.SeenBy = append(s.SeenBy, id)
			}
		}
		if s.after == "" {
			s.after = w.image(r, s)
		}
	}
	return nil
}

// head is the number up to which a region has had its own chain for a while.
func (r *reading) head(region int, origin int64, slot int, age time.Duration) (seq int64) {
	for _, rows := range r.rows {
		if d := rows[region]; d != nil && d.Finished && d.Slot == slot && d.Origin == origin && r.at.Sub(time.UnixMilli(d.At)) > age {
			seq = max(seq, d.FinishSeq)
		}
	}
	return seq
}

// judge takes note of which seeds are repaired, whether those that are a person's were left alone, and whether anything else was
// changed.
func (w *world) judge(ctx context.Context, r *reading) error {
	for _, s := range w.seeds {
		if !s.applied || !s.Clean.IsZero() {
			continue
		}
		is := w.image(r, s)
		if s.class.person {
			if is != s.after && s.Wrong == "" {
				s.Wrong = "it is a person's, and it was changed"
			}
			continue
		}
		if by, _ := w.witness(r, s); len(by) > 0 || w.stillFound(s) {
			continue
		}
		if s.class.id == d22 {
			n, err := w.lacking(ctx, s)
			if err != nil {
				return err
			}
			if n > 0 {
				continue
			}
		}
		s.Clean = r.at
		if is != s.before && !s.class.adds && !s.class.account && s.class.id != d19 && !s.class.apart {
			s.Wrong = "the repair left other rows than there were"
		}
		w.give(s)
		if err := s.ended(); err != nil {
			w.o.Say("%s: what was held for it is left to its timeout: %v", s.ID, err)
		}
	}
	if w.last != nil {
		for _, what := range r.changed(w.last, w.ours) {
			w.spoiled[what] = true
		}
	}
	w.last = r
	return nil
}

// ours says whether a transaction's rows are a seed's to change.
func (w *world) ours(region int, gid string) bool {
	return slices.ContainsFunc(w.seeds, func(s *Seed) bool { return s.scope(region, gid) })
}
