package scenario

import (
	"context"
	"errors"
	"time"

	"github.com/lockstep-tx/lockstep/chaos/check"
	"github.com/lockstep-tx/lockstep/chaos/history"
	"github.com/lockstep-tx/lockstep/chaos/proc"
)

// journals reads both.
func (r *running) journals(ctx context.Context) (decided []check.Decided, events []check.Event, err error) {
	for _, region := range r.d.Regions {
		d, e, rerr := check.ReadJournal(ctx, region.Name, region.Journal)
		decided, events, err = append(decided, d...), append(events, e...), errors.Join(err, rerr)
	}
	return decided, events, err
}

// lag is how many events one journal has more than the other.
func (r *running) lag(ctx context.Context) int {
	_, events, err := r.journals(ctx)
	if err != nil {
		return 0
	}
	// Of each region's own, by how many the other is behind: both can be behind at once.
	type event struct {
		origin, seq int64
		slot        int
	}
	seen := map[event]int{}
	for _, e := range events {
		seen[event{e.Origin, e.Seq, e.Slot}]++
	}
	n := 0
	for _, k := range seen {
		if k == 1 {
			n++
		}
	}
	return n
}

// quiet waits until nothing is open any more, or until it should be so: what is left then is for the checkers.
func (r *running) quiet(ctx context.Context) {
	limit := r.o.Quiet
	if limit == 0 {
		limit = quietLimit
	}
	limit = r.scaled(limit)
	end, calm := time.Now().Add(limit), 0
	for time.Now().Before(end) && ctx.Err() == nil {
		if !r.level(ctx) {
			calm = 0
		} else if calm++; calm == 2 { // what has just ended may be on its way to a journal at the first look
			return
		}
		sleep(ctx, 300*time.Millisecond)
	}
	r.o.Say("%s: not quiet after %v", r.s.ID, limit)
}

func (r *running) level(ctx context.Context) bool {
	if r.o.System != nil {
		return r.o.System.Settled(ctx)
	}
	if r.d.Foreign {
		return r.settled(ctx)
	}
	var first map[string]int64
	for _, region := range r.d.Regions {
		s, err := check.ReadSnapshot(ctx, region.Name, region.DB, r.log.Now)
		if err != nil {
			return false
		}
		of := map[string]int64{}
		for _, a := range s.Accounts {
			if a.DebitsPending != 0 || a.CreditsPending != 0 {
				return false
			}
			of[a.ID] = a.Balance()
		}
		if first == nil {
			first = of
		}
		for id, v := range of {
			if first[id] != v && len(r.givenUp) == 0 { // what is left of those differs for good
				return false
			}
		}
	}
	return r.settled(ctx)
}

// settled says that both journals have the same, that everything in them is finished, and that nothing is driven any more.
func (r *running) settled(ctx context.Context) bool {
	if r.driving(ctx) || r.lag(ctx) > 0 { // first what is driven: it comes to the journals when it has ended
		return false
	}
	decided, _, err := r.journals(ctx)
	for _, d := range decided {
		if !d.Finished {
			return false
		}
	}
	return err == nil
}

// driven reads what coordinators still drive, once nothing should be open any more. One that does not answer is asked again.
func (r *running) driven(ctx context.Context, e *check.Evidence) {
	for _, region := range r.d.Regions {
		for i, c := range region.Coordinators {
			var v check.View
			var err error
			for range 3 {
				if v, err = check.ReadView(ctx, c.Name, region.Admin[i]); err == nil || !sleep(ctx, time.Second) {
					break
				}
			}
			if err != nil {
				e.Silent = append(e.Silent, c.Name+": "+err.Error())
			}
			e.Driven = append(e.Driven, v.Live...)
		}
	}
}

// driving says that a coordinator still drives something. What has no hold yet, and is not decided, shows itself nowhere else until
// its time is over.
func (r *running) driving(ctx context.Context) bool {
	for _, region := range r.d.Regions {
		for i, c := range region.Coordinators {
			if v, err := check.ReadView(ctx, c.Name, region.Admin[i]); err != nil || len(v.Live) > 0 {
				return true
			}
		}
	}
	return false
}

// gathered is the evidence that came together while the run went on.
func (r *running) gathered() *check.Evidence {
	e := &check.Evidence{Opened: r.d.Opened, Ops: r.log.Ops(), Windows: append([]check.Window{r.win}, r.crashes...), Lagged: r.lagged, Snapshots: r.snaps, Reaches: r.reach, Plants: r.plants, GivenUp: r.givenUp}
	r.res.Ops, r.res.Timeline, r.res.Windows = len(e.Ops), Timeline(e.Ops), e.Windows
	for _, op := range e.Ops {
		if op.Outcome == history.Unknown {
			r.res.Unknown++
		}
	}
	return e
}

// soFar gathers, of a run that was broken off, what needs nothing to be at rest: what clients and participants were asked and told,
// and what was written of slots' owners.
func (r *running) soFar(ctx context.Context) (*check.Evidence, error) {
	e := &check.Evidence{Ops: r.log.Ops()}
	if r.o.System != nil {
		return e, nil
	}
	for _, region := range r.d.Regions {
		e.Calls = append(e.Calls, region.Tap.Calls()...)
	}
	var err error
	e.Owned, err = check.ReadOwners(context.WithoutCancel(ctx), r.clusters()["arbiter"]) // also where its time is over: it has a limit of its own
	return e, err
}

// read gathers what was left behind.
func (r *running) read(ctx context.Context) (*check.Evidence, error) {
	e := r.gathered()
	var err error
	for _, region := range r.d.Regions {
		e.Calls, e.Repairs = append(e.Calls, region.Tap.Calls()...), append(e.Repairs, region.Tap.Repairs()...)
		if r.d.Foreign {
			e.Books = append(e.Books, check.Book{Region: region.Name})
			continue
		}
		b, rerr := check.ReadBook(ctx, region.Name, region.DB, region.Barrier)
		e.Books, err = append(e.Books, b), errors.Join(err, rerr)
	}
	var jerr error
	e.Decided, e.Events, jerr = r.journals(ctx)
	if r.d.Foreign {
		var berr error
		e.Foreign, e.Deposit = true, proc.Deposit
		e.Balances, berr = r.d.Balances(ctx)
		err = errors.Join(err, berr)
	}
	r.driven(ctx, e)
	var oerr, serr error
	e.Owned, oerr = check.ReadOwners(ctx, r.clusters()["arbiter"])
	e.Stores, serr = r.stores(ctx) // last: it begins transactions
	return e, errors.Join(err, jerr, oerr, serr)
}
