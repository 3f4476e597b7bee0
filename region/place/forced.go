package place

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/lockstep-tx/lockstep/coordinator/engine"
	"github.com/lockstep-tx/lockstep/coordinator/record"
	"github.com/lockstep-tx/lockstep/coordinator/txn"
	"github.com/lockstep-tx/lockstep/region/registry"
	"github.com/lockstep-tx/lockstep/region/slot"
)

// This file is the part of a forced failover that coordinators do beside moving records (ADR 9): accounts become homes without
// a release, and a region that was lost hands back what it has.

// Arrivals is engine.Regions's.
func (p *Place) Arrivals(ctx context.Context, moves []engine.Move) ([]engine.Arrival, error) {
	var seals map[int][]slot.Seal
	var out []engine.Arrival
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() (err error) { seals, err = p.cfg.Arbiter.AllSeals(gctx); return err })
	g.Go(func() (err error) { out, err = p.cfg.Arrivals(gctx, moves); return err })
	if err := g.Wait(); err != nil {
		return nil, err
	}
	if err := p.sinceEarlier(ctx, moves, seals, out); err != nil {
		return nil, err
	}
	for i, m := range moves {
		if out[i].Err == nil {
			out[i].Own, out[i].Err = p.ended(m, seals[m.Slot])
		}
	}
	return out, nil
}

// sinceEarlier has what came with slots that were taken by force wait for the seals of earlier epochs too. The epoch that was lost
// may have left no event, and then nothing has waited for what a third region did before it: its decisions, and what it carried
// over. What was read before that was here is read again.
func (p *Place) sinceEarlier(ctx context.Context, moves []engine.Move, seals map[int][]slot.Seal, out []engine.Arrival) error {
	var late []engine.Move
	var at []int
	for i, m := range moves {
		if out[i].Err != nil || !m.Owner.Seal.Forced {
			continue
		}
		asked := false
		for _, s := range seals[m.Slot] {
			if s.Epoch >= m.Owner.Seal.Epoch || s.Epoch.Region() == p.index || s.Epoch.Region() == m.Owner.Seal.Epoch.Region() || slot.Overtaken(seals[m.Slot], s) {
				continue
			}
			asked = true
			if reached, err := p.cfg.Reached(ctx, m.Slot, &s); err != nil {
				out[i].Err = err
			} else if !reached {
				out[i].Err = engine.ErrNotYet
			}
		}
		if asked && out[i].Err == nil {
			late, at = append(late, m), append(at, i)
		}
	}
	if len(late) == 0 {
		return nil
	}
	again, err := p.cfg.Arrivals(ctx, late)
	if err != nil {
		return err
	}
	for k, i := range at {
		out[i] = again[k]
	}
	return nil
}

// ended gives where the last of this region's epochs of a slot before the move's owner ended.
func (p *Place) ended(m engine.Move, seals []slot.Seal) (last record.Head, err error) {
	for _, s := range seals { // oldest first
		if s.Epoch.Region() != p.index || s.Epoch >= m.Owner.Epoch {
			continue
		}
		chain, err := hex.DecodeString(s.Chain)
		if err != nil || len(chain) != len(last.Chain) && s.Seq != 0 {
			return last, fmt.Errorf("the seal of slot %d at epoch %d has no chain: %q", m.Slot, s.Epoch, s.Chain)
		}
		last = record.Head{Seq: s.Seq}
		copy(last.Chain[:], chain)
	}
	return last, nil
}

// Lost is engine.Regions's.
func (p *Place) Lost(n int) *slot.Seal {
	if all := p.lost.Load(); all != nil {
		return all[n]
	}
	return nil
}

// lostEvery is how often the forced seals are read while one may have been written.
const lostEvery = time.Second

// followLosses keeps the forced seals of this region's own epochs: at the start, and while the owners say that somebody's slots
// were taken.
func (p *Place) followLosses(ctx context.Context) {
	for ctx.Err() == nil {
		changed := p.Changed()
		if m := p.owners.Load(); m != nil && (p.lost.Load() == nil || anyLost(m)) {
			if err := p.readLosses(ctx); err != nil && ctx.Err() == nil {
				p.cfg.Log.Warn("the seals of slots that were taken could not be read; trying again", "err", err)
			}
		}
		select {
		case <-changed:
		case <-time.After(lostEvery):
		case <-ctx.Done():
		}
	}
}

