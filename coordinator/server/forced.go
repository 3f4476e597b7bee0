package server

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/lockstep-tx/lockstep/coordinator/engine"
	"github.com/lockstep-tx/lockstep/coordinator/record"
	"github.com/lockstep-tx/lockstep/coordinator/txn"
	"github.com/lockstep-tx/lockstep/region/arbiter"
	"github.com/lockstep-tx/lockstep/region/failover/recovery"
	"github.com/lockstep-tx/lockstep/region/slot"
)

// This file brings together what a slot's new owner needs after its region was lost (ADR 9): what the journal and the arbiter
// know of it, and when its accounts may be homes.

// arrivals is place.Config.Arrivals: what came is in the own journal, and where nobody wrote the seal, also at the arbiter.
func (s *Server) arrivals(ctx context.Context, moves []engine.Move) ([]engine.Arrival, error) {
	out := make([]engine.Arrival, len(moves))
	var forced, at []int
	marks, err := s.heads(ctx, moves)
	if err != nil {
		return nil, err
	}
	for i, m := range moves {
		seal := m.Owner.Seal
		if !seal.Forced {
			out[i].Live, out[i].Err = s.regions.replica.Carried(ctx, m.Slot, seal)
			continue
		}
		reached, err := marks[[2]int{seal.Epoch.Region(), m.Slot}] == head{seal.Seq, seal.Chain}, error(nil)
		if !reached { // it may be past the seal, or contradict it
			reached, err = s.journal.Reached(ctx, m.Slot, seal)
		}
		switch {
		case err != nil:
			out[i].Err = err
		case !reached:
			out[i].Err = engine.ErrNotYet
		default:
			forced, at = append(forced, m.Slot), append(at, i)
		}
	}
	found, err := s.readLost(ctx, forced, marks)
	if err != nil {
		return nil, err
	}
	for k, i := range at {
		out[i].Live, out[i].Err = found[k].records, found[k].err
	}
	return out, nil
}

// readLost gives what is left in slots that were taken. What is to be posted of it is noted in the same go, and so are the other
// slots of which the journal has all, for accounts wait for all of them: what was read of those is given when they are asked
// for, once.
func (s *Server) readLost(ctx context.Context, slots []int, marks map[[2]int]head) ([]left, error) {
	p := &s.regions.posts
	p.mu.Lock()
	defer p.mu.Unlock()
	owners := s.regions.place.Owners()
	var wanted []int
	for _, n := range slots {
		if r, ok := p.read[n]; !ok || r.epoch != owners[n].Epoch {
			wanted = append(wanted, n)
		}
	}
	if len(wanted) > 0 {
		asked := len(wanted)
		for n, o := range owners {
			reached := o.Lost != 0 && o.Seal != nil && (o.Seal.Seq == 0 || marks[[2]int{o.Seal.Epoch.Region(), n}] == head{o.Seal.Seq, o.Seal.Chain})
			if reached && p.epochs[n] != o.Epoch && !slices.Contains(wanted[:asked], n) {
				wanted = append(wanted, n)
			}
		}
		found, err := s.readPosts(ctx, owners, wanted)
		if err != nil {
			return nil, err
		}
		for i, n := range wanted {
			p.read[n] = readAt{owners[n].Epoch, found[i]}
		}
	}
	out := make([]left, len(slots))
	for i, n := range slots {
		out[i] = p.read[n].left
		delete(p.read, n)
	}
	return out, nil
}

// reached asks the journal, which may be opened later than the place is made.
func (s *Server) reached(ctx context.Context, n int, seal *slot.Seal) (bool, error) {
	return s.journal.Reached(ctx, n, seal)
}

// head is where a chain ends, as seals say it.
type head struct {
	seq   uint64
	chain string
}

// heads gives where chains end in the own journal, by origin and slot, if any of the moves is forced: one look instead of many.
func (s *Server) heads(ctx context.Context, moves []engine.Move) (map[[2]int]head, error) {
	if !slices.ContainsFunc(moves, func(m engine.Move) bool { return m.Owner.Seal.Forced }) {
		return nil, nil
	}
	marks, err := s.journal.Marks(ctx)
	out := make(map[[2]int]head, len(marks))
	for _, m := range marks {
		out[[2]int{m.Origin, m.Slot}] = head{m.Head.Seq, hex.EncodeToString(m.Head.Chain[:])}
	}
	return out, err
}

// left is what is to be driven on in a slot that was taken.
type left struct {
	records [][]byte
	err     error
	// unposted is why it is not noted what is to be posted of them.
	unposted error
}

// readsAtOnce bounds the slots whose decisions are read from the arbiter side by side: it may be far away.
const readsAtOnce = 32

