package sweep

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/lockstep-tx/lockstep/chaos/check"
	"github.com/lockstep-tx/lockstep/chaos/history"
	"github.com/lockstep-tx/lockstep/chaos/seed"
)

// Seed is one line of the register of what was planted, which the product never sees.
type Seed struct {
	ID     string     `json:"id"`
	Class  seed.Class `json:"class"`
	Region string     `json:"region"` // in whose database
	Engine string     `json:"engine"` // that the database is on
	Gid    string     `json:"gid,omitempty"`
	Branch string     `json:"branch,omitempty"`
	// OtherGid is the second record of a pair that was exchanged.
	OtherGid string `json:"other_gid,omitempty"`
	Account  string `json:"account,omitempty"`
	Other    string `json:"other,omitempty"`
	Slot     int    `json:"slot"`
	Origin   int64  `json:"origin,omitempty"`
	// Seqs are the numbers of the events in question.
	Seqs    []int64 `json:"seqs,omitempty"`
	Variant string  `json:"variant,omitempty"`
	// AgeMillis is how long ago the transaction had finished. Fault is what was cut off at the time.
	AgeMillis int64        `json:"age_ms"`
	Fault     string       `json:"fault,omitempty"`
	Planted   seed.Planted `json:"planted"`
	Injected  time.Time    `json:"injected"`
	// SeenBy are the suite's checkers that saw a violation before the repair; without one the seed was none.
	SeenBy []string `json:"seen_by"`
	// Found, under FoundAs, by the finding Finding.
	Found   time.Time `json:"found"`
	FoundAs string    `json:"found_as,omitempty"`
	Finding string    `json:"finding,omitempty"`
	// Clean is when it was repaired and nobody saw it any more.
	Clean time.Time `json:"clean"`
	// Wrong says what of the repair was not as it should be, "" while nothing is.
	Wrong string `json:"wrong,omitempty"`
	// Unreachable is for how much of the time from the injection to the finding the regions were cut off.
	Unreachable time.Duration `json:"unreachable_ns,omitempty"`

	// Decided is how many of its findings a person has decided.
	Decided int `json:"decided,omitempty"`

	class      *class
	before     string // image, before it was planted
	after      string // image, as it was planted
	from, upTo int64  // the events that a slot that stands still lacks
	partition  int
	gids       map[string]bool // all that it touches, where that is more than Gid
	applied    bool            // apply has run since it was found
	keys       []string        // events of a topic, by their keys
	end        func() error    // of what the suite holds for it; nil: nothing
	taken      []string        // places that nothing else may be planted in meanwhile
}

func (s *Seed) accounts() []string {
	out := []string{s.Account}
	if s.Other != "" {
		out = append(out, s.Other)
	}
	return out
}

// ended ends what the suite held for a seed.
func (s *Seed) ended() error {
	if s.end == nil {
		return nil
	}
	end := s.end
	s.end = nil
	return end()
}

// armed says that an independent checker has seen it.
func (s *Seed) armed() bool { return len(s.SeenBy) > 0 }

// over says that nothing more is awaited of a seed.
func (s *Seed) over() bool { return !s.Clean.IsZero() || s.class.person && s.applied }

// scope says whether a seed may have changed a transaction's rows in a region.
func (s *Seed) scope(region int, gid string) bool {
	return gid != "" && (gid == s.Gid || gid == s.OtherGid || gid == s.Planted.Gid || s.gids[gid])
}

// candidate is a transaction that has ended.
type candidate struct {
	gid  string
	op   history.Op
	rows *[2]*check.Decided
	age  time.Duration
}

// candidates are the transactions in which a class can be planted: ended in both regions, of a known request. Not of one that
// asked for more than there is: what stays for a person of it would let others spend that much.
func (w *world) candidates(r *reading, c *class) (out []candidate) {
	for gid, rows := range r.rows {
		if !r.settled(0, gid) || !r.settled(1, gid) || w.takenGids[gid] {
			continue
		}
		op, ok := w.ops[gid]
		age := r.at.Sub(time.UnixMilli(rows[0].At))
		commit := rows[0].Phase == committed
		if !ok || op.Over || age > ageMax || commit && !c.commits || !commit && !c.aborts {
			continue
		}
		out = append(out, candidate{gid, op, rows, age})
	}
	slices.SortFunc(out, func(a, b candidate) int { return cmp.Compare(a.gid, b.gid) })
	w.rnd.Shuffle(len(out), func(i, k int) { out[i], out[k] = out[k], out[i] })
	return out
}

// ageMax is how old a transaction is at most in which something is planted.
const ageMax = 15 * time.Second

// tries is how many candidates are tried for one seed in one round.
const tries = 40

// plant plants one seed of a class, or says errNoTarget.
func (w *world) plant(ctx context.Context, r *reading, c *class) (*Seed, error) {
	list := w.candidates(r, c)
	for i := range list[:min(tries, len(list))] {
		s := w.place(r, c, &list[i])
		if s == nil {
			continue
		}
		if by, _ := w.witness(r, s); len(by) > 0 && c.id != d19 {
			continue // something is wrong there already
		}
		s.before = w.image(r, s)
		if err := w.put(ctx, s, &list[i]); err != nil {
			w.o.Say("%s cannot be planted in %s of %s: %v", c.id, s.Gid, s.Region, err)
			continue
		}
		w.take(s)
		return s, nil
	}
	return nil, errNoTarget
}