func anyLost(m *slot.Map) bool {
	for _, o := range m {
		if o.Lost != 0 {
			return true
		}
	}
	return false
}

func (p *Place) readLosses(ctx context.Context) error {
	rctx, cancel := context.WithTimeout(ctx, returnedTimeout)
	defer cancel()
	seals, err := p.cfg.Arbiter.AllSeals(rctx)
	if err != nil {
		return err
	}
	owners := p.owners.Load()
	var all [slot.Count]*slot.Seal
	for n, list := range seals {
		for _, s := range list { // oldest first
			// What was taken after its seal was written is no less lost.
			if s.Epoch.Region() == p.index && (s.Forced || owners[n].Lost == s.Epoch) {
				s.Forced = true
				all[n] = &s
			}
		}
	}
	p.lost.Store(&all)
	return nil
}

// Cut is engine.Regions's. The region's participants come first: what they hold of the slot's accounts lives elsewhere now.
func (p *Place) Cut(ctx context.Context, m engine.Move, seal *slot.Seal, rows []engine.Row, events []record.Event) ([]record.Event, error) {
	parts, err := p.movable()
	if err != nil {
		return nil, err
	}
	for _, part := range parts {
		if _, err := p.post(ctx, part.Endpoints[p.cfg.Self], "/lockstep/homes", []home{{Slot: m.Slot, Epoch: m.Owner.Epoch}}); err != nil {
			return nil, fmt.Errorf("participant %s: %w", part.Name, err)
		}
	}
	return p.cfg.Cut(ctx, m.Slot, *seal, rows, events)
}

// Returned is engine.Regions's. Where the store has a transaction undecided that the journal has decided, the store is an older one,
// restored from a backup, and the journal is believed: as undecided its owner would abort what a client was told is committed.
func (p *Place) Returned(ctx context.Context, m engine.Move, tx *record.Tx) error {
	cctx, cancel := context.WithTimeout(ctx, returnedTimeout)
	defer cancel()
	if !tx.State.Phase.Decided() {
		decided, err := p.cfg.Decided(cctx, m.Slot, tx.State.Gid)
		if err != nil {
			return err
		}
		if decided != nil {
			p.cfg.Log.Error("the store has a transaction undecided that the journal has decided: it is older than the journal; was it restored from a backup? The journal's decision is handed back",
				"gid", tx.State.Gid, "slot", m.Slot, "decided", decided.State.Phase.String())
			tx = decided
		}
	}
	rep, err := p.Forward(cctx, m.Owner.Region, engine.Request{Gid: tx.State.Gid, Event: engine.Returned{Tx: *tx}, Want: engine.WantAccepted, Border: true})
	var refused *txn.Error
	switch {
	case errors.As(err, &refused) && refused.Code == txn.CodeIncomplete:
		// The same decision, and here is the whole record: what only the lost region knew of is posted from it.
		return p.worked(m, tx, p.cfg.Post(cctx, tx))
	case errors.As(err, &refused):
		if noted, nerr := p.cfg.Noted(cctx, m.Slot, tx.State.Gid); nerr != nil || noted {
			p.noteDiverged(m.Slot, tx.State.Gid, "")
			return nerr
		}
		p.noteDiverged(m.Slot, tx.State.Gid, refused.Text)
		return fmt.Errorf("%w: %w", engine.ErrDiverged, err)
	case err != nil:
		return err
	}
	switch here := &rep.State; {
	case !here.Phase.Decided() || !knowsMore(&tx.State, here):
		err = nil
	case here.Phase.Commit():
		err = p.cfg.Post(ctx, tx)
	default:
		err = p.cfg.Cancel(ctx, m, tx) // a participant may hold a try that only this record names
	}
	return p.worked(m, tx, err)
}

// worked notes whether a transaction is worked off. What a participant does not take, such as a debit of an account that has
// spent the money, does not hold up the others of its slot: it is named, and tried again.
func (p *Place) worked(m engine.Move, tx *record.Tx, err error) error {
	if err == nil {
		p.noteDiverged(m.Slot, tx.State.Gid, "")
		return nil
	}
	p.noteDiverged(m.Slot, tx.State.Gid, "not all of its effects are posted yet: "+err.Error())
	return fmt.Errorf("%w: %w", engine.ErrDiverged, err)
}