// recovered gives what journal and arbiter know of slots that were taken. Nothing is decided any more in the epochs that were
// lost, so that of many slots one look at the arbiter says in which there is anything to read.
func (s *Server) recovered(ctx context.Context, slots []int) ([]left, error) {
	if len(slots) == 0 {
		return nil, nil
	}
	arb := s.regions.arbiter
	var dep arbiter.Deployment
	var decided map[int][]string // nil where all are read
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() (err error) { dep, err = arb.Deployment(gctx); return err }) // as it is now: it may have been restored since this process began
	if len(slots) > readsAtOnce {
		g.Go(func() (err error) { decided, err = arb.AllDecisions(gctx); return err })
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	open, err := s.journal.AnyUnfinished(ctx, slots)
	if err != nil {
		return nil, err
	}
	out := make([]left, len(slots))
	g = &errgroup.Group{}
	g.SetLimit(readsAtOnce)
	for i, n := range slots {
		if decided != nil && len(decided[n]) == 0 && !open[n] {
			continue
		}
		g.Go(func() error {
			var bodies map[string][]byte
			if decided == nil || len(decided[n]) > 0 {
				bodies, out[i].err = arb.DecisionsOf(ctx, n)
			}
			if out[i].err == nil {
				out[i].records, out[i].err = s.driven(ctx, n, bodies, uint64(dep.RestoredEpoch))
			}
			return nil // the others are read all the same
		})
	}
	return out, g.Wait()
}

// driven is recovered for one slot, with the arbiter's decisions at hand.
func (s *Server) driven(ctx context.Context, n int, decisions map[string][]byte, restored uint64) ([][]byte, error) {
	open, err := s.journal.Unfinished(ctx, n)
	if err != nil {
		return nil, err
	}
	k := recovery.Known{Decisions: map[txn.Gid][]byte{}, RestoredEpoch: restored, AtMillis: time.Now().UnixMilli(),
		Finished: func(gid txn.Gid) (bool, error) {
			tx, err := s.journal.Get(ctx, gid)
			return tx != nil && tx.State.Phase.Finished(), err
		}}
	if k.Ended, err = s.ended(ctx, n); err != nil {
		return nil, err
	}
	for gid, body := range decisions {
		k.Decisions[txn.Gid(gid)] = body
	}
	for _, l := range open {
		k.Records = append(k.Records, l.Record)
	}
	return recovery.Drive(k)
}

// ended says that the owner of a slot that was taken had written the end of its epoch: the forced seal is where it is.
func (s *Server) ended(ctx context.Context, n int) (bool, error) {
	seal := s.regions.place.Owners()[n].Seal
	if seal == nil || seal.Seq == 0 {
		return false, nil
	}
	events, err := s.journal.EventsAfter(ctx, seal.Epoch.Region(), n, seal.Seq-1, 1)
	return len(events) > 0 && events[0].Kind == record.KindSeal && events[0].Head.Seq == seal.Seq && events[0].Epoch == uint64(seal.Epoch), err
}

// posts are the effects of what was decided in slots that were taken, by the slot of their account: they are posted before
// the accounts may spend.
type posts struct {
	mu     sync.Mutex
	epochs [slot.Count]slot.Epoch // for which they are noted in owed
	owed   map[int][]*post
	read   map[int]readAt
}

// readAt is what was read of a slot that was taken.
type readAt struct {
	epoch slot.Epoch
	left
}

type post struct {
	call    *engine.Call
	done    bool
	refused bool
	said    string // by the participant that does not take it
}

// errBehind: it is on its way.
var errBehind = errors.New("the copies do not have everything of the lost region yet")

// takenFrom gives the slots that were taken by force from a region and are not settled, whoever took them: accounts are touched from
// slots anywhere.
func takenFrom(owners *slot.Map, lost int) map[int]slot.Epoch {
	out := map[int]slot.Epoch{}
	for _, n := range takenSlots(owners, lost) {
		out[n] = owners[n].Epoch
	}
	return out
}

// takenSlots gives the slots of takenFrom, in order. It is asked for every slot that is adopted.
func takenSlots(owners *slot.Map, lost int) (out []int) {
	for n := range owners {
		if o := &owners[n]; o.Lost != 0 && o.Lost.Region() == lost || o.Forced() && o.Seal != nil && o.Seal.Epoch.Region() == lost {
			out = append(out, n)
		}
	}
	return out
}

