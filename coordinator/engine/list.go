package engine

import (
	"context"
	"fmt"
	"sort"
	"strconv"
	"strings"
	"time"

	"github.com/lockstep-tx/lockstep/coordinator/record"
	"github.com/lockstep-tx/lockstep/coordinator/txn"
	"github.com/lockstep-tx/lockstep/region/slot"
)

// Matches says whether a transaction passes the filter.
func (f *Filter) Matches(s *txn.State) bool {
	if len(f.Phases) > 0 {
		found := false
		for _, p := range f.Phases {
			found = found || p == s.Phase
		}
		if !found {
			return false
		}
	}
	switch {
	case f.Mode != 0 && f.Mode != s.Mode,
		f.Slot >= 0 && f.Slot != slot.Of(string(s.Gid)),
		f.GidPrefix != "" && !strings.HasPrefix(string(s.Gid), f.GidPrefix),
		f.BegunAfter > 0 && s.BegunAt < f.BegunAfter,
		f.BegunBefore > 0 && s.BegunAt > f.BegunBefore,
		f.StuckFails > 0 && s.MaxFails() < f.StuckFails,
		f.Stopped && !s.Stopped,
		f.InDoubt && !s.InDoubt:
		return false
	}
	return true
}

// liveLess is the order of a listing: newest first, then by gid.
func liveLess(a, b *txn.State) bool {
	if a.BegunAt != b.BegunAt {
		return a.BegunAt > b.BegunAt
	}
	return a.Gid < b.Gid
}

// LiveCursor is the place in the list of live transactions behind the one given.
type LiveCursor struct {
	BegunAt int64
	Gid     txn.Gid
}

// String is the cursor as a listing gives it.
func (c LiveCursor) String() string { return fmt.Sprintf("l:%d:%s", c.BegunAt, c.Gid) }

// parseLiveCursor reads what String gives; the empty text is the zero cursor. Any other text is a *txn.Error with
// txn.CodeInvalid: a cursor without a gid would begin the list again in silence.
func parseLiveCursor(cursor string) (LiveCursor, error) {
	if cursor == "" {
		return LiveCursor{}, nil
	}
	rest, live := strings.CutPrefix(cursor, "l:")
	at, gid, ok := strings.Cut(rest, ":")
	n, err := strconv.ParseInt(at, 10, 64)
	if !live || !ok || err != nil || gid == "" || len(gid) > txn.GidBytesMax {
		return LiveCursor{}, &txn.Error{Code: txn.CodeInvalid, Text: fmt.Sprintf("position %.200q is none that a listing gave", cursor)}
	}
	return LiveCursor{BegunAt: n, Gid: txn.Gid(gid)}, nil
}

// ListLive gives at most limit of the transactions that this process holds in memory, newest first, behind the
// cursor; the zero cursor begins at the start. Finished ones are among them until the journal has them.
func (r *Runner) ListLive(ctx context.Context, f Filter, after LiveCursor, limit int) ([]Reply, error) {
	var out []Reply
	err := r.Ask(ctx, func(c *Core, _ int64) {
		pos := txn.State{BegunAt: after.BegunAt, Gid: after.Gid}
		c.Each(func(rep Reply) {
			s := &rep.State
			if !f.Matches(s) || (after.Gid != "" && !liveLess(&pos, s)) {
				return
			}
			out = append(out, rep)
			if len(out) >= 4*limit+64 {
				out = newest(out, limit)
			}
		})
	})
	return newest(out, limit), err
}

func newest(list []Reply, limit int) []Reply {
	sort.Slice(list, func(i, j int) bool { return liveLess(&list[i].State, &list[j].State) })
	return list[:min(limit, len(list))]
}

// Lister asks another coordinator for its live transactions. A Forwarder may be one.
type Lister interface {
	ListLive(ctx context.Context, from Member, f Filter, after LiveCursor, limit int) ([]Reply, error)
}

