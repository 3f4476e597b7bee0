package sim

import (
	"cmp"
	"context"
	"maps"
	"slices"

	"github.com/lockstep-tx/lockstep/coordinator/engine"
	"github.com/lockstep-tx/lockstep/coordinator/record"
	"github.com/lockstep-tx/lockstep/coordinator/txn"
	"github.com/lockstep-tx/lockstep/region/failover/conduct"
	"github.com/lockstep-tx/lockstep/region/slot"
)

// journal is a region's record of every region's events: a chain for each (origin, slot). Its rows are what the chains say.
//
// The law it keeps: an event is taken only when it follows the one before it, and when everything up to the seals of the epochs
// before its own is here; what is past a forced seal is parked, never taken. A frozen epoch takes nothing until its seal is known.
type journal struct {
	engine.Journal // what the filter of known gids asks is Gids alone
	w              *World
	r              *region
	chains         [regionsCount][slotsInPlay]chain
	rows           map[txn.Gid]*engine.Row
	carried        map[txn.Gid]carriedRecord
	frozen         [regionsCount][slotsInPlay]slot.Epoch
}

// chain is the events of one origin's slot, without gaps, and what waits for those before it.
type chain struct {
	events  []record.Event
	waiting map[uint64]record.Event
	applied uint64 // to the copies here
	busy    bool   // somebody applies
	parked  map[uint64]record.Event
}

type carriedRecord struct {
	epoch uint64
	seq   uint64
	body  []byte
}

func newJournal(r *region) *journal {
	j := &journal{w: r.w, r: r, rows: map[txn.Gid]*engine.Row{}, carried: map[txn.Gid]carriedRecord{}}
	for o := range j.chains {
		for n := range j.chains[o] {
			j.chains[o][n].waiting, j.chains[o][n].parked = map[uint64]record.Event{}, map[uint64]record.Event{}
		}
	}
	return j
}

func (c *chain) head() record.Head {
	if len(c.events) == 0 {
		return record.Head{}
	}
	return c.events[len(c.events)-1].Head
}

// Gids is engine.Journal's.
func (j *journal) Gids(_ context.Context, each func(txn.Gid)) error {
	for _, gid := range slices.Sorted(maps.Keys(j.rows)) {
		each(gid)
	}
	return nil
}

// get reads a transaction; nil where nothing is known of its decision.
func (j *journal) get(gid txn.Gid) *record.Tx {
	row := j.rows[gid]
	if row == nil || row.Closed == nil {
		return nil
	}
	tx, err := record.FromParts(row.Closed, row.Progress, row.Decision, row.Finish, row.DecisionEpoch, row.FinishEpoch)
	j.w.check("journal row", err)
	return tx
}

func (j *journal) finished(gid txn.Gid) bool {
	row := j.rows[gid]
	return row != nil && row.Finish.Seq != 0 && row.Closed != nil
}

// append takes this region's rows: their events go into the chains.
func (j *journal) append(rows []engine.Row) {
	for i := range rows {
		row := &rows[i]
		j.add(record.Event{Slot: row.Slot, Kind: record.KindDecision, Gid: row.Gid, Epoch: row.DecisionEpoch, Head: row.Decision, Body: row.Closed})
		if row.Finish.Seq != 0 {
			j.add(record.Event{Slot: row.Slot, Kind: record.KindFinish, Gid: row.Gid, Epoch: row.FinishEpoch, Head: row.Finish, Body: row.Progress})
		}
	}
}

// past gives the forced seal, as far as this region knows, that an event comes after.
func (j *journal) past(e *record.Event) bool {
	return slices.ContainsFunc(j.r.seals[e.Slot], func(s slot.Seal) bool {
		return s.Forced && s.Epoch.Region() == e.Origin() && slot.Epoch(e.Epoch) <= s.Epoch && e.Head.Seq > s.Seq
	})
}

// add takes an event, now or when what is before it has come.
func (j *journal) add(e record.Event) {
	c := &j.chains[e.Origin()-1][e.Slot]
	switch head := c.head(); {
	case j.past(&e):
		c.parked[e.Head.Seq] = e
		return
	case e.Head.Seq <= head.Seq:
		if have := &c.events[e.Head.Seq-1]; have.Head != e.Head {
			j.w.fail("%s: event %d of slot %d of region %d stands here with another chain (G6)", j.r.name, e.Head.Seq, e.Slot, e.Origin()-1)
		}
		return
	}
	c.waiting[e.Head.Seq] = e
	j.advance(e.Origin()-1, e.Slot)
}