// caughtUp is place.Config.CaughtUp.
func (s *Server) caughtUp(ctx context.Context, m engine.Move) error {
	owners := s.regions.place.Owners()
	lost := m.Owner.Seal.Epoch.Region()
	taken := takenSlots(owners, lost)
	for _, n := range taken {
		o := &owners[n]
		if o.Seal == nil || o.Lost != 0 && o.Seal.Epoch != o.Lost {
			return fmt.Errorf("%w: slot %d has no seal", errBehind, n)
		}
		if have := s.regions.applier.Have(lost, n); have < o.Seal.Seq {
			return fmt.Errorf("%w: of slot %d events up to %d are applied, its seal is %d", errBehind, n, have, o.Seal.Seq)
		}
	}
	if err := s.posted(ctx, owners, taken, m.Slot); err != nil {
		return err
	}
	return s.rebuilt(ctx, owners, lost, m.Slot)
}

// posted posts what was decided in slots that were taken, as far as accounts of slot n are concerned; nil when all of it is.
func (s *Server) posted(ctx context.Context, owners *slot.Map, taken []int, n int) error {
	p := &s.regions.posts
	p.mu.Lock()
	defer p.mu.Unlock()
	fresh := slices.DeleteFunc(taken, func(k int) bool { return p.epochs[k] == owners[k].Epoch })
	found, err := s.readPosts(ctx, owners, fresh)
	if err != nil {
		return err
	}
	for _, l := range found {
		if l.unposted != nil {
			return l.unposted
		}
	}
	// What another coordinator of this region took is not asked for here.
	maps.DeleteFunc(p.read, func(k int, r readAt) bool { return owners[k].Lost == 0 || owners[k].Epoch != r.epoch })
	return s.post(p.owed[n])
}

// readPosts reads what is left in slots that were taken, and notes what is to be posted of it where that is not noted; posts.mu is
// held.
func (s *Server) readPosts(ctx context.Context, owners *slot.Map, slots []int) ([]left, error) {
	p := &s.regions.posts
	found, err := s.recovered(ctx, slots)
	if err != nil {
		return nil, err
	}
	for i, n := range slots {
		l := &found[i]
		if l.unposted = l.err; l.err != nil || p.epochs[n] == owners[n].Epoch {
			continue
		}
		if l.unposted = s.owe(n, l.records); l.unposted == nil {
			p.epochs[n] = owners[n].Epoch
		}
	}
	return found, nil
}

// owe notes the effects of a slot's records: all of them or none.
func (s *Server) owe(n int, records [][]byte) error {
	var all []*engine.Call
	for _, raw := range records {
		tx, err := record.Decode(raw)
		if err != nil {
			return err
		}
		if !tx.State.Phase.Commit() || tx.State.Mode != txn.ModeTCC {
			continue
		}
		calls, known := s.regions.applier.Posts(tx, n, s.cfg.Region)
		if !known {
			return fmt.Errorf("%w: a participant of %q is not registered", errBehind, string(tx.State.Gid))
		}
		all = append(all, calls...)
	}
	for _, c := range all {
		s.regions.posts.owed[c.AccountSlot] = append(s.regions.posts.owed[c.AccountSlot], &post{call: c})
	}
	return nil
}

// post posts what is owed to accounts of a slot; nil when all of it is.
func (s *Server) post(owed []*post) error {
	s.call(owed)
	for _, p := range owed {
		if !p.done {
			return fmt.Errorf("%w: branch %s of %q is decided and not posted: %s", errBehind, p.call.Branch, string(p.call.Gid), p.said)
		}
	}
	return nil
}

// call makes those of the calls that are not done, all at once, and waits for their answers.
func (s *Server) call(owed []*post) {
	var all sync.WaitGroup
	for _, p := range owed {
		if p.done {
			continue
		}
		all.Add(1)
		s.invoker.Start(p.call, func(r engine.CallResult) {
			p.done, p.refused, p.said = r.Outcome == txn.Done, r.Outcome == txn.Refused, r.Text
			all.Done()
		})
	}
	all.Wait() // the invoker ends its calls with the process
}

// cut is place.Config.Cut.
func (s *Server) cut(ctx context.Context, n int, seal slot.Seal, rows []engine.Row, events []record.Event) ([]record.Event, error) {
	was, err := s.journal.Cuts(ctx, s.regions.place.Index())
	if err != nil {
		return nil, err
	}
	if was[n] != seal {
		// Until it is cut, no event of the owners behind the seal is applied here.
		if err := s.journal.Append(ctx, rows); err != nil {
			return nil, err
		}
		if err := s.journal.AppendEvents(ctx, events); err != nil {
			return nil, err
		}
	}
	return s.regions.replica.Returned(ctx, n, seal)
}

// noted is place.Config.Noted.
func (s *Server) noted(ctx context.Context, n int, gid txn.Gid) (bool, error) {
	list, err := s.journal.Diverged(ctx, s.regions.place.Index(), n)
	for _, d := range list {
		if d.Gid == gid && d.SettledAt != 0 {
			return true, err
		}
	}
	return false, err
}

