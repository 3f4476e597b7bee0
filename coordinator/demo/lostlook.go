package demo

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"text/tabwriter"
	"time"

	"github.com/lockstep-tx/lockstep/coordinator/api/admin"
	"github.com/lockstep-tx/lockstep/region/failover"
)

// This file asks how it stands with a lost region, and says it in the end.

// poll asks until the answer is yes. Within that time an error is a no: its text says why in the end.
func (d *demo) poll(ctx context.Context, within, every time.Duration, ask func() (bool, error)) error {
	deadline := time.Now().Add(within)
	for {
		yes, err := ask()
		if yes {
			return nil
		}
		if time.Now().After(deadline) {
			return errors.Join(fmt.Errorf("not within %v", within), err)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(every):
		}
	}
}

// lastRun reads the newest operation of a kind as the arbiter has it.
func (d *demo) lastRun(ctx context.Context, kind failover.Kind) (last failover.Run, err error) {
	out, err := d.lockstep(ctx, "region", "history", "--context", d.world.context, "-o", "json")
	if err != nil {
		return last, err
	}
	var history struct {
		Runs []failover.Run `json:"runs"`
	}
	if err := json.Unmarshal([]byte(out), &history); err != nil {
		return last, fmt.Errorf("what lockstep region history printed: %w", err)
	}
	for _, r := range history.Runs { // by name, not by time
		if r.Plan.Kind == kind && r.BegunMillis > last.BegunMillis {
			last = r
		}
	}
	if last.BegunMillis == 0 {
		return last, fmt.Errorf("the history has no %s", kind)
	}
	return last, nil
}

// inDoubt lists what the heir knows to be in doubt.
func (d *demo) inDoubt(ctx context.Context) ([]string, error) {
	out, err := d.lockstep(ctx, "tx", "list", "--in-doubt", "--limit", "500", "-o", "json", "--admin-addr", d.loss.heir.addr.Admin)
	if err != nil {
		return nil, err
	}
	var page admin.List
	if err := json.Unmarshal([]byte(out), &page); err != nil {
		return nil, fmt.Errorf("what lockstep tx list printed: %w: %.200s", err, out)
	}
	var gids []string
	for _, t := range page.Transactions {
		gids = append(gids, t.Gid)
	}
	return gids, nil
}

// findDoubts notes what is in doubt now.
func (d *demo) findDoubts(ctx context.Context) error {
	gids, err := d.inDoubt(ctx)
	for _, gid := range gids {
		d.loss.doubts[gid] = true
	}
	return err
}

// leave keeps a region's clients from asking it, as whoever moves outside traffic does; enter lets them again.
func (l *load) leave(region string) { l.setAway(region, true) }
func (l *load) enter(region string) { l.setAway(region, false) }

func (l *load) setAway(region string, away bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.away[region] = away
}

func (l *load) outcomeOf(t *transferred) outcome {
	l.mu.Lock()
	defer l.mu.Unlock()
	return t.outcome
}

// table is the loss's line in the end.
func (l *loss) table(out io.Writer, after int64) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "REGION LOST\tTO\tSLOTS\tDETECT\tDECIDE\tSWITCH\tFIRST SUCCESS\tPAID WITHOUT IT\tIN DOUBT\tSETTLED\tTAKEN OVER\tSLOTS BACK\tMONEY BEFORE\tAFTER")
	ms := func(d time.Duration) string { return fmt.Sprintf("%d ms", d.Milliseconds()) }
	fmt.Fprintf(w, "%s\t%s\t%d\t%s\t%s\t%s\t%s\t%d\t%d\t%d\t%d\t%d\t%s\t%s\n", l.region.name, l.heir.name, l.slots, ms(l.detect), ms(l.decide), ms(l.switched), ms(l.first),
		l.alone, len(l.doubts), len(l.doubts), len(l.resolved), l.back, yuan(int64(wallets)*firstDeposit), yuan(after))
	return w.Flush()
}
