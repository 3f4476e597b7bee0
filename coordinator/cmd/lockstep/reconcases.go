package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/lockstep-tx/lockstep/region/reconcile/channelfile"
	"github.com/lockstep-tx/lockstep/region/reconcile/dayend"
	"github.com/lockstep-tx/lockstep/region/reconcile/dayend/books"
)

type reconCasesCmd struct {
	reconFlags
	Day    string `help:"Those of one day." placeholder:"DAY"`
	All    bool   `help:"Also those that are ended."`
	Output string `help:"table or json (one case a line)." enum:"table,json" default:"table" short:"o"`
}

// Run lists cases.
func (c *reconCasesCmd) Run(e *env) error {
	f := dayend.Filter{Standing: !c.All}
	if c.Day != "" {
		day, err := dayOf(c.Day)
		if err != nil {
			return err
		}
		f.Day = day
	}
	return c.with(e, func(b *dayend.Book) error {
		var list []dayend.Finding
		enc := json.NewEncoder(e.out)
		if err := b.Each(e.ctx, f, func(x dayend.Finding) error {
			if c.Output == "json" {
				return enc.Encode(x)
			}
			list = append(list, x)
			return nil
		}); err != nil || c.Output == "json" {
			return err
		}
		if len(list) == 0 {
			fmt.Fprintln(e.out, "no case is open")
			return nil
		}
		if err := findings(e, list, len(list)); err != nil {
			return err
		}
		next(e.out, "lockstep recon show "+list[0].ID+" "+c.flags())
		return nil
	})
}

type reconShowCmd struct {
	reconFlags
	ID string `arg:"" help:"Id of the case."`
}

// Run shows a case.
func (c *reconShowCmd) Run(e *env) error {
	return c.with(e, func(b *dayend.Book) error {
		f, err := b.Finding(e.ctx, c.ID)
		if err != nil {
			return c.none(err)
		}
		enc := json.NewEncoder(e.out)
		enc.SetIndent("", "  ")
		if err := enc.Encode(f); err != nil || f.Status == dayend.StatusEnded {
			return err
		}
		switch {
		case f.Status == dayend.StatusDue:
			next(e.out, "lockstep recon run --day "+f.Day+" "+c.flags()+"  # goes on with what is due")
		case dayend.Bookable(f) == nil:
			next(e.out, "lockstep recon book "+f.ID+" --buyer BUYER --item SKU=1 --reason TEXT "+c.flags())
		default:
			next(e.out, "lockstep recon settle "+f.ID+" --reason TEXT "+c.flags())
		}
		return nil
	})
}

func (c *reconFlags) none(err error) error {
	if errors.Is(err, dayend.ErrNoFinding) {
		return &failure{fmt.Errorf("case: %w", err), "lockstep recon cases --all " + c.flags()}
	}
	if errors.Is(err, books.ErrNoAPI) {
		return &failure{err, "lockstep recon cases " + c.flags() + "  # nothing was changed; the same again with --payments URL"}
	}
	var no *dayend.Conflict
	if errors.As(err, &no) {
		return &failure{err, "lockstep recon cases " + c.flags()}
	}
	return err
}

// person says who ends a case, and why.
type person struct {
	ID     string `arg:"" help:"Id of the case."`
	Reason string `help:"Why, for the audit." required:"" placeholder:"TEXT"`
	Who    string `help:"Who does it, for the audit. Defaults to the user."`
	DryRun bool   `help:"Do every check, and change nothing."`
}

type reconBookCmd struct {
	reconFlags
	mappingFlag
	booksFlags
	person
	Buyer    string           `help:"Who pays." placeholder:"ID"`
	Item     map[string]int64 `help:"What was sold, as SKU=NUMBER." placeholder:"SKU=N"`
	Merchant string           `help:"Whose order it is. Defaults to the line's."`
	OrderNo  string           `help:"Its number. Defaults to the line's."`
}

// Run books a missing order.
func (c *reconBookCmd) Run(e *env) error {
	m, err := c.load()
	if err != nil {
		return err
	}
	return c.with(e, func(b *dayend.Book) error {
		ours, done, err := c.ours(e, m)
		if err != nil {
			return err
		}
		defer done()
		f, err := b.Finding(e.ctx, c.ID)
		if err != nil {
			return c.none(err)
		}
		if f.Channel != m.Channel || f.Kind != m.Kind {
			return &failure{fmt.Errorf("--mapping: it is of %s %s, the case of %s %s", m.Channel, m.Kind, f.Channel, f.Kind), "lockstep recon show " + f.ID + " " + c.flags()}
		}
		if c.DryRun {
			return c.plan(e, b)
		}
		f, err = b.Book(e.ctx, ours, c.ID, dayend.Missing{Merchant: c.Merchant, OrderNo: c.OrderNo, Buyer: c.Buyer, Items: c.Item, Who: whoOr(c.Who), Reason: c.Reason})
		if err != nil {
			return c.none(err)
		}
		fmt.Fprintf(e.out, "%s is %s: %s\n", f.ID, f.Status, shown(f.Outcome))
		if f.Status != dayend.StatusEnded {
			next(e.out, "lockstep recon book "+f.ID+" --buyer BUYER --item SKU=1 --reason TEXT "+c.flags()+"  # the same again, until it is decided")
		}
		return nil
	})
}

