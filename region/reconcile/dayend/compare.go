package dayend

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"time"

	"github.com/lockstep-tx/lockstep/region/reconcile/channelfile"
)

// Result is what a comparison came to. Nothing is changed by it.
type Result struct {
	Ours, Theirs, Matched int64 // rows, lines, pairs
	FromPool, ToPool      int64
	Findings              []Finding
	enter                 []pooled // into the suspense pool
	leave                 []string // out of it, by id
}

// TooManyError says that the two sides differ so much that the file, the mapping or the period must be wrong.
type TooManyError struct{ Max int }

func (e *TooManyError) Error() string {
	return fmt.Sprintf("more than %d differences: the file, the mapping or the books are not those of this day; nothing was reversed and nothing written", e.Max)
}

// comparer joins the two sides by key.
type comparer struct {
	of       of
	from, to int64
	straddle int64
	first    bool // no day before this one was compared
	// straddled is, by the sums' keys, by how much the sums differ because of what waits in the suspense pool.
	straddled map[string]int64
	// reversed are the keys of a statement that were undone here; the ledger's entries do not say it. Payments do.
	reversed map[string]bool
	max      int
	res      *Result
	missing  []pending // theirs that we do not have in the period
	t, o     group
}

// pending is a line that has to be looked for.
type pending struct {
	theirs Row
	pooled *pooled
}

// group is the records of one side under one key. Its records' keys are copies.
type group struct {
	n    int
	rows []record
	keys [][]byte
}

func (g *group) push(r *record) {
	if g.n == len(g.rows) {
		g.rows, g.keys = append(g.rows, record{}), append(g.keys, nil)
	}
	g.keys[g.n] = append(g.keys[g.n][:0], r.key...)
	g.rows[g.n] = *r
	g.rows[g.n].key = g.keys[g.n]
	g.n++
}

// collect takes all records of the smallest key that equal key.
func (g *group) collect(m *merge, key []byte) error {
	g.n = 0
	for r := m.peek(); r != nil && bytes.Equal(r.key, key); r = m.peek() {
		g.push(r)
		if err := m.take(); err != nil {
			return err
		}
	}
	return nil
}

// join goes through both sides once.
func (c *comparer) join(ctx context.Context, theirs, ours *merge) error {
	var key []byte
	for n := 0; ; n++ {
		t, o := theirs.peek(), ours.peek()
		if t == nil && o == nil {
			return nil
		}
		least := o
		if o == nil || t != nil && bytes.Compare(t.key, o.key) <= 0 {
			least = t
		}
		if key != nil && bytes.Compare(least.key, key) <= 0 {
			return errRecord // what is not in order is not sorted
		}
		key = append(key[:0], least.key...)
		if err := c.t.collect(theirs, key); err != nil {
			return err
		}
		if err := c.o.collect(ours, key); err != nil {
			return err
		}
		c.count()
		c.judge()
		if len(c.res.Findings)+len(c.missing)+len(c.res.enter) > c.max {
			return &TooManyError{c.max}
		}
		if n%65536 == 0 && ctx.Err() != nil {
			return ctx.Err()
		}
	}
}

func (c *comparer) count() {
	for i := range c.t.n {
		if c.t.rows[i].pooled == nil {
			c.res.Theirs++
		}
	}
	for i := range c.o.n {
		if c.o.rows[i].pooled == nil {
			c.res.Ours++
		}
	}
}

// judge says what the records of one key come to.
func (c *comparer) judge() {
	var paid *record
	failed, open := false, false
	for i := range c.t.n {
		switch r := &c.t.rows[i]; {
		case r.state == channelfile.Failed:
			failed = true
		case r.state == channelfile.Open:
			open = true
		case paid == nil:
			paid = r
		default:
			c.find(Duplicate, StatusOpen, nil, r, "the channel has a second line for it")
			c.left(r)
		}
	}
	var ours *record
	if c.o.n > 0 {
		ours = &c.o.rows[0]
	}
	switch {
	case paid != nil && ours != nil:
		c.pair(ours, paid)
	case paid != nil:
		c.missing = append(c.missing, pending{paid.row(), paid.pooled})
	case ours != nil:
		c.ours(ours, failed, open)
	}
}

// pair compares two records of one fact.
func (c *comparer) pair(ours, theirs *record) {
	ahead := theirs.pooled != nil && theirs.pooled.ahead // it was counted then
	c.left(ours)
	c.left(theirs)
	differs := ours.amount - theirs.amount
	if c.of.kind == channelfile.Funds {
		differs -= c.straddled[string(theirs.key)]
	}
	if differs == 0 && ours.currency == theirs.currency {
		if !ahead {
			c.res.Matched++
		}
		return
	}
	c.find(AmountDiffers, StatusOpen, ours, theirs, fmt.Sprintf("ours %d %s, theirs %d %s", ours.amount, ours.currency[:], theirs.amount, theirs.currency[:]))
}

// ours judges what only we have as paid.
func (c *comparer) ours(o *record, failed, open bool) {
	switch {
	case c.of.kind == channelfile.Funds:
		c.find(AmountDiffers, StatusOpen, o, nil, fmt.Sprintf("ours %d %s, and theirs has no such sum", o.amount, o.currency[:]))
	case failed:
		c.left(o)
		c.find(StateDiffers, StatusOpen, o, nil, "ours is paid, theirs has failed")
	case o.pooled == nil && (open || o.at >= c.to-c.straddle):
		c.wait(o.row(), "ours", false)
	case open: // still, a day later: what the channel may yet pay is not taken for missing
		c.left(o)
		c.find(StateDiffers, StatusOpen, o, nil, "ours is paid, the channel has not decided it a day after")
	default:
		c.left(o)
		status := StatusOpen
		if reversible(c.of.kind, string(o.key)) {
			status = StatusDue
		}
		text := "ours is paid, the channel does not have it"
		if o.pooled != nil {
			text += ", nor on the day after"
		}
		c.find(Long, status, o, nil, text)
	}
}

