package replica

import (
	"slices"
	"time"

	"github.com/lockstep-tx/lockstep/coordinator/record"
	"github.com/lockstep-tx/lockstep/region/journal"
)

// latest finds an event by slot and number in a batch: of several epochs the last.
func latest(events []record.Event, n int, seq uint64) (out record.Event, ok bool) {
	for _, e := range events {
		if e.Slot == n && e.Head.Seq == seq && e.Epoch > out.Epoch {
			out, ok = e, true
		}
	}
	return out, ok
}

// pastSeal gives the events of a lane from a number on that are past a forced seal: they wait for none before them, which
// may have gone to the divergence record already.
func (p *puller) pastSeal(n int, l *lane, from uint64) (out []record.Event) {
	for seq, e := range l.events {
		if seq >= from && p.o.past(n, seq, e.Epoch) {
			out = append(out, e)
		}
	}
	return out
}

// diverged tells of events after a forced seal, and of chains that were cut back to one.
func (p *puller) diverged(res *journal.Result) {
	for _, d := range res.Diverged {
		p.s.m.diverged.WithLabelValues(p.o.peer.Name).Inc()
		seal := p.s.apply.ForcedSeal(p.o.peer.Index, d.Slot)
		p.o.sealed(d.Slot, seal)
		if seal != nil && p.o.tellOnce(d.Slot) {
			p.s.log.Warn("events of another region come after the forced seal; they are kept as divergences and not applied", "origin", p.o.peer.Name,
				"slot", d.Slot, "seq", d.Seq, "epoch", d.Epoch, "gid", string(d.Gid), "sealed at", seal.Seq)
		}
	}
	p.s.cutsMade(res.Cuts)
}

// bound takes a lane back where its chain was cut.
func (p *puller) bound(l *lane, m *journal.Mark) {
	if m.Bounded <= l.bounded {
		return
	}
	l.bounded = m.Bounded
	seal := p.s.apply.ForcedSeal(p.o.peer.Index, m.Slot)
	if seal == nil {
		return
	}
	p.o.sealed(m.Slot, seal)
	l.applied = min(l.applied, seal.Seq)
	l.promise = min(l.promise, seal.Seq)
	for seq, e := range l.events {
		if e.Epoch > uint64(seal.Epoch) {
			l.promise = max(l.promise, seq)
		}
	}
}

// judged drops what diverged from a lane, and keeps aside what could not be judged yet.
func (p *puller) judged(l *lane, n int, b *journal.Batch, res *journal.Result) (progress bool) {
	gone := map[[2]uint64]bool{}
	for _, d := range res.Diverged {
		if d.Slot == n {
			gone[[2]uint64{d.Seq, d.Epoch}] = true
		}
	}
	for at := range gone {
		if e, ok := l.events[at[0]]; ok && e.Epoch == at[1] {
			delete(l.events, at[0])
			p.held--
			progress = true
		}
	}
	before := len(l.aside)
	l.aside = slices.DeleteFunc(l.aside, func(e record.Event) bool {
		return gone[[2]uint64{e.Head.Seq, e.Epoch}] || e.Head.Seq <= l.applied &&
			slices.ContainsFunc(b.Events, func(x record.Event) bool { return x.Slot == n && x.Head == e.Head })
	})
	p.held -= before - len(l.aside)
	for _, e := range res.Again {
		if e.Slot == n {
			p.putAside(l, e)
			l.waits = time.Now().Add(waitEvery)
		}
	}
	return progress
}
