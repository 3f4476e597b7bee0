package reconcile

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"

	"github.com/lockstep-tx/lockstep/coordinator/engine"
	"github.com/lockstep-tx/lockstep/region/journal"
	"github.com/lockstep-tx/lockstep/region/slot"
)

// This file finds a journal that was set back to a backup (D21): another region has events of a chain that the chain's own region
// does not have. Nothing leaves a region before its own journal has it, so that no lag looks like this. The records that others
// have are restored one by one, as any that is missing (D14), where their chains prove them; that the end was lost, and what
// nobody else had of it, is a person's.

// end is the number of an own event that another region has.
type end struct {
	Slot int    `json:"slot"`
	Seq  uint64 `json:"seq"`
}

type ends []end

// lost gives those of the events that this region's journal does not have.
func (s *Served) lost(ctx context.Context, of ends) (out ends, err error) {
	for _, e := range of {
		if e.Slot < 0 || e.Slot >= slot.Count || e.Seq == 0 {
			return nil, fmt.Errorf("event %d of slot %d of %d", e.Seq, e.Slot, slot.Count)
		}
		events, err := s.Journal.EventsAfter(ctx, s.Index, e.Slot, e.Seq-1, 1)
		switch {
		case errors.Is(err, journal.ErrTrimmed):
		case err != nil:
			return nil, err
		case len(events) == 0 || events[0].Head.Seq != e.Seq:
			out = append(out, e)
		}
	}
	return out, nil
}

func (s *Served) mountLost(mux *http.ServeMux) {
	mux.HandleFunc("POST /v1/drift/lost", func(w http.ResponseWriter, r *http.Request) {
		var of ends
		if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, 1<<20)).Decode(&of); err != nil || len(of) > slot.Count {
			http.Error(w, fmt.Sprintf("body: %d events (%v)", len(of), err), http.StatusBadRequest)
			return
		}
		out, err := s.lost(r.Context(), of)
		answer(w, out, err)
	})
}

// ownEnds asks each region for the ends of its own chains, as far as another region has more than it has noted as published: the
// note is late, its journal is not.
func (r *Reconciler) ownEnds(ctx context.Context, rep *Report, heads map[string]map[chainKey]HeadAnswer) {
	for _, region := range r.Regions {
		for _, origin := range r.Regions {
			var ask ends
			for key, here := range heads[region] {
				if region != origin && r.name(key.origin) == origin && heads[origin] != nil && here.Seq > heads[origin][key].Seq {
					ask = append(ask, end{key.slot, here.Seq})
				}
			}
			if len(ask) == 0 {
				continue
			}
			slices.SortFunc(ask, func(a, b end) int { return cmp.Compare(a.Slot, b.Slot) })
			r.setBackTo(ctx, rep, region, origin, ask)
		}
	}
}

func (r *Reconciler) setBackTo(ctx context.Context, rep *Report, region, origin string, ask ends) {
	body, err := json.Marshal(ask)
	if err != nil {
		rep.skip("ends of %s: %v", origin, err)
		return
	}
	raw, err := r.Ask.Post(ctx, origin, "/v1/drift/lost", body)
	rep.Bytes += len(raw) + len(body)
	var lost ends
	if err == nil {
		err = json.Unmarshal(raw, &lost)
	}
	if err != nil {
		rep.skip("ends of %s: %v", origin, err)
		return
	}
	for _, e := range lost {
		f := Finding{Class: SetBack, Region: origin, Slot: e.Slot,
			Text: fmt.Sprintf("%s has events of %s in slot %d up to %d, and the journal of %s does not have that one: nothing leaves a region before its own journal has it, so that journal was set back", region, origin, e.Slot, e.Seq, origin)}
		f.Evidence, err = json.Marshal(map[string]any{"region": region, "seq": e.Seq})
		if err != nil {
			rep.skip("ends of %s: %v", origin, err)
			continue
		}
		rep.Findings = append(rep.Findings, f)
	}
}

// inChain sorts findings of records into the order of their events: one that is restored must follow what is there.
func inChain(list []Finding) {
	seq := func(f *Finding) uint64 {
		var row engine.Row
		if json.Unmarshal(f.Evidence, &row) != nil {
			return 0
		}
		return row.Decision.Seq
	}
	slices.SortStableFunc(list, func(a, b Finding) int { return cmp.Or(cmp.Compare(a.Slot, b.Slot), cmp.Compare(seq(&a), seq(&b))) })
}
