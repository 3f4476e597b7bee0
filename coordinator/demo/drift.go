package demo

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"
)

// finding is what the product says of drift that it found: one line of `lockstep drift … -o json`.
type finding struct {
	ID      string `json:"id"`
	Class   string `json:"class"`
	Status  string `json:"status"`
	Region  string `json:"region"`
	Gid     string `json:"gid"`
	Branch  string `json:"branch"`
	Account string `json:"account"`
	Text    string `json:"text"`
	Repair  string `json:"repair"`
}

// is says that a finding is of a planted drift.
func (f *finding) is(p *planted) bool {
	return f.Class == p.Class && f.Region == p.Region && (p.Gid == "" && f.Account == p.Account || p.Gid != "" && f.Gid == p.Gid && f.Branch == p.Branch)
}

// alteredBy is how much the altered account has too much.
const alteredBy = 12_345

// plant plants a lost confirm and an altered amount in the first region's database, while the regions are apart.
func (d *demo) plant(ctx context.Context) error {
	r := d.world.regions[0]
	lost, err := d.loseConfirm(ctx, r)
	if err != nil {
		return err
	}
	account := ""
	for _, a := range d.load.accounts {
		if a != lost.Account {
			account = a
		}
	}
	altered, err := d.world.chaos.seed(ctx, r, "--class", "D06", "--account", account, "--delta", strconv.Itoa(alteredBy))
	if err != nil {
		return err
	}
	d.drift = append(d.drift, lost, altered)
	d.watch.mark(r.name, "planted", "D01: the confirm of %s/%s is lost", lost.Gid, lost.Branch)
	d.watch.mark(r.name, "planted", "D06: %s has %s too much", altered.Account, yuan(alteredBy))
	d.act("behind the product's back, in the wallets' database of %s: the confirm of payment %s is lost (%s has %s instead of %s), and %s is altered from %s to %s",
		r.name, lost.Gid, lost.Account, yuan(lost.After), yuan(lost.Before), altered.Account, yuan(altered.Before), yuan(altered.After))
	return nil
}

// loseConfirm takes the payer's confirm back, of a payment that has been confirmed by now.
func (d *demo) loseConfirm(ctx context.Context, r *region) (*planted, error) {
	tried := error(nil)
	quiet := d.load.quiet(r.name)
	for _, t := range quiet[:min(5, len(quiet))] {
		p, err := d.world.chaos.seed(ctx, r, "--class", "D01", "--gid", t.gid, "--branch", "pay")
		if err == nil {
			return p, nil
		}
		tried = err
	}
	return nil, errors.Join(errNoVictim, tried)
}

// repair has the product find the drift, repair it, and look again; the regions go on paying.
func (d *demo) repair(ctx context.Context) error {
	list, err := d.find(ctx)
	if err != nil {
		return err
	}
	d.act("lockstep drift run compares the regions' journals, decisions and books, and finds:")
	for _, f := range list {
		d.watch.mark(f.Region, "found", "%s %s", f.Class, f.Text)
		d.tell("  %s %s in %s: %.160s", f.ID, f.Class, f.Region, f.Text)
	}
	d.watch.setFindings(len(list))
	if err := d.matched(list); err != nil {
		return err
	}
	out, err := d.lockstep(ctx, "drift", "apply", "--context", d.world.context, "-o", "json")
	if err != nil {
		return fmt.Errorf("%w\n%s", err, out)
	}
	done, err := findings(out)
	if err != nil {
		return err
	}
	for _, f := range done {
		d.watch.mark(f.Region, "repaired", "%s: %s", f.Class, f.Repair)
		d.tell("  repaired: %s in %s: %.160s", f.Class, f.Region, f.Repair)
	}
	if _, err := d.compare(ctx, "verify", d.apartSince); err != nil {
		return fmt.Errorf("after the repair: %w", err)
	}
	d.watch.setFindings(0)
	for _, p := range d.drift {
		for _, f := range done {
			p.repaired = p.repaired || f.is(p)
		}
	}
	d.tell("  lockstep drift verify looks again and finds nothing")
	return nil
}

// find looks until everything planted was found, for what has only just happened is left for the next look.
func (d *demo) find(ctx context.Context) ([]finding, error) {
	deadline := time.Now().Add(d.patience)
	for {
		list, err := d.compare(ctx, "run", d.apartSince)
		if err != nil {
			return nil, err
		}
		all := true
		for _, p := range d.drift {
			p.found = false
			for _, f := range list {
				p.found = p.found || f.is(p)
			}
			all = all && p.found
		}
		if all || time.Now().After(deadline) {
			return list, nil
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(500 * time.Millisecond):
		}
	}
}

// comparedMost is how many transactions one look may compare: the product says when it has left some out (at 5,000).
const comparedMost = 4000

// compare runs `lockstep drift run` or verify over everything that finished since from, in windows of which none holds too
// much, the newest first: time goes on meanwhile, so that each overlaps with the one before.
func (d *demo) compare(ctx context.Context, what string, from time.Time) ([]finding, error) {
	window := comparedMost * time.Second / time.Duration(d.cfg.Rate*d.cfg.Regions)
	windows := 1 + int(time.Since(from)/window)
	var all []finding
	seen := map[string]bool{}
	for i := range windows {
		settle := time.Second + time.Duration(i)*window
		list, err := d.look(ctx, what, settle, max(settle+window, wholeIf(i == windows-1, from)))
		if err != nil {
			return nil, err
		}
		for _, f := range list {
			if !seen[f.ID] {
				seen[f.ID] = true
				all = append(all, f)
			}
		}
	}
	return all, nil
}

// wholeIf is how long ago from was, for the last window, which has to reach there.
func wholeIf(last bool, from time.Time) time.Duration {
	if last {
		return time.Since(from)
	}
	return 0
}

// look runs `lockstep drift run` or verify once.
func (d *demo) look(ctx context.Context, what string, settle, since time.Duration) ([]finding, error) {
	out, err := d.lockstep(ctx, "drift", what, "--context", d.world.context, "-o", "json", "--settle", settle.String(), "--since", since.String())
	if err != nil {
		return nil, fmt.Errorf("%w\n%s", err, out)
	}
	return findings(out)
}

// matched is an error when something planted was not found, or something found was not planted.
func (d *demo) matched(list []finding) error {
	var errs []error
	for _, p := range d.drift {
		if !p.found {
			errs = append(errs, fmt.Errorf("planted and not found: %s of %s%s in %s", p.Class, p.Gid, p.Account, p.Region))
		}
	}
	for _, f := range list {
		known := false
		for _, p := range d.drift {
			known = known || f.is(p)
		}
		if !known {
			errs = append(errs, fmt.Errorf("found and not planted: %+v", f))
		}
	}
	return errors.Join(errs...)
}

// findings reads JSON lines.
func findings(out string) ([]finding, error) {
	var list []finding
	for dec := json.NewDecoder(strings.NewReader(out)); dec.More(); {
		var f finding
		if err := dec.Decode(&f); err != nil {
			return nil, fmt.Errorf("what lockstep drift printed: %w: %.200s", err, out)
		}
		list = append(list, f)
	}
	return list, nil
}
