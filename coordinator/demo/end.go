package demo

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
)

// end lets the load come to rest, counts, and shows what it was.
func (d *demo) end(ctx context.Context) error {
	if err := d.until(ctx, loadEnds); err != nil {
		return err
	}
	d.load.halt()
	d.rested = time.Now()
	d.watch.mark("", "rest", "the load is over")
	if err := d.load.fault; err != nil {
		return err
	}
	doubtful, err := d.load.resolve(ctx, quietLimit)
	if err != nil {
		return err
	}
	d.act("the load is over; %d payments whose answers were lost were asked for again; now everything comes to rest, and the money is counted", doubtful)
	books, wrong, err := d.settled(ctx)
	d.watch.halt()
	if err != nil {
		return err
	}
	table, err := d.table(ctx, books, doubtful)
	if err != nil {
		return err
	}
	fmt.Fprintln(d.cfg.Out, table)
	file, err := d.writeTimeline(table)
	if err != nil {
		return err
	}
	d.tell("the timeline: %s", file)
	shop := d.countShop(ctx)
	for _, p := range d.drift {
		if !p.found || !p.repaired {
			wrong = append(wrong, fmt.Sprintf("drift %s of %s was found: %v, repaired: %v", p.Class, p.Account, p.found, p.repaired))
		}
	}
	if len(wrong) > 0 {
		return errors.Join(fmt.Errorf("THE MONEY IS WRONG:\n%s", strings.Join(wrong, "\n")), shop)
	}
	if shop != nil {
		return shop
	}
	d.tell("not a cent is off; the first payment was made %.1f s after the start, the whole took %.0f s", d.first.Seconds(), time.Since(d.start).Seconds())
	return nil
}

// settled reads the books until every region's is as the clients were told, and gives what is wrong where that does not
// come to be.
func (d *demo) settled(ctx context.Context) (books map[string]*book, wrong []string, err error) {
	want := d.load.expected()
	deadline := time.Now().Add(d.patience)
	for {
		books, wrong = map[string]*book{}, nil
		for _, r := range d.world.regions {
			b, err := readBook(ctx, r.db)
			if err != nil {
				return nil, nil, fmt.Errorf("the wallets of %s: %w", r.name, err)
			}
			books[r.name] = b
			for _, w := range b.differs(want) {
				wrong = append(wrong, r.name+": "+w)
			}
			if b.holds > 0 {
				wrong = append(wrong, fmt.Sprintf("%s: %d holds are still open", r.name, b.holds))
			}
		}
		if len(wrong) == 0 || time.Now().After(deadline) {
			return books, wrong, nil
		}
		select {
		case <-ctx.Done():
			return nil, nil, ctx.Err()
		case <-time.After(200 * time.Millisecond):
		}
	}
}

// table is what was counted, region by region.
func (d *demo) table(ctx context.Context, books map[string]*book, doubtful int) (string, error) {
	var b strings.Builder
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "\nREGION\tASKED FOR\tPAID\tNOT PAID\tIN DOUBT\tDECIDED IN JOURNAL\tFINISHED\tDRIFT PLANTED\tFOUND\tREPAIRED\tMONEY BEFORE\tAFTER\tFROZEN")
	var errs []error
	for _, r := range d.world.regions {
		var asked, paidHere, no, open, drift, found, repaired int
		for _, t := range d.load.pays {
			if t.region != r.name {
				continue
			}
			asked++
			switch t.outcome {
			case paid:
				paidHere++
			case notPaid:
				no++
			case inDoubt:
				open++
			}
		}
		for _, p := range d.drift {
			if p.Region == r.name {
				drift++
				found += btoi(p.found)
				repaired += btoi(p.repaired)
			}
		}
		decided, finished, err := readJournal(ctx, r.journal())
		errs = append(errs, err)
		fmt.Fprintf(w, "%s\t%d\t%d\t%d\t%d\t%d\t%d\t%d\t%d\t%d\t%s\t%s\t%s\n", r.name, asked, paidHere, no, open, decided, finished, drift, found, repaired,
			yuan(int64(wallets)*firstDeposit), yuan(books[r.name].total()), yuan(books[r.name].held))
	}
	errs = append(errs, w.Flush())
	if d.loss != nil {
		fmt.Fprintln(&b)
		errs = append(errs, d.loss.table(&b, books[d.loss.heir.name].total()))
	}
	fmt.Fprintf(&b, "(each journal has the decisions of all regions, and the shop's; each region has a copy of every wallet; %d answers were lost and asked for again)\n", doubtful)
	return b.String(), errors.Join(errs...)
}

func btoi(b bool) int {
	if b {
		return 1
	}
	return 0
}

// quiet payments of a region are those whose confirms have come by now; the newest come first.
func (l *load) quiet(region string) []*transferred {
	l.mu.Lock()
	defer l.mu.Unlock()
	var out []*transferred
	for _, t := range slices.Backward(l.pays) {
		if t.outcome == paid && l.home[t.from] == region && time.Since(t.at) > 5*time.Second {
			out = append(out, t)
		}
	}
	return out
}
