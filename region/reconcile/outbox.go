package reconcile

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"time"

	"github.com/lockstep-tx/lockstep/coordinator/record"
	"github.com/lockstep-tx/lockstep/region/slot"
)

// This file compares the outbox with the topic (D22): what a region has noted as published must stand in its topic. The peers may
// have had it from the journal meanwhile; who comes later, or after them, reads the topic.

// Topic is the region's own topic, as far as it is looked into here; region/replica's.
type Topic interface {
	// Lacking takes out of want, by slot and number, what stands in the topic since a time.
	Lacking(ctx context.Context, since time.Time, want map[int]map[uint64]bool) error
	// Keeps is for how long the topic keeps what was published.
	Keeps() time.Duration
	PublishAgain(ctx context.Context, n int, seqs []uint64) (int, error)
}

// Unsent are events of one own slot that are noted as published and that the topic lacks.
type Unsent struct {
	Slot  int      `json:"slot"`
	Noted uint64   `json:"noted"` // the number up to which they are said to be published
	Seqs  []uint64 `json:"seqs"`
	Gid   string   `json:"gid"`   // of the first of them
	Since int64    `json:"since"` // unix ms: from when on the topic was read
}

// OutboxAnswer is what a region says of its outbox. Checked events were looked for.
type OutboxAnswer struct {
	Checked int      `json:"checked"`
	Unsent  []Unsent `json:"unsent"`
}

const (
	// early is how much earlier than a transaction finished its decision may have been published, by whatever clock; usual is how much
	// it is where clocks agree: what is not found from then on is looked for from further back.
	early, usual = 10 * time.Minute, 30 * time.Second
	// retentionMargin: what the topic is about to let go is not asked for.
	retentionMargin = time.Hour
	// unsentMax bounds the numbers of one finding; the rest is found when those are there again.
	unsentMax = 1000
)

// outbox looks for what finished in [from, to) (unix ms), is noted as published, and is not in the topic.
func (s *Served) outbox(ctx context.Context, from, to int64) (out OutboxAnswer, err error) {
	if s.Topic == nil {
		return out, nil
	}
	from = max(from, time.Now().Add(retentionMargin-s.Topic.Keeps()).UnixMilli())
	// The note is read first, and the topic last: what was noted before stands in what is read then.
	marks, err := s.Journal.Published(ctx, s.Index)
	if err != nil {
		return out, err
	}
	noted := map[int]uint64{}
	for _, m := range marks {
		noted[m.Slot] = m.Head.Seq
	}
	want, gids := map[int]map[uint64]bool{}, map[[2]uint64]string{}
	add := func(tx *record.Tx, n int, seq, epoch uint64) {
		if slot.Epoch(epoch).Region() != s.Index || seq == 0 || seq > noted[n] {
			return
		}
		if want[n] == nil {
			want[n] = map[uint64]bool{}
		}
		if !want[n][seq] {
			out.Checked++
		}
		want[n][seq], gids[[2]uint64{uint64(n), seq}] = true, string(tx.State.Gid)
	}
	for at := from; at < to; {
		rows, last, err := s.Journal.FinishedBetween(ctx, at, to, finishedMax, func(tx *record.Tx, n int) {
			if tx.State.DecidedAt >= from {
				add(tx, n, tx.Decision.Seq, tx.DecisionEpoch)
			}
			add(tx, n, tx.Finish.Seq, tx.FinishEpoch)
		})
		if err != nil {
			return out, err
		}
		if rows < finishedMax {
			break
		}
		at = max(last, at+1)
	}
	since := from - early.Milliseconds()
	for _, back := range []time.Duration{usual, early} {
		if err := s.Topic.Lacking(ctx, time.UnixMilli(from).Add(-back), want); err != nil {
			return out, err
		}
		maps.DeleteFunc(want, func(_ int, seqs map[uint64]bool) bool { return len(seqs) == 0 })
	}
	for n, seqs := range want {
		u := Unsent{Slot: n, Noted: noted[n], Since: since}
		for seq := range seqs {
			u.Seqs = append(u.Seqs, seq)
		}
		slices.Sort(u.Seqs)
		u.Gid = gids[[2]uint64{uint64(n), u.Seqs[0]}]
		u.Seqs = u.Seqs[:min(len(u.Seqs), unsentMax)]
		out.Unsent = append(out.Unsent, u)
	}
	slices.SortFunc(out.Unsent, func(a, b Unsent) int { return a.Slot - b.Slot })
	return out, nil
}

// publish publishes again what of a finding the topic still lacks.
func (s *Served) publish(ctx context.Context, u Unsent) (int, error) {
	if s.Topic == nil {
		return 0, fmt.Errorf("this coordinator has no topic")
	}
	if u.Slot < 0 || u.Slot >= slot.Count || len(u.Seqs) > unsentMax {
		return 0, fmt.Errorf("slot %d of %d, %d events of at most %d", u.Slot, slot.Count, len(u.Seqs), unsentMax)
	}
	want := map[int]map[uint64]bool{u.Slot: {}}
	for _, seq := range u.Seqs {
		want[u.Slot][seq] = true
	}
	if err := s.Topic.Lacking(ctx, time.UnixMilli(u.Since), want); err != nil {
		return 0, err
	}
	var again []uint64
	for seq := range want[u.Slot] {
		again = append(again, seq)
	}
	slices.Sort(again)
	return s.Topic.PublishAgain(ctx, u.Slot, again)
}

func (s *Served) mountOutbox(mux *http.ServeMux) {
	mux.HandleFunc("GET /v1/drift/outbox", func(w http.ResponseWriter, r *http.Request) {
		from, to, err := window(r)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		out, err := s.outbox(r.Context(), from, to)
		answer(w, out, err)
	})
	mux.HandleFunc("POST /v1/drift/publish", func(w http.ResponseWriter, r *http.Request) {
		var u Unsent
		if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, 1<<20)).Decode(&u); err != nil {
			http.Error(w, "body: "+err.Error(), http.StatusBadRequest)
			return
		}
		n, err := s.publish(r.Context(), u)
		if s.Audited != nil {
			s.Audited(r.Context(), "drift publish", err, "slot", u.Slot, "events", n)
		}
		answer(w, map[string]int{"published": n}, err)
	})
}

// outboxes compares each region's outbox with its topic.
func (r *Reconciler) outboxes(ctx context.Context, rep *Report, from, to int64) {
	for _, region := range r.Regions {
		var a OutboxAnswer
		if err := r.get(ctx, rep, region, fmt.Sprintf("/v1/drift/outbox?from=%d&to=%d", from, to), &a); err != nil {
			rep.skip("outbox of %s: %v", region, err)
			continue
		}
		rep.Published += a.Checked
		for _, u := range a.Unsent {
			f := Finding{Class: Unpublished, Region: region, Slot: u.Slot,
				Text: fmt.Sprintf("%s has noted its events of slot %d up to %d as published, and its topic lacks %d of them, %d (of transaction %s) to %d: who has not read them yet must ask its journal",
					region, u.Slot, u.Noted, len(u.Seqs), u.Seqs[0], u.Gid, u.Seqs[len(u.Seqs)-1])}
			f.proposes("publish them again from the journal", u)
			rep.Findings = append(rep.Findings, f)
		}
	}
}
