package sweep

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/lockstep-tx/lockstep/chaos/check"
	"github.com/lockstep-tx/lockstep/chaos/seed"
)

// finding is what the product's command prints of one, as far as it is of interest here.
type finding struct {
	ID, Class, Region, Gid, Branch, Account, Text, Repair, Status string
	Slot                                                          int
}

// summaryLine is what a look says that it has looked at.
var summaryLine = regexp.MustCompile(`compared (\d+) chains .*?, (\d+) transactions, (\d+) branches`)

// drift runs one of the reconciler's commands and gives the findings that it prints, and the rest of what it says.
func (w *world) drift(ctx context.Context, what string, more ...string) (found []finding, rest string, err error) {
	args := append([]string{"drift", what, "--context", w.d.Regions[0].File, "-o", "json"}, more...)
	out, err := w.d.Tool(ctx, args...)
	var other strings.Builder
	for line := range strings.Lines(out) {
		var f finding
		if strings.HasPrefix(line, "{") && json.Unmarshal([]byte(line), &f) == nil && f.ID != "" {
			found = append(found, f)
		} else {
			other.WriteString(line)
		}
	}
	return found, other.String(), err
}

// since is how far back a look must go to meet the transactions of all seeds that something is awaited of.
func (w *world) since(now time.Time) time.Duration {
	back := lookBack
	for _, s := range w.seeds {
		if !s.over() && !w.given(s) {
			back = max(back, now.Sub(s.Injected)+time.Duration(s.AgeMillis)*time.Millisecond+lookBack/4)
		}
	}
	return back.Truncate(time.Second)
}

// look has the product look, and holds what it finds against what was planted.
func (w *world) look(ctx context.Context) error {
	began := time.Now()
	found, said, err := w.drift(ctx, "run", "--since", max(w.since(began), w.scaled(5*staleAfter/2)).String(), "--stale-after", w.scaled(staleAfter).String())
	if err != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		w.o.Say("drift run: %v: %s", err, said) // a region that is cut off; it is looked at again
		return nil
	}
	now := time.Now()
	m := summaryLine.FindStringSubmatch(said)
	if m == nil {
		return fmt.Errorf("drift run says nothing of what it has looked at: %s", said)
	}
	w.judged, _ = strconv.Atoi(m[2]) // digits
	w.looks++
	w.found = map[*Seed][]finding{}
	for _, f := range found {
		s := w.match(&f)
		if s == nil && w.lags(&f) {
			w.lagged[f.ID] = true
			continue
		}
		if s == nil {
			raw, _ := json.Marshal(f) // texts and a number
			w.false[f.ID] = string(raw)
			continue
		}
		w.found[s] = append(w.found[s], f)
		if !s.Found.IsZero() || s.class.id == d21 && f.Class != "D21" { // what was open at the backup has names of its own
			continue
		}
		s.Found, s.FoundAs, s.Finding = now, f.Class, f.ID
		s.Unreachable = w.unreachable(s.Injected, now)
		if s.class.person != (f.Repair == "") && s.class.id != d21 {
			s.Wrong = fmt.Sprintf("the finding's repair is %q, a person is to decide: %v", f.Repair, s.class.person)
		}
	}
	w.o.Say("look %d of %v: %d findings, %s", w.looks, now.Sub(began).Truncate(time.Millisecond), len(found), strings.TrimSpace(said))
	return nil
}

// match gives the seed that a finding is of. Of several that share a place, that which it is named after.
func (w *world) match(f *finding) (best *Seed) {
	for _, s := range w.seeds {
		if !s.is(f) {
			continue
		}
		if best == nil || slices.Contains(s.class.as, f.Class) && !slices.Contains(best.class.as, f.Class) || s.Clean.IsZero() && !best.Clean.IsZero() {
			best = s
		}
	}
	return best
}