// closeDivergences is place.Config.Close.
func (s *Server) closeDivergences(ctx context.Context, n int, epoch slot.Epoch) error {
	list, err := s.journal.Diverged(ctx, epoch.Region(), n)
	if err != nil {
		return err
	}
	for _, d := range list {
		if d.SettledAt != 0 || d.Sealed == 0 || d.Epoch > uint64(epoch) {
			continue
		}
		if err := s.journal.SettleDivergence(ctx, d.ID, "the return of the lost region was worked off"); err != nil {
			return err
		}
	}
	return nil
}

// late is admin.Late.
type late struct{ s *Server }

// Record is admin.Late's: what the store still has of a slot that was taken from this region, or what came past a seal.
func (l late) Record(ctx context.Context, gid txn.Gid) (*record.Tx, error) {
	raw, err := l.s.store.Get(ctx, gid)
	if err != nil {
		return nil, err
	}
	if raw != nil {
		return record.Decode(raw)
	}
	dep := l.s.regions.place.Deployment()
	for i := range dep.Regions {
		if tx, err := l.s.divergedDecision(ctx, i+1, slot.Of(string(gid)), gid); err != nil || tx != nil {
			return tx, err
		}
	}
	return nil, nil
}

// divergedDecision gives a transaction as a region had decided it past a forced seal; nil where none is known.
func (s *Server) divergedDecision(ctx context.Context, index, n int, gid txn.Gid) (*record.Tx, error) {
	list, err := s.journal.Diverged(ctx, index, n)
	if err != nil {
		return nil, err
	}
	for _, d := range list {
		if d.Gid != gid {
			continue
		}
		if e, err := record.DecodeEvent(d.Event); err == nil && e.Kind == record.KindDecision {
			return record.FromParts(e.Body, nil, e.Head, record.Head{}, e.Epoch, 0)
		}
	}
	return nil, nil
}

// decidedPast is place.Config.Decided.
func (s *Server) decidedPast(ctx context.Context, n int, gid txn.Gid) (*record.Tx, error) {
	return s.divergedDecision(ctx, s.regions.place.Index(), n, gid)
}

// cancelFrom is place.Config.Cancel.
func (s *Server) cancelFrom(_ context.Context, m engine.Move, tx *record.Tx) error {
	st := &tx.State
	var owed []*post
	for i := range st.Branches {
		b := &st.Branches[i]
		if b.Message || b.Cancel == "" || st.Mode != txn.ModeTCC {
			continue
		}
		owed = append(owed, &post{call: ending(m, st.Gid, b, txn.OpCancel, st.Opt.Protocol, st.RequestTimeout())})
	}
	return s.post(owed)
}

// endTry is place.Config.End.
func (s *Server) endTry(_ context.Context, m engine.Move, try recovery.Try, op txn.Op) error {
	b := recovery.BranchOf(try)
	return s.post([]*post{{call: ending(m, try.Gid, &b, op, txn.ProtocolHTTP, txn.DefaultRequestTimeout)}})
}

// ending is the call that ends a branch in a slot's epoch; whoever sends it knows the decision.
func ending(m engine.Move, gid txn.Gid, b *txn.Branch, op txn.Op, protocol txn.Protocol, timeout time.Duration) *engine.Call {
	url := b.Cancel
	if op == txn.OpConfirm {
		url = b.Confirm
	}
	return &engine.Call{
		Gid: gid, Slot: m.Slot, Epoch: uint64(m.Owner.Epoch), Mode: txn.ModeTCC, Branch: b.ID, Op: op, OpWord: op.String(), URL: url, Protocol: protocol,
		Payload: b.Payload, Timeout: timeout, Account: b.Account, AccountSlot: m.Slot, AccountEpoch: uint64(m.Owner.Epoch),
	}
}

// Post is admin.Late's. What an account has no money for any more at its home is refused there, and all of it can be repeated
// when the account was paid: past its limit in one region alone, its copies would never agree again (ADR 9).
func (l late) Post(_ context.Context, tx *record.Tx) error {
	var owed []*post
	for _, region := range l.s.regions.place.Deployment().Regions {
		calls, known := l.s.regions.applier.Posts(tx, slot.Of(string(tx.State.Gid)), region)
		if !known {
			return fmt.Errorf("a participant of %q is not registered; next: lockstep participant list", string(tx.State.Gid))
		}
		for _, c := range calls {
			owed = append(owed, &post{call: c})
		}
	}
	return l.s.post(owed)
}

// findDoubts looks for what is in doubt in slots that this process holds.
func (s *Server) findDoubts(ctx context.Context) {
	s.regions.place.FindDoubts(ctx, s.runner.LocalSlots(), s.runner.Do)
}
