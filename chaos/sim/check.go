package sim

import (
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/lockstep-tx/lockstep/coordinator/engine"
	"github.com/lockstep-tx/lockstep/coordinator/record"
	"github.com/lockstep-tx/lockstep/coordinator/txn"
	"github.com/lockstep-tx/lockstep/region/failover"
	"github.com/lockstep-tx/lockstep/region/slot"
)

// ErrNothingProven: a run held, and nothing was committed in it.
var ErrNothingProven = errors.New("nothing was committed: nothing is proven")

// changed looks at a transition that is durable: nothing is decided twice (G1).
func (w *World) changed(n *node, ch engine.Change) {
	commit := ch.Phase.Commit()
	if was, ok := w.decided[ch.Gid]; ok && was != commit {
		w.fail("%s: %s decides %s, and it was decided otherwise before (G1)", ch.Gid, n.name, ch.Phase)
	}
	w.decided[ch.Gid] = commit
	if ch.Decided {
		w.say("%s: %s is decided %s", n.name, ch.Gid, ch.Phase)
	}
}

// promise notes what clients were told and a journal has that answers while a slot is taken, or that of the region which decided
// it and lives: the new owner must know it (G1, G10).
func (w *World) promise(n int, lost slot.Epoch) {
	for _, c := range w.clients {
		if c.slot != n || c.told == txn.PhaseNone {
			continue
		}
		for _, r := range w.regions {
			tx := r.journal.get(c.gid)
			if r.index() == lost.Region() || tx == nil {
				continue
			}
			if w.arbited(r) || slot.Epoch(tx.DecisionEpoch).Region() == r.index() {
				w.promised[c.gid] = c.told.Commit()
			}
		}
	}
}

// keepsPromises asks the new owner of a slot for them.
func (w *World) keepsPromises(n *node, sl int) {
	for _, gid := range slices.Sorted(maps.Keys(w.promised)) {
		if slot.Of(string(gid)) != sl {
			continue
		}
		n.ask(gid, nil, func(rep engine.Reply, err error) {
			if err == nil && (!rep.State.Phase.Decided() || rep.State.Phase.Commit() != w.promised[gid]) {
				w.fail("%s: its client was told (commit %v), a journal that answered had it, and the new owner says %s (G10)", gid, w.promised[gid], rep.State.Phase)
			}
		})
	}
}

// lost says that a region is gone for good: in liveness mode that is what the script took.
func (w *World) lost(r *region) bool { return w.opt.Mode == Liveness && (r.down || r.cut) }

// open says what has not ended yet; "" when all has. What a region took with it that is gone for good is nobody's to end.
func (w *World) open() string {
	if len(w.clients) < w.opt.Clients {
		return "clients to come"
	}
	if w.oper.begun > 0 && !w.oper.run.Status.Ended() || len(w.oper.wanted) > 0 {
		return fmt.Sprintf("operation %s: %s", w.oper.run.Plan.ID, w.oper.run.Status)
	}
	for _, c := range w.clients {
		o := w.arb.owners[c.slot]
		if !c.done && !w.lost(w.regions[c.at]) && !(w.opt.Mode == Liveness && o.Lost != 0) {
			return fmt.Sprintf("client of %s", c.gid)
		}
	}
	for n, o := range w.arb.owners {
		if why := w.slotOpen(n, o); why != "" {
			return why
		}
	}
	for _, r := range w.regions {
		if w.lost(r) {
			continue
		}
		if why := r.open(); why != "" {
			return why
		}
	}
	return ""
}