// List pages through all transactions of the region: those that are live, newest first, then those in the journal,
// newest first. The first cursor is "", the last page's is "". A coordinator that cannot be asked is an error: a list
// never leaves out in silence.
func (r *Runner) List(ctx context.Context, f Filter, cursor string, limit int) ([]Reply, string, error) {
	if jc, ok := strings.CutPrefix(cursor, "j:"); ok {
		return r.listJournal(ctx, f, jc, limit)
	}
	after, err := parseLiveCursor(cursor)
	if err != nil {
		return nil, "", err
	}
	list, err := r.ListLive(ctx, f, after, limit)
	if err != nil {
		return nil, "", err
	}
	if v := r.view.Load(); v != nil {
		for _, m := range v.Members {
			if m.ID == r.cfg.Self.ID {
				continue
			}
			lister, ok := r.forward.(Lister)
			if !ok {
				return nil, "", fmt.Errorf("coordinator %q cannot be asked for its transactions", m.ID)
			}
			more, err := lister.ListLive(ctx, m, f, after, limit)
			if err != nil {
				return nil, "", fmt.Errorf("ask coordinator %q for its transactions: %w", m.ID, err)
			}
			list = append(list, more...)
		}
	}
	list = newest(list, limit)
	if len(list) == limit {
		last := &list[limit-1].State
		return list, LiveCursor{BegunAt: last.BegunAt, Gid: last.Gid}.String(), nil
	}
	rest, next, err := r.listJournal(ctx, f, "", limit-len(list))
	return append(list, rest...), next, err
}

func (r *Runner) listJournal(ctx context.Context, f Filter, cursor string, limit int) ([]Reply, string, error) {
	if f.StuckFails > 0 || f.Stopped || f.InDoubt {
		return nil, "", nil // what is finished is neither
	}
	visible := int64(0)
	if r.cfg.KeepFinished > 0 {
		visible = r.clock.NowMillis() - r.cfg.KeepFinished.Milliseconds()
	}
	txs, next, err := r.journal.List(ctx, f, cursor, limit, visible)
	if err != nil {
		return nil, "", err
	}
	var out []Reply
	for _, tx := range txs {
		out = append(out, replyOf(tx))
	}
	if next != "" {
		next = "j:" + next
	}
	return out, next, nil
}

func replyOf(tx *record.Tx) Reply {
	return Reply{State: tx.State, Timeline: tx.Timeline, Decision: tx.Decision, Finish: tx.Finish, Trimmed: tx.Trimmed}
}

// LocalSlots says which slots this process holds.
func (r *Runner) LocalSlots() func(n int) bool { return r.holds }

// MakeDue makes due now what waits here longer than after, at most limit transactions; more says that some are left.
func (r *Runner) MakeDue(ctx context.Context, after time.Duration, limit int) (done int, more bool, err error) {
	err = r.Ask(ctx, func(c *Core, at int64) {
		var late []txn.Gid
		c.Each(func(rep Reply) {
			if next := txn.NextWake(&rep.State); next > at+after.Milliseconds() {
				late = append(late, rep.State.Gid)
			}
		})
		for _, gid := range late {
			if done == limit {
				more = true
				return
			}
			c.Apply(at, &pending{req: Request{Gid: gid, Event: txn.Retry{}, Want: WantAccepted}, done: make(chan answer, 1)})
			done++
		}
	})
	return done, more, err
}

// AdvanceClock moves a clock that can be moved and waits until all that became due was attempted once; it gives the
// gids. It serves people who test their timeouts (--debug-clock).
func (r *Runner) AdvanceClock(ctx context.Context, move func()) ([]txn.Gid, error) {
	var due []txn.Gid
	err := r.Ask(ctx, func(c *Core, _ int64) {
		move()
		due = c.Due(r.clock.NowMillis())
	})
	sort.Slice(due, func(i, j int) bool { return due[i] < due[j] })
	for err == nil {
		quiet := true
		err = r.Ask(ctx, func(c *Core, at int64) {
			for _, gid := range due {
				quiet = quiet && c.Quiet(gid) && !c.DueNow(gid, at)
			}
		})
		if quiet {
			break
		}
		select {
		case <-time.After(2 * time.Millisecond):
		case <-ctx.Done():
			err = context.Cause(ctx)
		}
	}
	return due, err
}

// DueNow says that the transaction's wake is due and has not been taken yet.
func (c *Core) DueNow(gid txn.Gid, at int64) bool {
	hs := c.slots[slot.Of(string(gid))]
	if hs == nil || !hs.ready || hs.txs[gid] == nil {
		return false
	}
	e := hs.txs[gid]
	return e.timer.at != 0 && e.timer.at <= at
}