// is says whether a finding is of a seed's place.
func (s *Seed) is(f *finding) bool {
	if !strings.Contains(f.Region, s.Region) {
		return false
	}
	switch {
	case s.class.id == d19:
		return f.Class == "D19" && f.Slot == s.Slot
	case s.class.id == d22:
		return f.Class == "D22" && f.Slot%seed.Partitions == s.partition
	case s.class.id == d21:
		return s.gids[f.Gid]
	case s.class.journal:
		return f.Gid != "" && (f.Gid == s.Gid || f.Gid == s.OtherGid) && f.Branch == ""
	case s.class.account:
		return f.Gid == "" && slices.Contains(s.accounts(), f.Account)
	case f.Gid == "" && strings.HasPrefix(f.Account, "house:passage:"):
		// Of two such seeds in one book it may not be known whose counters were moved too: what is left when their rows are right
		// shows itself on the account that both have in common.
		return s.class.id == seed.D04 || s.class.id == seed.D07 || s.class.id == seed.D24
	}
	return f.Gid != "" && f.Gid == s.Gid && (f.Branch == "" || f.Branch == s.Branch)
}

// lags says whether a finding of a lag (D19) is of one that was there: the suite's own look, before the product's, has the events
// or effects missing too, for about as long. On a machine that is too busy there is such a lag without a seed.
func (w *world) lags(f *finding) bool {
	r := w.latest
	if f.Class != "D19" || r == nil {
		return false
	}
	at := w.index(f.Region)
	late := func(rows *[2]*check.Decided) bool {
		for _, d := range rows {
			if d != nil && d.Finished && r.at.Sub(time.UnixMilli(d.At)) > w.scaled(staleAfter)/2 {
				return true
			}
		}
		return false
	}
	for gid, rows := range r.rows {
		switch {
		case f.Gid == "" && rows[at] == nil && rows[1-at] != nil && rows[1-at].Slot == f.Slot && late(rows):
			return true
		case f.Gid == gid && late(rows):
			applied := rows[at] != nil && r.by[at].posted(gid) == branches && w.allApplied(r, at, rows[at])
			return !applied
		}
	}
	return false
}

// allApplied says whether nothing of a transaction's slot that finished before it is missing in a region's book: how far effects are
// applied goes by the slot.
func (w *world) allApplied(r *reading, at int, d *check.Decided) bool {
	for gid, rows := range r.rows {
		o := rows[at]
		if o == nil || o.Phase != committed || o.Slot != d.Slot || o.Origin != d.Origin || o.FinishSeq > d.FinishSeq {
			continue
		}
		if r.by[at].posted(gid) < branches {
			return false
		}
	}
	return true
}

// stillFound says whether the last look still has a finding of a seed.
func (w *world) stillFound(s *Seed) bool { return len(w.found[s]) > 0 }

// repair asks what would be repaired, holds that against what may be, and has it done.
func (w *world) repair(ctx context.Context) error {
	if !slices.ContainsFunc(w.seeds, func(s *Seed) bool { return len(w.found[s]) > 0 && s.Clean.IsZero() && !(s.applied && s.class.person) }) {
		return nil
	}
	plan, said, err := w.drift(ctx, "plan")
	if err != nil {
		return w.unanswered(ctx, "plan", said, err)
	}
	for _, f := range plan {
		if s := w.match(&f); s != nil && s.class.person && s.class.id != d21 {
			s.Wrong = "it is a person's, and it is planned: " + f.Repair
		}
	}
	_, said, err = w.drift(ctx, "apply")
	if err != nil {
		return w.unanswered(ctx, "apply", said, err)
	}
	for s := range w.found {
		s.applied = true
	}
	return nil
}

// unanswered says that a command has failed; it is given again in the next round.
func (w *world) unanswered(ctx context.Context, what, said string, err error) error {
	for s := range w.found {
		s.applied = true // some of it was done: the next looks tell
	}
	w.o.Say("drift %s: %v: %s", what, err, strings.TrimSpace(said))
	return ctx.Err()
}

// keepLogs copies the processes' output.
func keepLogs(from, to string) error {
	logs, err := filepath.Glob(filepath.Join(from, "*.log"))
	for _, l := range logs {
		in, oerr := os.Open(l)
		if oerr != nil {
			return oerr
		}
		raw, rerr := io.ReadAll(io.LimitReader(in, 4<<20))
		if cerr := in.Close(); rerr != nil || cerr != nil {
			return fmt.Errorf("%s: %w, %w", l, rerr, cerr)
		}
		if err := os.WriteFile(filepath.Join(to, filepath.Base(l)), raw, 0o600); err != nil {
			return err
		}
	}
	return err
}