func (c *reconBookCmd) plan(e *env, b *dayend.Book) error {
	f, err := b.MayBook(e.ctx, c.ID, whoOr(c.Who), c.Reason)
	if err == nil && c.Payments == "" {
		err = books.ErrNoAPI
	}
	if err != nil {
		return c.none(err)
	}
	fmt.Fprintf(e.out, "would book order %s of merchant %s: %d %s from %s\n", shown(f.OrderNo), shown(f.Merchant), f.Theirs.Amount, f.Theirs.Currency, shown(c.Buyer))
	return nil
}

type reconSettleCmd struct {
	reconFlags
	person
}

// Run settles a case.
func (c *reconSettleCmd) Run(e *env) error {
	return c.with(e, func(b *dayend.Book) error {
		if c.DryRun {
			f, err := b.MaySettle(e.ctx, c.ID, whoOr(c.Who), c.Reason)
			if err != nil {
				return c.none(err)
			}
			fmt.Fprintf(e.out, "would settle %s, %s, %s: %s\n", f.ID, f.Class, f.Status, shown(f.Text))
			return nil
		}
		f, err := b.Settle(e.ctx, c.ID, whoOr(c.Who), c.Reason)
		if err != nil {
			return c.none(err)
		}
		fmt.Fprintf(e.out, "%s is ended: %s\n", f.ID, shown(f.Outcome))
		return nil
	})
}

type reconWatchCmd struct {
	reconDay
	Every time.Duration `help:"How often to look." default:"10m"`
	First string        `help:"The first day, where none was compared yet. Defaults to the first that has a file." placeholder:"DAY"`
	Once  bool          `help:"Look once."`
}

// Run fetches, loads and compares until the context ends. What fails is said and tried again.
func (c *reconWatchCmd) Run(e *env) error {
	m, err := c.load()
	if err != nil {
		return err
	}
	if c.Every < time.Second {
		return usageError{errors.New("--every: at least 1s belongs there")}
	}
	return c.with(e, func(b *dayend.Book) error {
		for {
			err := c.look(e, b, m)
			if c.Once {
				return err
			}
			if err != nil {
				fmt.Fprintln(e.err, "lockstep recon watch:", shown(err.Error()))
			}
			select {
			case <-e.ctx.Done():
				return nil
			case <-time.After(c.Every):
			}
		}
	})
}

// look fetches what is there, loads it, compares every day that can be compared, in their order, and goes on with what is due.
func (c *reconWatchCmd) look(e *env, b *dayend.Book, m *channelfile.Mapping) error {
	day, err := b.NextDay(e.ctx, m)
	if err != nil {
		return err
	}
	if day == "" && c.First != "" {
		if day, err = dayOf(c.First); err != nil {
			return err
		}
	}
	_, ferr := fetch(e.ctx, b, m, day)
	files, err := inbox(e.ctx, b, m)
	if err != nil {
		return err
	}
	load := reconLoadCmd{Output: "table"}
	_, lerr := load.each(e, b, m, files)
	if day == "" {
		if day, err = b.NextDay(e.ctx, m); err != nil {
			return err
		}
	}
	return errors.Join(ferr, lerr, c.days(e, b, m, day))
}

// days compares the days from day on whose time has come. What is due of days that were compared before is gone on with, also
// where none has come: the next one may be a day away, and what failed is owed now.
func (c *reconWatchCmd) days(e *env, b *dayend.Book, m *channelfile.Mapping, day string) error {
	err := c.owed(e, b, m)
	for day != "" && e.ctx.Err() == nil {
		run := reconRunCmd{reconDay: c.reconDay, Day: day, Output: "table"}
		rerr := run.run(e, b, m, day)
		var not *dayend.NotReadyError
		if errors.As(rerr, &not) { // its time comes
			return err
		}
		err = errors.Join(err, rerr)
		after, nerr := b.NextDay(e.ctx, m)
		if nerr != nil || after == day {
			return errors.Join(err, nerr)
		}
		day = after
	}
	return err
}

// owed does what is due, and counts again what stands.
func (c *reconWatchCmd) owed(e *env, b *dayend.Book, m *channelfile.Mapping) error {
	last, err := b.LastRun(e.ctx, m.Channel, m.Kind)
	if err != nil || last == nil {
		return err
	}
	_, due, err := b.Standing(e.ctx, m.Channel, m.Kind)
	if err == nil && due > 0 {
		var ours dayend.Ours
		var done func()
		if ours, done, err = c.ours(e, m); err == nil {
			err = b.GoOn(e.ctx, m, ours)
			done()
		}
	}
	if c.Metrics != "" {
		err = errors.Join(err, writeMetrics(e.ctx, c.Metrics, b, last))
	}
	return err
}