// advance takes what waits, as far as it goes.
func (j *journal) advance(origin, n int) {
	c := &j.chains[origin][n]
	was := len(c.events)
	for {
		e, ok := c.waiting[c.head().Seq+1]
		if !ok || !j.ripe(origin, &e) {
			break
		}
		delete(c.waiting, e.Head.Seq)
		if j.past(&e) {
			c.parked[e.Head.Seq] = e
			continue
		}
		if !e.Follows(c.head()) {
			j.w.fail("%s: event %d of slot %d of region %d does not follow the one before it (G6)", j.r.name, e.Head.Seq, n, origin)
			return
		}
		c.events = append(c.events, e)
		j.fold(&e)
	}
	if len(c.events) > was {
		j.r.publish(origin, n, c.events[was:])
		j.r.apply(origin, n)
		for o := range j.chains { // what waited for this chain's seal
			if o != origin && len(j.chains[o][n].waiting) > 0 {
				j.advance(o, n)
			}
		}
	}
}

// ripe says that an event may be judged: its epoch is not frozen, the owners up to it are known here, and everything up to the
// seals of earlier epochs is here.
func (j *journal) ripe(origin int, e *record.Event) bool {
	epoch := slot.Epoch(e.Epoch)
	if f := j.frozen[origin][e.Slot]; epoch <= f && !j.sealKnown(e.Slot, f) {
		return false
	}
	if epoch > j.r.owners[e.Slot].Epoch {
		return false
	}
	for i := range j.r.seals[e.Slot] {
		if s := &j.r.seals[e.Slot][i]; s.Epoch < epoch && !j.reached(e.Slot, s) {
			return false
		}
	}
	return true
}

func (j *journal) sealKnown(n int, epoch slot.Epoch) bool {
	return slices.ContainsFunc(j.r.seals[n], func(s slot.Seal) bool { return s.Epoch == epoch })
}

// reached says that everything up to a seal is here. One that was written and undone, before the region was lost and its chain cut
// below it, is nowhere to be reached: the forced one stands for it.
func (j *journal) reached(n int, s *slot.Seal) bool {
	if slot.Overtaken(j.r.seals[n], *s) {
		return true // the forced one is asked for like the others
	}
	return s.Reached(j.chains[s.Epoch.Region()-1][n].head().Seq)
}

// fold brings an event into the rows.
func (j *journal) fold(e *record.Event) {
	row := j.rows[e.Gid]
	if row == nil && e.Kind != record.KindSeal {
		row = &engine.Row{Gid: e.Gid, Slot: e.Slot}
		j.rows[e.Gid] = row
	}
	switch e.Kind {
	case record.KindDecision:
		if row.Closed != nil && row.DecisionEpoch != e.Epoch && j.commits(row.Closed) != j.commits(e.Body) {
			j.w.fail("%s: %s was decided in epoch %d and otherwise in epoch %d (G1)", j.r.name, e.Gid, row.DecisionEpoch, e.Epoch)
		}
		if row.Closed == nil || e.Epoch >= row.DecisionEpoch {
			row.Closed, row.Decision, row.DecisionEpoch = e.Body, e.Head, e.Epoch
		}
	case record.KindFinish:
		row.Progress, row.Finish, row.FinishEpoch = e.Body, e.Head, e.Epoch
	case record.KindCarry:
		if have := j.carried[e.Gid]; e.Epoch > have.epoch || e.Epoch == have.epoch && e.Head.Seq > have.seq {
			j.carried[e.Gid] = carriedRecord{e.Epoch, e.Head.Seq, e.Body}
		}
	case record.KindSeal:
	}
}

func (j *journal) commits(closed []byte) bool {
	tx, err := record.FromParts(closed, nil, record.Head{}, record.Head{}, 0, 0)
	j.w.check("a decision's body", err)
	return tx.State.Phase.Commit()
}

