package sweep

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/lockstep-tx/lockstep/chaos/check"
	"github.com/lockstep-tx/lockstep/chaos/history"
)

// reading is one look at both regions' books and journals, each of one moment.
type reading struct {
	at    time.Time
	books [2]check.Book
	by    [2]index
	// rows are the journals' rows by gid, nil where one has none.
	rows   map[string]*[2]*check.Decided
	events []check.Event
}

// index of a book.
type index struct {
	transfers map[string][]check.Transfer // by gid
	entries   map[string][]check.Entry    // by gid
	barrier   map[string][]check.Row      // by gid
	touching  map[string][]string         // gids by account
	loose     map[string][]check.Entry    // of no gid, by account
	accounts  map[string]check.Account
}

func (w *world) read(ctx context.Context) (*reading, error) {
	r := &reading{at: time.Now(), rows: map[string]*[2]*check.Decided{}}
	for i, region := range w.d.Regions {
		decided, events, err := check.ReadJournal(ctx, region.Name, region.Journal)
		if err != nil {
			return nil, err
		}
		r.events = append(r.events, events...)
		for k := range decided {
			d := &decided[k]
			if r.rows[d.Gid] == nil {
				r.rows[d.Gid] = &[2]*check.Decided{}
			}
			r.rows[d.Gid][i] = d
		}
		if r.books[i], err = check.ReadBook(ctx, region.Name, region.DB, region.Barrier); err != nil {
			return nil, err
		}
		r.by[i] = indexOf(&r.books[i])
	}
	return r, nil
}

func indexOf(b *check.Book) index {
	x := index{map[string][]check.Transfer{}, map[string][]check.Entry{}, map[string][]check.Row{}, map[string][]string{}, map[string][]check.Entry{}, map[string]check.Account{}}
	for _, t := range b.Transfers {
		x.transfers[t.Gid] = append(x.transfers[t.Gid], t)
	}
	for _, e := range b.Entries {
		x.entries[e.Gid] = append(x.entries[e.Gid], e)
		if e.Gid == "" {
			x.loose[e.Account] = append(x.loose[e.Account], e)
		} else if l := x.touching[e.Account]; len(l) == 0 || l[len(l)-1] != e.Gid {
			x.touching[e.Account] = append(l, e.Gid)
		}
	}
	for _, row := range b.Rows {
		x.barrier[row.Gid] = append(x.barrier[row.Gid], row)
	}
	for _, a := range b.Accounts {
		x.accounts[a.ID] = a
	}
	return x
}

// branches is how many each transaction has.
const branches = 2

// posted is how many of a transaction's branches are posted.
func (x *index) posted(gid string) (n int) {
	for _, t := range x.transfers[gid] {
		if t.State == "posted" {
			n++
		}
	}
	return n
}

// image is all rows of a transaction in one region's book, in both journals, in an order of its own; what wrote a barrier's
// row is left out: a repair may do what a call did.
func (r *reading) image(region int, gid string) string {
	var lines []string
	x := &r.by[region]
	for _, t := range x.transfers[gid] {
		lines = append(lines, fmt.Sprint("transfer ", t))
	}
	for _, e := range x.entries[gid] {
		lines = append(lines, fmt.Sprint("entry ", e))
	}
	for _, b := range x.barrier[gid] {
		lines = append(lines, fmt.Sprint("row ", b.Branch, b.Op))
	}
	if rows := r.rows[gid]; rows != nil {
		for _, d := range rows {
			if d != nil {
				lines = append(lines, fmt.Sprint("journal ", *d))
			}
		}
	}
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}

// image is what stays as it is while nobody changes it on purpose, at a seed's place: its transaction's rows, or, of an account,
// the entries that are of no transaction. Counters move with the load.
func (w *world) image(r *reading, s *Seed) string {
	if s.class.account {
		return fmt.Sprint(r.by[w.index(s.Region)].loose[s.Account])
	}
	return r.image(w.index(s.Region), s.Gid)
}

// settled says whether nothing of a transaction changes any more in a region: both journals have it finished, some time ago,
// and its book has what was decided.
func (r *reading) settled(region int, gid string) bool {
	rows := r.rows[gid]
	if rows == nil || rows[0] == nil || rows[1] == nil || !rows[0].Finished || !rows[1].Finished || r.at.Sub(time.UnixMilli(rows[0].At)) < settleAge {
		return false
	}
	x := &r.by[region]
	if slices.ContainsFunc(x.transfers[gid], func(t check.Transfer) bool { return t.State == "pending" }) {
		return false
	}
	return rows[0].Phase != committed || x.posted(gid) == branches
}

