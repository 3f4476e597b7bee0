package server

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/lockstep-tx/lockstep/coordinator/engine"
	"github.com/lockstep-tx/lockstep/coordinator/record"
	"github.com/lockstep-tx/lockstep/coordinator/txn"
	"github.com/lockstep-tx/lockstep/region/slot"
)

// This file rebuilds holds (ADR 9). A transaction of a region that is there may hold money of an account whose home was lost: the
// hold went with it, or the effect of its confirm, which is posted here only with the finish. Before the copy may be spent
// from, what its coordinators know of such transactions is held here again.

// holdsAnswer is what a coordinator knows of its region's transactions after the loss of another one.
type holdsAnswer struct {
	// Slots are those that were taken from the lost region, with their epochs as this coordinator knows them: no try of its goes
	// to an earlier home.
	Slots map[int]slot.Epoch `json:"slots"`
	// Held are the slots that it drives and has loaded. The finishes of these chains up to Heads are not among Records.
	Held  []int          `json:"held"`
	Heads map[int]uint64 `json:"heads"`
	// Records of transactions that are not finished, or whose finish is not published or not applied there, with branches at those
	// slots.
	Records []heldRecord `json:"records"`
}

type heldRecord struct {
	Slot   int    `json:"slot"`
	Record []byte `json:"record"`
}

const (
	holdsBytes = 256 << 20
	// holdsTimeout bounds what a coordinator is asked, holdsPatience the whole: a region that does not answer does not keep all
	// accounts of the lost one from spending. It is said whose holds are not known.
	holdsTimeout  = 2 * time.Second
	holdsPatience = 6 * time.Second
)