// settleMissing judges lines that have no row of ours in the period, by what is known of them.
func (c *comparer) settleMissing(ctx context.Context, ours Ours) error {
	const atOnce = 500
	for len(c.missing) > 0 {
		n := min(atOnce, len(c.missing))
		keys := make([]string, n)
		for i := range n {
			keys[i] = c.missing[i].theirs.Key
		}
		known, err := ours.Look(ctx, keys)
		if err != nil {
			return err
		}
		for _, p := range c.missing[:n] {
			k, ok := known[p.theirs.Key]
			k.Reversed = k.Reversed || c.reversed[p.theirs.Key]
			c.theirs(p, k, ok)
		}
		c.missing = c.missing[n:]
	}
	return nil
}

func (c *comparer) theirs(p pending, k Known, known bool) {
	var t, o record
	t.of(p.theirs)
	t.pooled = p.pooled
	o.of(k.Row)
	ahead := p.pooled != nil && p.pooled.ahead
	switch {
	case c.of.kind == channelfile.Funds:
		c.find(AmountDiffers, StatusOpen, nil, &t, fmt.Sprintf("theirs %d %s, and ours has no such sum", t.amount, t.currency[:]))
	case !known && ahead: // it was there when this was matched ahead: it cannot be gone
		c.left(&t)
		c.find(Short, StatusOpen, nil, &t, "ours was there and is gone: an operator must look")
	case !known && p.pooled == nil && t.at >= c.to-c.straddle:
		c.wait(p.theirs, "theirs", false)
	case !known:
		c.left(&t)
		c.find(Short, StatusOpen, nil, &t, "the channel has it as paid, we have no such thing")
	case k.State == channelfile.Open:
		c.left(&t)
		c.find(LostAnswer, StatusDue, &o, &t, "the channel has it as paid, ours is not decided")
	case k.State == channelfile.Failed && k.Reversed, k.State == channelfile.Paid && k.Reversed && k.AtMS < c.from:
		c.left(&t)
		c.find(LateOriginal, StatusOpen, &o, &t, "the channel brings what was reversed here: it is not booked; the channel owes it back")
	case k.State == channelfile.Failed:
		c.left(&t)
		c.find(StateDiffers, StatusOpen, &o, &t, "ours is refused, theirs is paid")
	case o.amount != t.amount || o.currency != t.currency:
		c.left(&t)
		c.find(AmountDiffers, StatusOpen, &o, &t, fmt.Sprintf("ours %d %s, theirs %d %s", o.amount, o.currency[:], t.amount, t.currency[:]))
	case k.AtMS >= c.to: // it is ours of a later day, on which it must not be taken for long
		if !ahead {
			c.left(&t)
			c.wait(p.theirs, "theirs", true)
			c.res.Matched++
		}
	case k.AtMS >= c.from || c.first:
		c.left(&t)
		c.res.Matched++
	default:
		c.left(&t)
		c.find(Duplicate, StatusOpen, &o, &t, "it was settled on an earlier day, and the channel has it again")
	}
}

// find makes a finding.
func (c *comparer) find(class Class, status Status, ours, theirs *record, text string) {
	f := Finding{Class: class, Status: status, Text: text}
	fact := ""
	if ours != nil {
		row := ours.row()
		f.Ours, f.Key = &row, row.Key
	}
	if theirs != nil {
		row := theirs.row()
		f.Theirs, f.Key = &row, row.Key
		fact = fmt.Sprint(row.Part, ":", row.Line)
	}
	f.identify(c.of, f.Key+keySeparator+fact)
	c.res.Findings = append(c.res.Findings, f)
}

// left takes a record out of the suspense pool, if it came from there.
func (c *comparer) left(r *record) {
	if r.pooled != nil {
		c.res.leave = append(c.res.leave, r.pooled.id)
		c.res.FromPool++
		r.pooled = nil
	}
}

// wait puts a row into the suspense pool.
func (c *comparer) wait(row Row, side string, ahead bool) {
	c.res.enter = append(c.res.enter, pooled{Row: row, id: idOf(c.of.channel, string(c.of.kind), c.of.day, row.Key, side, fmt.Sprint(ahead)), side: side, ahead: ahead})
	if !ahead {
		c.res.ToPool++
	}
}

// pooled is a row in the suspense pool.
type pooled struct {
	Row
	id, side, day string
	// ahead says that it is matched: its other side comes with a later day's rows, and is not to be looked at twice.
	ahead bool
}

// inMemory gives rows that are in the order of their keys.
type inMemory struct{ rows []*pooled }

func (s *inMemory) next(r *record) error {
	if len(s.rows) == 0 {
		return io.EOF
	}
	r.of(s.rows[0].Row)
	r.pooled = s.rows[0]
	s.rows = s.rows[1:]
	return nil
}

func inDays(day string, n int) (string, error) {
	d, err := time.Parse("20060102", day)
	if err != nil {
		return "", fmt.Errorf("day %q: yyyymmdd belongs here", day)
	}
	return d.AddDate(0, 0, n).Format("20060102"), nil
}