func (w *World) slotOpen(n int, o slot.Owner) string {
	if o.Status != slot.Active || o.Lost != 0 && w.opt.Mode == Safety {
		return fmt.Sprintf("slot %d is %s, lost epoch %d", n, o.Status, o.Lost)
	}
	owner := w.named(o.Region)
	if w.lost(owner) {
		return fmt.Sprintf("slot %d belongs to %s, which is gone", n, o.Region)
	}
	if w.opt.Mode == Liveness && o.Seal != nil && w.lost(w.regions[o.Seal.Epoch.Region()-1]) {
		return "" // what was released, or held, is gone with the region
	}
	if f := owner.bank.fences[n]; !f.home || f.blocked {
		return fmt.Sprintf("the accounts of slot %d: %+v", n, f)
	}
	if h := owner.holder(n); h == nil || !h.holds(n) {
		return fmt.Sprintf("nobody holds slot %d", n)
	}
	return ""
}

// open says what of a region has not ended.
func (r *region) open() string {
	for _, n := range r.nodes {
		if !n.up {
			continue
		}
		if len(n.rows) > 0 || n.writing || n.core.Unsaved() > 0 {
			return n.name + " has something to write"
		}
		var open []txn.Gid
		n.core.Each(func(rep engine.Reply) {
			if !rep.State.Phase.Finished() && !(r.w.opt.Mode == Liveness && (rep.State.InDoubt || r.w.excused(&rep.State))) {
				open = append(open, rep.State.Gid)
			}
		})
		if len(open) > 0 {
			return fmt.Sprintf("%s drives %s", n.name, slices.Min(open))
		}
	}
	for o := range r.journal.chains {
		for n := range r.journal.chains[o] {
			c := &r.journal.chains[o][n]
			if src := r.w.regions[o]; r.w.lost(src) {
				for i := range r.seals[n] {
					if s := &r.seals[n][i]; s.Epoch.Region() == o+1 && !r.journal.reached(n, s) {
						return fmt.Sprintf("%s has slot %d of %s to %d, sealed at %d", r.name, n, src.name, c.head().Seq, s.Seq)
					}
				}
			} else if head := src.journal.chains[o][n].head(); head.Seq != c.head().Seq || c.applied < head.Seq {
				return fmt.Sprintf("%s has slot %d of %s to %d, applied to %d, of %d", r.name, n, src.name, c.head().Seq, c.applied, head.Seq)
			}
		}
	}
	for _, row := range r.bank.sortedRows() {
		if row.state == rowTried && r.w.opt.Mode == Safety {
			return fmt.Sprintf("%s/%s is tried at %s", row.gid, row.branch, r.name)
		}
	}
	return ""
}

// excused: a transaction that cannot end while the region that is gone for good has one of its branches' accounts, or what it
// released of them.
func (w *World) excused(s *txn.State) bool {
	for i := range s.Branches {
		n := slot.Of(s.Branches[i].Account)
		if owner := w.named(w.arb.owners[n].Region); w.lost(owner) || !owner.bank.fences[n].home {
			return true
		}
	}
	return false
}

// audit compares what stands in the end with what was promised and what the participants did.
func (w *World) audit() {
	w.res.Begun = len(w.clients)
	finals := map[txn.Gid]*record.Tx{}
	for _, r := range w.regions {
		if w.lost(r) {
			continue
		}
		w.auditJournal(r, finals)
	}
	for _, gid := range slices.Sorted(maps.Keys(finals)) {
		w.auditBranches(finals[gid])
	}
	for _, c := range w.clients {
		tx := finals[c.gid]
		switch {
		case tx != nil && tx.State.Phase.Commit():
			w.res.Committed++
		case tx != nil:
			w.res.Aborted++
		}
		if w.opt.Mode == Safety && c.told != txn.PhaseNone && !(tx == nil && w.forgotten[c.gid]) && (tx == nil || tx.State.Phase.Commit() != c.told.Commit()) {
			w.fail("%s: its client was told %s, and it ended as %+v (G1, G10)", c.gid, c.told, tx)
		}
		if w.opt.Mode == Safety && c.global && tx != nil && w.arb.decisions[c.gid] == nil {
			w.fail("%s ended, and the arbiter has no decision (G2)", c.gid)
		}
	}
	for _, gid := range slices.Sorted(maps.Keys(w.arb.decisions)) {
		body := w.arb.decisions[gid]
		if tx := finals[gid]; tx != nil && w.regions[0].journal.commits(body) != tx.State.Phase.Commit() {
			w.fail("%s: the arbiter has it otherwise than it ended (G1, G2)", gid)
		}
	}
	if w.opt.Mode == Safety {
		w.auditMoney()
	}
	if w.err == nil && w.res.Committed == 0 {
		w.fail("%w", ErrNothingProven)
	}
	if w.oper.run.Status == failover.Aborted {
		w.say("the last operation was aborted: %s", w.oper.run.Failure)
	}
}