// place chooses where in a transaction a seed goes; nil where it cannot.
func (w *world) place(r *reading, c *class, t *candidate) *Seed {
	row := t.rows[0]
	s := &Seed{Class: c.id, class: c, Gid: t.gid, Slot: row.Slot, Origin: row.Origin, Seqs: []int64{row.DecisionSeq, row.FinishSeq}, AgeMillis: t.age.Milliseconds()}
	s.Branch, s.Account, s.Other = "pay", t.op.From, t.op.To
	if w.rnd.IntN(2) == 0 {
		s.Branch, s.Account, s.Other = "receive", t.op.To, t.op.From
	}
	home := w.home[s.Account]
	if c.journal {
		home = int(row.Origin) - 1
		s.taken = []string{fmt.Sprintf("slot %d", s.Slot)}
		s.Account, s.Other, s.Branch = "", "", ""
	}
	at := home
	if c.place == atCopy || c.place == anywhere && w.rnd.IntN(2) == 0 {
		at = 1 - home
	}
	s.Region, s.Engine = w.d.Regions[at].Name, w.engine(at, c.journal)
	if !c.journal {
		s.taken = []string{s.Region + " " + s.Account}
		if c.id == seed.D08 || c.id == seed.D23 {
			s.Other = w.free(at, s.Account) // it must be nobody else's meanwhile
			s.taken = append(s.taken, s.Region+" "+s.Other)
			if s.Other == "" {
				return nil
			}
		}
		if c.id == seed.D04 {
			s.taken = append(s.taken, s.Region+" passage")
		}
		if c.aborts && row.Phase == aborted && !slices.ContainsFunc(r.by[at].transfers[s.Gid], func(t check.Transfer) bool { return t.Branch == s.Branch && t.State == "voided" }) {
			return nil
		}
	}
	if c.id == seed.D18 && !w.pair(r, s, t) {
		return nil
	}
	for _, what := range s.taken {
		if w.taken[what] {
			return nil
		}
	}
	return s
}

// free is an account that nothing is planted in, of a region's book.
func (w *world) free(region int, but string) string {
	all := append(slices.Clone(w.d.Regions[0].Accounts), w.d.Regions[1].Accounts...)
	w.rnd.Shuffle(len(all), func(i, k int) { all[i], all[k] = all[k], all[i] })
	for _, a := range all {
		if a != but && !w.taken[w.d.Regions[region].Name+" "+a] {
			return a
		}
	}
	return ""
}

// pair finds a second transaction of the same slot and origin.
func (w *world) pair(r *reading, s *Seed, t *candidate) bool {
	for _, gid := range slices.Sorted(maps.Keys(r.rows)) {
		rows := r.rows[gid]
		if gid == s.Gid || !r.settled(0, gid) || !r.settled(1, gid) || w.takenGids[gid] || rows[0].Slot != s.Slot || rows[0].Origin != s.Origin || r.at.Sub(time.UnixMilli(rows[0].At)) > ageMax {
			continue
		}
		s.OtherGid, s.Seqs = gid, append(s.Seqs, rows[0].DecisionSeq, rows[0].FinishSeq)
		return true
	}
	return false
}

// put changes the database.
func (w *world) put(ctx context.Context, s *Seed, t *candidate) (err error) {
	at, c := w.index(s.Region), s.class
	as := cmp.Or(c.plantedAs, c.id)
	switch {
	case c.id == d19:
		s.from, err = seed.Freeze(ctx, w.journals[at].db, w.journals[at].d, int(s.Origin), s.Slot)
		s.Seqs = nil
	case c.journal:
		s.Planted, err = seed.Record(ctx, w.journals[at].db, w.journals[at].d, as, s.Gid, s.OtherGid, w.rnd)
	default:
		if c.id == seed.D04 {
			if s.end, err = w.hold(ctx, at, s.Account, s.Other, s.Branch); err != nil {
				return errors.Join(err, s.ended())
			}
		}
		target := seed.Target{Gid: s.Gid, Branch: s.Branch, Account: s.Account, Other: s.Other, Commit: t.rows[0].Phase == committed, Schema: w.d.Regions[at].Barrier}
		s.Planted, err = seed.Plant(ctx, w.wallets[at].db, w.wallets[at].d, as, target, w.rnd)
	}
	if err != nil {
		return errors.Join(err, s.ended())
	}
	s.Injected, s.Variant, s.Fault = time.Now(), s.Planted.Variant, w.faulty()
	switch c.id {
	case seed.D09:
		s.Gid, s.Branch, s.Other = "", "", ""
	case seed.D10:
		s.Gid, s.Branch, s.Other = s.Planted.Gid, s.Planted.Branch, ""
	case seed.D06:
		s.Gid, s.Branch, s.Other = "", "", ""
	case seed.D23:
		s.Gid, s.Branch = "", ""
	}
	return nil
}

// take keeps others from a seed's places.
func (w *world) take(s *Seed) {
	for _, what := range s.taken {
		w.taken[what] = true
	}
	for _, gid := range []string{s.Gid, s.OtherGid, s.Planted.Gid} {
		if gid != "" {
			w.takenGids[gid] = true
		}
	}
	s.ID = fmt.Sprintf("%s-%d", s.Class, len(w.seeds)+1)
	w.seeds = append(w.seeds, s)
}

// give lets others have the places of a seed that is over. Those of a seed that stays for a person stay taken.
func (w *world) give(s *Seed) {
	for _, what := range s.taken {
		delete(w.taken, what)
	}
}