// unfinished is what whoever takes a slot by force has to know: what is decided and not finished, and what was carried and not
// decided since, each as a record.
func (j *journal) unfinished(n int) [][]byte {
	records := map[txn.Gid][]byte{}
	for gid, row := range j.rows {
		if row.Slot == n && row.Closed != nil && row.Finish.Seq == 0 {
			raw, err := j.get(gid).Encode()
			j.w.check("encode", err)
			records[gid] = raw
		}
	}
	last := uint64(0) // what was carried before the last seal by plan was carried again, or had ended
	for o := range j.chains {
		for i := range j.chains[o][n].events {
			if e := &j.chains[o][n].events[i]; e.Kind == record.KindSeal {
				last = max(last, e.Epoch)
			}
		}
	}
	for gid, c := range j.carried {
		if slot.Of(string(gid)) != n || c.epoch < last || j.finished(gid) {
			continue
		}
		if row := j.rows[gid]; row != nil && row.Closed != nil && row.DecisionEpoch > c.epoch {
			continue // its decision came later
		}
		records[gid] = c.body
	}
	var out [][]byte
	for _, gid := range slices.Sorted(maps.Keys(records)) {
		out = append(out, records[gid])
	}
	return out
}

// carriedAt gives the live records that left with a slot at the end of an epoch and have not finished since.
func (j *journal) carriedAt(n int, epoch uint64) (out [][]byte) {
	for _, gid := range slices.Sorted(maps.Keys(j.carried)) {
		if c := j.carried[gid]; slot.Of(string(gid)) == n && c.epoch == epoch && !j.finished(gid) {
			out = append(out, c.body)
		}
	}
	return out
}

// freeze makes a lost epoch take nothing more, and says how far it is here.
func (j *journal) freeze(n int, epoch slot.Epoch) conduct.Mark {
	origin := epoch.Region() - 1
	j.frozen[origin][n] = max(j.frozen[origin][n], epoch)
	c := &j.chains[origin][n]
	m := conduct.Mark{Slot: n, Seq: c.head().Seq}
	if len(c.events) > 0 {
		m.Epoch = c.events[len(c.events)-1].Epoch
	}
	m.Chain = sealOf(epoch, c.head()).Chain
	return m
}

func sealOf(epoch slot.Epoch, h record.Head) *slot.Seal {
	return slot.SealOf(epoch, h.Seq, h.Chain[:])
}

// cut takes what is past a forced seal out of a chain, and parks it.
func (j *journal) cut(n int, s *slot.Seal) {
	origin := s.Epoch.Region() - 1
	c := &j.chains[origin][n]
	for seq, e := range c.waiting {
		if j.past(&e) {
			c.parked[seq] = e
			delete(c.waiting, seq)
		}
	}
	if c.head().Seq <= s.Seq || slot.Epoch(c.events[s.Seq].Epoch) > s.Epoch {
		return // nothing, or the next epoch has begun behind the seal
	}
	for _, e := range c.events[s.Seq:] {
		c.parked[e.Head.Seq] = e
	}
	j.w.say("%s cuts slot %d of region %d from event %d to %d", j.r.name, n, origin, c.head().Seq, s.Seq)
	c.events = c.events[:s.Seq:s.Seq]
	c.applied = min(c.applied, s.Seq)
	j.refold(n)
}

// refold makes a slot's rows anew from its chains.
func (j *journal) refold(n int) {
	for gid := range j.rows {
		if slot.Of(string(gid)) == n {
			delete(j.rows, gid)
			delete(j.carried, gid)
		}
	}
	var all []record.Event
	for o := range j.chains {
		all = append(all, j.chains[o][n].events...)
	}
	slices.SortStableFunc(all, func(a, b record.Event) int { return cmp.Compare(a.Epoch, b.Epoch) })
	for i := range all {
		j.fold(&all[i])
	}
}

// parkedPast gives what was taken out past a seal, in its order.
func (j *journal) parkedPast(n int, s *slot.Seal) (out []record.Event) {
	c := &j.chains[s.Epoch.Region()-1][n]
	for _, seq := range slices.Sorted(maps.Keys(c.parked)) {
		if e := c.parked[seq]; slot.Epoch(e.Epoch) <= s.Epoch && e.Head.Seq > s.Seq {
			out = append(out, e)
		}
	}
	return out
}