// auditJournal: all journals say the same, and in each every transaction that was decided has ended.
func (w *World) auditJournal(r *region, finals map[txn.Gid]*record.Tx) {
	for _, gid := range slices.Sorted(maps.Keys(r.journal.rows)) {
		tx := r.journal.get(gid)
		if tx == nil {
			continue // carried, and decided nowhere: it is in doubt
		}
		if !tx.State.Phase.Finished() && w.opt.Mode == Safety {
			w.fail("%s: %s stands as %s in the journal (G8)", r.name, gid, tx.State.Phase)
		}
		if first := finals[gid]; first == nil {
			finals[gid] = tx
		} else if first.Decision != tx.Decision || first.Finish != tx.Finish {
			w.fail("%s: the journals differ: %s has events %d and %d, another region %d and %d (G6)", gid, r.name, tx.Decision.Seq, tx.Finish.Seq, first.Decision.Seq, first.Finish.Seq)
		}
	}
	if w.opt.Mode == Safety && len(finals) != len(decidedRows(r)) {
		w.fail("%s has %d transactions in its journal, another region %d (G6)", r.name, len(decidedRows(r)), len(finals))
	}
}

func decidedRows(r *region) (out []txn.Gid) {
	for gid, row := range r.journal.rows {
		if row.Closed != nil {
			out = append(out, gid)
		}
	}
	return out
}

// auditBranches: every participant, home or copy, has a committed branch once and an aborted one never (G5, G7).
func (w *World) auditBranches(tx *record.Tx) {
	if !tx.State.Phase.Finished() {
		return
	}
	for i := range tx.State.Branches {
		id := tx.State.Branches[i].ID
		for _, r := range w.regions {
			row := r.bank.rows[rowKey(tx.State.Gid, id)]
			confirmed := row != nil && row.state == rowConfirmed
			if commit := tx.State.Phase.Commit(); confirmed != commit && (w.opt.Mode == Safety || confirmed) {
				w.fail("%s/%s is %s, and at %s it is confirmed: %v", tx.State.Gid, id, tx.State.Phase, r.name, confirmed)
			}
		}
	}
}

// auditMoney: the accounts are equal everywhere, nothing is held, their sum is what it was, and none is below nothing by more
// than what was posted late from the records of a region that had been lost (G7).
func (w *World) auditMoney() {
	sum := int64(0)
	for _, name := range accountNames() {
		first := w.regions[0].bank.accounts[name]
		sum += first.posted
		home := w.named(w.arb.owners[slot.Of(name)].Region)
		for _, r := range w.regions {
			a := r.bank.accounts[name]
			if a.posted != first.posted || a.held != 0 {
				w.fail("%s: %s has %d posted and %d held, %s has %d (G7)", name, r.name, a.posted, a.held, w.regions[0].name, first.posted)
			}
		}
		exposed := int64(0)
		for _, r := range w.regions {
			exposed = max(exposed, r.bank.accounts[name].exposed)
		}
		if first.posted+exposed < 0 {
			w.fail("%s at %s is at %d, and %d of it was posted late (G7)", name, home.name, first.posted, exposed)
		}
	}
	if want := int64(len(accountNames()) * openingBalance); sum != want {
		w.fail("the money is %d, and was %d (G7)", sum, want)
	}
}