// settleAge is how long ago a transaction must have finished for its rows to stay as they are.
const settleAge = 3 * time.Second

const (
	committed = 5
	aborted   = 6
)

// changed gives the transactions that were settled in an earlier look, are of no seed, and are not as they were: the rows
// that something has changed that nobody planted or asked for.
func (r *reading) changed(before *reading, ours func(region int, gid string) bool) (out []string) {
	for gid := range before.rows {
		for region := range r.books {
			if !before.settled(region, gid) || ours(region, gid) {
				continue
			}
			if sum(before.image(region, gid)) != sum(r.image(region, gid)) {
				out = append(out, fmt.Sprintf("%s of %s", gid, r.books[region].Region))
			}
		}
	}
	slices.Sort(out)
	return out
}

func sum(text string) uint64 {
	h := fnv.New64a()
	_, _ = h.Write([]byte(text)) // it never fails
	return h.Sum64()
}

// witness is what the suite's own checkers say of a seed's place in a look: of its transactions, or of its accounts. What goes
// on elsewhere is left out, and so is what has no meaning for a part of a run (I1 to I3 count the whole, I9 wants whole chains).
func (w *world) witness(r *reading, s *Seed) (by []string, said []string) {
	e := &check.Evidence{}
	only := map[string]bool{"I4": true, "I5": true, "I6": true, "I7": true, "I8": true, "I10": true}
	gids := map[string]bool{}
	for _, g := range []string{s.Gid, s.OtherGid} {
		if g != "" {
			gids[g] = true
		}
	}
	for g := range s.gids {
		gids[g] = true
	}
	if s.Decided > 0 { // a person has confirmed what was lost: that it was tried once, no row says any more
		delete(only, "I5")
	}
	ops := w.ops
	if s.class.account {
		only = map[string]bool{"I6": true}
		region := w.index(s.Region)
		b := check.Book{Region: s.Region}
		x := &r.by[region]
		for _, account := range s.accounts() {
			b.Accounts = append(b.Accounts, x.accounts[account])
			b.Entries = append(b.Entries, x.loose[account]...)
			for _, gid := range x.touching[account] {
				gids[gid] = true
			}
		}
		for _, t := range r.books[region].Transfers {
			b.Transfers = append(b.Transfers, check.Transfer{ID: t.ID}) // that they are there; what they are is not asked
		}
		for _, g := range slices.Sorted(maps.Keys(gids)) {
			for _, entry := range x.entries[g] {
				if slices.Contains(s.accounts(), entry.Account) {
					b.Entries = append(b.Entries, entry)
				}
			}
		}
		e.Books, ops = []check.Book{b}, nil // of pairs of entries only one side is here
	} else {
		for i := range r.books {
			x, b := &r.by[i], check.Book{Region: r.books[i].Region}
			for _, g := range slices.Sorted(maps.Keys(gids)) {
				b.Transfers, b.Entries, b.Rows = append(b.Transfers, x.transfers[g]...), append(b.Entries, x.entries[g]...), append(b.Rows, x.barrier[g]...)
			}
			e.Books = append(e.Books, b)
		}
		for _, g := range slices.Sorted(maps.Keys(gids)) {
			if op, ok := ops[g]; ok {
				e.Ops = append(e.Ops, op)
			}
			for i := range r.books {
				if rows := r.rows[g]; rows != nil && rows[i] != nil {
					e.Decided = append(e.Decided, *rows[i])
				}
			}
		}
		if s.class.journal {
			e.Events = w.eventsOf(r, s)
		}
	}
	for _, c := range check.Whole(e) {
		if only[c.ID] && c.Count > 0 {
			by, said = append(by, c.ID), append(said, c.Violations...)
		}
	}
	return by, said
}

// eventsOf are the events at a seed's numbers, as both journals have them. Of a slot that stands still they are those that its
// origin has had for a while.
func (w *world) eventsOf(r *reading, s *Seed) (out []check.Event) {
	for _, e := range r.events {
		if e.Slot != s.Slot || e.Origin != s.Origin {
			continue
		}
		if s.class.id == d19 && e.Seq > s.from && e.Seq <= s.upTo || slices.Contains(s.Seqs, e.Seq) {
			out = append(out, e)
		}
	}
	return out
}

// remember takes the clients' requests in, by gid.
func (w *world) remember() {
	all := w.log.Ops()
	for _, op := range all[w.seenOps:] {
		if op.Kind != history.Read {
			w.ops[op.Gid] = op
		}
	}
	w.seenOps = len(all)
}

var errNoTarget = errors.New("nothing to plant it in now")