// knowsMore says that a lost region's record has branches that the owner does not have, or ended by name alone: it committed
// the transaction by evidence or on an operator's word. Only the record can post those to all copies.
func knowsMore(theirs, here *txn.State) bool {
	known := map[txn.BranchID]string{}
	for i := range here.Branches {
		known[here.Branches[i].ID] = here.Branches[i].Confirm
	}
	for i := range theirs.Branches {
		b := &theirs.Branches[i]
		if confirm, ok := known[b.ID]; !ok || confirm != b.Confirm {
			return true
		}
	}
	return false
}

const returnedTimeout = 5 * time.Second

// noteDiverged keeps why a transaction was not taken over; "" forgets it.
func (p *Place) noteDiverged(n int, gid txn.Gid, why string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if why == "" {
		delete(p.diverged, gid)
		return
	}
	p.diverged[gid] = Diverged{Slot: n, Gid: string(gid), Why: why}
}

// Diverged is a transaction that this region had when it was lost, and that its owner has not taken over.
type Diverged struct {
	Slot int    `json:"slot"`
	Gid  string `json:"gid"`
	Why  string `json:"why"`
}

// Diverged lists them, in no order.
func (p *Place) Diverged() []Diverged {
	p.mu.Lock()
	defer p.mu.Unlock()
	out := make([]Diverged, 0, len(p.diverged))
	for _, d := range p.diverged {
		out = append(out, d)
	}
	return out
}

// Settled is engine.Regions's.
func (p *Place) Settled(ctx context.Context, m engine.Move) error {
	to, err := m.Owner.Settled()
	if err != nil {
		return err
	}
	if err := p.cfg.Close(ctx, m.Slot, m.Owner.Lost); err != nil {
		return err
	}
	return p.change(ctx, m, to)
}

// adoptForced makes a participant's copies of slots homes, and lifts what they were not to spend where the loss is worked off.
func (p *Place) adoptForced(ctx context.Context, part *registry.Participant, moves []engine.Move) error {
	endpoint := part.Endpoints[p.cfg.Self]
	byRisk := map[slot.Risk][]home{}
	var lifted []home
	var closed []engine.Move
	var late []error // of slots that cannot be adopted yet; the others are
	for _, m := range moves {
		if m.Owner.Seal == nil {
			late = append(late, fmt.Errorf("slot %d was taken by force and has no seal", m.Slot))
			continue
		}
		at, risk := home{Slot: m.Slot, Epoch: m.Owner.Epoch}, m.Owner.Risk
		if err := p.cfg.CaughtUp(ctx, m); err != nil {
			late = append(late, fmt.Errorf("slot %d: %w", m.Slot, err))
			continue
		}
		if risk.Policy == "" {
			risk.Policy = slot.Allow
		}
		// An account is touched from slots of all kinds: it is free when nothing of the lost region is left anywhere.
		if !p.lossOf(m.Owner.Seal.Epoch.Region()) {
			lifted, closed = append(lifted, at), append(closed, m)
		}
		byRisk[risk] = append(byRisk[risk], at)
	}
	for risk, slots := range byRisk {
		q := url.Values{"forced": {"true"}, "at_risk": {string(risk.Policy)}}
		if risk.Policy == slot.Limit {
			q.Set("cap", fmt.Sprint(risk.Cap))
		}
		if _, err := p.post(ctx, endpoint, "/lockstep/adopt?"+q.Encode(), taken(slots)); err != nil {
			return err
		}
	}
	if len(lifted) == 0 {
		return errors.Join(late...)
	}
	for _, m := range closed {
		if err := p.cfg.Close(ctx, m.Slot, m.Owner.Seal.Epoch); err != nil {
			return err
		}
	}
	_, err := p.post(ctx, endpoint, "/lockstep/risk", taken(lifted))
	return errors.Join(append(late, err)...)
}

// lossOf says that slots that were taken from a region are not worked off.
func (p *Place) lossOf(region int) bool {
	m := p.owners.Load()
	return m == nil || slices.ContainsFunc(m[:], func(o slot.Owner) bool { return o.Lost != 0 && o.Lost.Region() == region })
}

// taken is a list of slots with their epochs, as participants take it.
func taken(slots []home) map[string]any {
	out := make([]map[string]any, len(slots))
	for i, h := range slots {
		out[i] = map[string]any{"slot": h.Slot, "epoch": h.Epoch}
	}
	return map[string]any{"slots": out}
}