// serveHolds answers GET /v1/region/holds?origin=REGION with a holdsAnswer.
func (s *Server) serveHolds(w http.ResponseWriter, r *http.Request) {
	dep := s.regions.place.Deployment()
	lost := dep.Index(r.URL.Query().Get("origin"))
	if lost == 0 {
		http.Error(w, fmt.Sprintf("origin: %q is not one of %v", r.URL.Query().Get("origin"), dep.Regions), http.StatusBadRequest)
		return
	}
	out, err := s.holdsHere(r.Context(), lost)
	if err != nil {
		http.Error(w, err.Error(), http.StatusServiceUnavailable)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(out) // the caller has left, then
}

// holdsHere is the holdsAnswer of this process.
func (s *Server) holdsHere(ctx context.Context, lost int) (*holdsAnswer, error) {
	owners := s.regions.place.Owners()
	if owners == nil {
		return nil, fmt.Errorf("the slots' owners are not known yet")
	}
	out := &holdsAnswer{Slots: takenFrom(owners, lost), Held: []int{}, Heads: map[int]uint64{}}
	in := func(n int) bool { _, ok := out.Slots[n]; return ok }
	add := func(st *txn.State) error {
		tx := &record.Tx{State: *st}
		n := slot.Of(string(st.Gid))
		if len(s.regions.applier.Holds(tx, n, in)) == 0 {
			return nil
		}
		raw, err := tx.Encode()
		out.Records = append(out.Records, heldRecord{n, raw})
		return err
	}
	// First what is live, then what has left memory since: nothing is in between.
	var live []engine.Reply
	if err := s.runner.Ask(ctx, func(c *engine.Core, _ int64) {
		out.Held = append(out.Held, c.Ready()...)
		c.Each(func(r engine.Reply) {
			if r.State.Mode == txn.ModeTCC {
				live = append(live, r)
			}
		})
	}); err != nil {
		return nil, err
	}
	for i := range live {
		if err := add(&live[i].State); err != nil {
			return nil, err
		}
	}
	own := s.regions.place.Index()
	s.regions.replica.Ends(func(origin, n int, seq uint64) {
		if origin == own {
			out.Heads[n] = seq
		}
	})
	for n, have := range s.unapplied(own, out.Heads) {
		events, err := s.journal.EventsAfter(ctx, own, n, have, holdsEvents)
		if err != nil {
			return nil, err
		}
		for _, e := range events {
			if e.Kind != record.KindFinish {
				continue
			}
			tx, err := s.journal.Get(ctx, e.Gid)
			if err == nil && tx != nil {
				err = add(&tx.State)
			}
			if err != nil {
				return nil, err
			}
		}
	}
	return out, nil
}

// unapplied gives the own region's chains whose finishes may not all be applied to the copies here, with how far they are: those
// that are published further, and those of which the journal has more than is published. The regions that are published to
// have applied what they have heard of, or wait for it.
func (s *Server) unapplied(own int, heads map[int]uint64) map[int]uint64 {
	out := map[int]uint64{}
	for n, seq := range heads {
		if have := s.regions.applier.Have(own, n); have < seq {
			out[n] = have
		}
	}
	for _, h := range s.regions.replica.Behind() {
		if _, also := out[h.Slot]; !also {
			out[h.Slot] = h.Head.Seq
		}
	}
	return out
}

// holdsEvents bounds what is read of a chain that is not applied.
const holdsEvents = 10_000

// holds are the holds to be rebuilt at copies of slots that were taken.
type holds struct {
	mu     sync.Mutex
	epochs [slot.Count]slot.Epoch // for which they were asked
	began  time.Time              // when asking began; zero when nothing is left to be done
	fresh  bool                   // of what was heard no call has been made
	heard
}

// heard is what coordinators told: the calls that hold again, by the slot of their account, and how far chains of origins are to
// be applied first. What the own region has published is waited for only where a call is refused: all else that is not applied
// of it is among the calls, and what they lack may be a credit that is not.
type heard struct {
	owed  map[int][]*post
	until map[chain]uint64
	own   map[chain]uint64
}

type chain struct{ origin, slot int }

func newHeard() heard {
	return heard{map[int][]*post{}, map[chain]uint64{}, map[chain]uint64{}}
}

// take adds what was told to what was told before, which other slots asked.
func (h *heard) take(now heard) {
	if h.owed == nil {
		*h = newHeard()
	}
	for n, list := range now.owed {
		h.owed[n] = append(h.owed[n], list...)
	}
	for at, seq := range now.until {
		h.until[at] = max(h.until[at], seq)
	}
	for at, seq := range now.own {
		h.own[at] = max(h.own[at], seq)
	}
}

// rebuilt holds again, at the copies of slot n, what is known to be held of its accounts; nil when nothing of it is left to be
// done. All slots that this region took are worked at together.
func (s *Server) rebuilt(ctx context.Context, owners *slot.Map, lost, n int) error {
	h := &s.regions.holds
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.began.IsZero() {
		h.began = time.Now()
	}
	patient := time.Since(h.began) < holdsPatience
	fresh := map[int]slot.Epoch{}
	for k, epoch := range takenFrom(owners, lost) {
		if owners[k].Region == s.cfg.Region && h.epochs[k] != epoch {
			fresh[k] = epoch
		}
	}
	if len(fresh) > 0 {
		if err := s.learnHolds(ctx, lost, fresh, patient); err != nil {
			return err
		}
	}
	if left := s.applied(ctx, h.until); left > 0 {
		if patient {
			return fmt.Errorf("%w: %d chains of the regions that are there are not applied", errBehind, left)
		}
		s.log.Warn("accounts of the lost region spend without effects that are not applied yet", "chains", left)
		clear(h.until)
	}
	if h.fresh { // all at once, and not slot by slot
		s.call(slices.Concat(slices.Collect(maps.Values(h.owed))...))
		h.fresh = false
	}
	if err := s.hold(ctx, h, h.owed[n], patient); err != nil {
		return err
	}
	h.began = time.Time{}
	return nil
}

// learnHolds asks what is held at slots that were not asked for yet; holds.mu is held.
func (s *Server) learnHolds(ctx context.Context, lost int, fresh map[int]slot.Epoch, patient bool) error {
	now, err := s.askHolds(ctx, lost, fresh)
	if err != nil && patient {
		return fmt.Errorf("%w: what is held of its accounts is not known: %w", errBehind, err)
	}
	if err != nil {
		s.log.Warn("accounts of the lost region spend without holds that nobody tells of", "slots", len(fresh), "err", err)
	}
	h := &s.regions.holds
	h.take(now)
	h.fresh = true
	count := 0
	for n, epoch := range fresh {
		h.epochs[n] = epoch
	}
	for _, list := range now.owed {
		count += len(list)
	}
	s.log.Info("asked what is held of the lost region's accounts", "slots", len(fresh), "holds", count, "chains behind", len(now.until))
	return nil
}

// applied waits a little until chains are applied, and gives how many are not; those that are leave the map.
func (s *Server) applied(ctx context.Context, until map[chain]uint64) int {
	for look := 0; len(until) > 0 && look < 60 && ctx.Err() == nil; look++ {
		if look > 0 {
			time.Sleep(10 * time.Millisecond) // it is soon over as a rule, and whoever asks asks again much later
		}
		maps.DeleteFunc(until, func(at chain, seq uint64) bool { return s.regions.applier.Have(at.origin, at.slot) >= seq })
	}
	return len(until)
}

// askHolds asks all coordinators of all regions but the lost one. An error says who did not answer; what the others said is
// given all the same.
func (s *Server) askHolds(ctx context.Context, lost int, fresh map[int]slot.Epoch) (heard, error) {
	var mu sync.Mutex
	now := newHeard()
	covered := map[string]map[int]bool{}
	dep := s.regions.place.Deployment()
	origin := dep.Name(lost)
	var g errgroup.Group
	ask := func(region string, get func(ctx context.Context) (*holdsAnswer, error)) {
		g.Go(func() error {
			actx, cancel := context.WithTimeout(ctx, holdsTimeout)
			defer cancel()
			a, err := get(actx)
			mu.Lock()
			defer mu.Unlock()
			if err == nil {
				err = s.noteHolds(&now, region, a, fresh)
			}
			if err != nil {
				return fmt.Errorf("region %s: %w", region, err)
			}
			if covered[region] == nil {
				covered[region] = map[int]bool{}
			}
			for _, n := range a.Held {
				covered[region][n] = true
			}
			return nil
		})
	}
	for name, r := range s.regions.file.Regions {
		if name == origin {
			continue
		}
		if name == s.cfg.Region {
			ask(name, func(ctx context.Context) (*holdsAnswer, error) { return s.holdsHere(ctx, lost) })
		}
		for _, address := range r.Admin {
			ask(name, func(ctx context.Context) (*holdsAnswer, error) { return s.getHolds(ctx, address, origin) })
		}
	}
	err := g.Wait() // one of several coordinators may be away: what counts is whose slots nobody spoke for
	for n, o := range s.regions.place.Owners() {
		if o.Region != origin && o.Region != "" && o.Status == slot.Active && fresh[n] == 0 && !covered[o.Region][n] {
			return now, fmt.Errorf("nobody of region %s speaks for slot %d (%v)", o.Region, n, err)
		}
	}
	return now, nil
}

func (s *Server) getHolds(ctx context.Context, address, origin string) (*holdsAnswer, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, address+"/v1/region/holds?origin="+origin, nil)
	if err != nil {
		return nil, err
	}
	resp, err := s.regions.admin.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	raw, err := io.ReadAll(io.LimitReader(resp.Body, holdsBytes))
	switch {
	case err != nil:
		return nil, err
	case resp.StatusCode != http.StatusOK:
		return nil, fmt.Errorf("%s: %.200s", resp.Status, raw)
	}
	var a holdsAnswer
	return &a, json.Unmarshal(raw, &a)
}

// noteHolds takes an answer: the calls that hold again, and how far the region's chains are to be applied.
func (s *Server) noteHolds(now *heard, region string, a *holdsAnswer, fresh map[int]slot.Epoch) error {
	for n, epoch := range fresh {
		if a.Slots[n] < epoch {
			return fmt.Errorf("it has not heard that slot %d was taken", n)
		}
	}
	for _, r := range a.Records {
		tx, err := record.Decode(r.Record)
		if err != nil {
			return err
		}
		for _, c := range s.regions.applier.Holds(tx, r.Slot, func(n int) bool { return fresh[n] != 0 }) {
			now.owed[c.AccountSlot] = append(now.owed[c.AccountSlot], &post{call: c})
		}
	}
	until := now.until
	if region == s.cfg.Region {
		until = now.own
	}
	dep := s.regions.place.Deployment()
	origin := dep.Index(region)
	for n, seq := range a.Heads {
		if at := (chain{origin, n}); seq > s.regions.applier.Have(origin, n) {
			until[at] = max(until[at], seq)
		}
	}
	return nil
}

// hold makes the calls that hold again; nil when each was answered. A refusal is an answer when everything is applied: the
// transaction has ended, or the copy lacks what the lost region had not told.
func (s *Server) hold(ctx context.Context, h *holds, owed []*post, patient bool) error {
	s.call(owed)
	refused := func(p *post) bool { return p.refused && !p.done }
	if slices.ContainsFunc(owed, refused) {
		if left := s.applied(ctx, h.own); left > 0 && patient {
			return fmt.Errorf("%w: %d chains of this region are not applied, and what is held of the lost region's accounts is refused", errBehind, left)
		}
		s.call(owed)
	}
	for _, p := range owed {
		if refused(p) {
			p.done = true
			s.log.Warn("what a transaction holds of an account of the lost region is not held here", "gid", string(p.call.Gid), "branch", string(p.call.Branch), "why", p.said)
		}
		if !p.done {
			return fmt.Errorf("%w: what branch %s of %q holds is not held here: %s", errBehind, p.call.Branch, string(p.call.Gid), p.said)
		}
	}
	return nil
}
