package sweep

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/lockstep-tx/lockstep/chaos/check"
	"github.com/lockstep-tx/lockstep/chaos/recall"
	"github.com/lockstep-tx/lockstep/chaos/scenario"
)

// alpha is one minus the confidence of all bounds.
const alpha = 0.05

// Times are of several seeds, in seconds.
type Times struct {
	P50 float64 `json:"p50"`
	P95 float64 `json:"p95"`
	Max float64 `json:"max"`
}

// String gives the three.
func (t Times) String() string { return fmt.Sprintf("%.1f, %.1f, %.1f", t.P50, t.P95, t.Max) }

// Row is what was measured of a class, or of all together.
type Row struct {
	Class string `json:"class"`
	Title string `json:"title"`
	// Planted seeds, and those of them that the suite's own checkers saw: only these count.
	Planted int `json:"planted"`
	Seeds   int `json:"seeds"`
	Found   int `json:"found"`
	// Misclassified are found, under a name that is not theirs.
	Misclassified int `json:"misclassified"`
	Missed        int `json:"missed"`
	// Repaired, and Left as they are for a person; Unrepaired should have been and were not in their time.
	Repaired   int `json:"repaired"`
	Left       int `json:"left"`
	Unrepaired int `json:"unrepaired"`
	// Wrong says of which seeds the repair was not what it should be.
	Wrong []string `json:"wrong,omitempty"`
	// Recall, with its exact lower bound at 95 %; Joint is the bound where the statement is to hold for all classes together.
	Recall float64 `json:"recall"`
	Lower  float64 `json:"lower"`
	Joint  float64 `json:"joint,omitempty"`
	// Detect counts from the injection, Reached without the time for which the regions were cut off; Repair from the finding to
	// the look that found nothing more.
	Detect  Times `json:"detect_s"`
	Reached Times `json:"detect_reachable_s"`
	Repair  Times `json:"repair_s"`

	detect, reached, repair []float64
}

// Result of a sweep.
type Result struct {
	Seed        uint64   `json:"seed"`
	Each        int      `json:"each"`
	Deployments int      `json:"deployments"`
	Beds        []string `json:"beds"`
	Rows        []Row    `json:"rows"`
	// All is of this mix of classes, not of each.
	All Row `json:"all"`
	// False are findings of nothing that was planted. Precision is of all findings, with its lower bound.
	False     []string `json:"false,omitempty"`
	Precision float64  `json:"precision"`
	PrecLower float64  `json:"precision_lower"`
	// Collateral are rows that changed, or that a checker complains of, and that are of no seed.
	Collateral []string `json:"collateral,omitempty"`
	// Lagged are findings of a lag (D19) that the suite saw too, and that no seed had made.
	Lagged   int      `json:"lagged,omitempty"`
	Looks    int      `json:"looks"`
	Control  *Control `json:"control,omitempty"`
	Problems []string `json:"problems,omitempty"`
	Harness  string   `json:"harness,omitempty"`
	Seconds  float64  `json:"seconds"`

	began time.Time
	seeds []*Seed
}

func (res *Result) add(w *world) {
	res.Deployments++
	if !slices.Contains(res.Beds, w.bed.Name) {
		res.Beds = append(res.Beds, w.bed.Name)
	}
	res.seeds = append(res.seeds, w.seeds...)
	for _, id := range slices.Sorted(maps.Keys(w.false)) {
		res.False = append(res.False, w.false[id])
	}
	res.Collateral = append(res.Collateral, slices.Sorted(maps.Keys(w.spoiled))...)
	res.Looks += w.looks
	res.Lagged += len(w.lagged)
	res.Problems = append(res.Problems, w.problems...)
}

// settle computes what follows from the seeds.
func (res *Result) settle(only []string) {
	res.Seconds = time.Since(res.began).Seconds()
	res.All = Row{Class: "all", Title: "of this mix of classes"}
	for i := range classes {
		c := &classes[i]
		if len(only) > 0 && !slices.Contains(only, string(c.id)) {
			continue
		}
		row := Row{Class: string(c.id), Title: c.title}
		for _, s := range res.seeds {
			if s.Class == c.id {
				row.count(s)
				res.All.count(s)
			}
		}
		row.bound()
		res.Rows = append(res.Rows, row)
	}
	for i := range res.Rows {
		if row := &res.Rows[i]; row.Seeds > 0 {
			row.Joint, _ = recall.Joint(row.Seeds, row.Missed, alpha, len(res.Rows)) // there are seeds
		}
	}
	res.All.bound()
	if n := res.All.Found + len(res.False); n > 0 {
		res.Precision = float64(res.All.Found) / float64(n)
		res.PrecLower, _ = recall.Lower(n, len(res.False), alpha) // there are findings
	}
}

// count takes a seed in. One that no checker saw was none.
func (row *Row) count(s *Seed) {
	if row.Planted++; !s.armed() {
		return
	}
	row.Seeds++
	if s.Wrong != "" {
		row.Wrong = append(row.Wrong, s.ID+": "+s.Wrong)
	}
	if s.Found.IsZero() {
		row.Missed++
		return
	}
	row.Found++
	if !slices.Contains(s.class.as, s.FoundAs) {
		row.Misclassified++
	}
	ttd := s.Found.Sub(s.Injected)
	row.detect, row.reached = append(row.detect, ttd.Seconds()), append(row.reached, max(0, ttd-s.Unreachable).Seconds())
	switch {
	case !s.Clean.IsZero():
		row.Repaired++
		row.repair = append(row.repair, s.Clean.Sub(s.Found).Seconds())
	case s.class.person:
		row.Left++
	default:
		row.Unrepaired++
	}
}

func (row *Row) bound() {
	row.Detect, row.Reached, row.Repair = times(row.detect), times(row.reached), times(row.repair)
	if row.Seeds > 0 {
		row.Recall = float64(row.Found) / float64(row.Seeds)
		row.Lower, _ = recall.Lower(row.Seeds, row.Missed, alpha) // there are seeds
	}
}

func times(all []float64) (t Times) {
	if len(all) == 0 {
		return t
	}
	slices.Sort(all)
	at := func(q float64) float64 { return all[min(len(all)-1, int(q*float64(len(all))))] }
	return Times{at(0.5), at(0.95), all[len(all)-1]}
}

// Scenarios gives the sweep as the suite's other scenarios are told: one for each class, and one for the quiet control and for
// what is of no class.
func (res *Result) Scenarios() (out []scenario.Result) {
	for i := range res.Rows {
		row := &res.Rows[i]
		s := scenario.Result{ID: "R" + row.Class[1:], Title: "drift " + row.Class + ": " + row.Title, Seed: res.Seed}
		s.Effective.What = fmt.Sprintf("%d of %d seeds planted, and seen by the suite's own checkers", row.Seeds, res.Each)
		s.Recovered.What = fmt.Sprintf("%d repaired, %d left to a person", row.Repaired, row.Left)
		c := check.Result{ID: "E1", Title: "seeded drift is found, and repaired by authority or left to a person", Examined: row.Seeds, Required: true, Armed: row.Seeds >= res.Each,
			Arming: fmt.Sprintf("%d seeds that a checker saw (%d wanted)", row.Seeds, res.Each)}
		for _, seed := range res.seeds {
			if string(seed.Class) != row.Class || !seed.armed() {
				continue
			}
			switch {
			case seed.Found.IsZero():
				c.Violations = append(c.Violations, fmt.Sprintf("missed: %s in %s on %s, gid %q, account %q (%s)", seed.ID, seed.Region, seed.Engine, seed.Gid, seed.Account, seed.Variant))
			case seed.Clean.IsZero() && !seed.class.person:
				c.Violations = append(c.Violations, fmt.Sprintf("not repaired: %s in %s on %s, gid %q, account %q (%s), finding %s %s", seed.ID, seed.Region, seed.Engine, seed.Gid, seed.Account, seed.Variant, seed.FoundAs, seed.Finding))
			}
		}
		for _, w := range row.Wrong {
			c.Violations = append(c.Violations, "wrong repair: "+w)
		}
		c.Count = len(c.Violations)
		s.Checks = []check.Result{c}
		out = append(out, s)
	}
	whole := scenario.Result{ID: Quiet, Title: "the quiet control: no finding where nothing was planted", Seed: res.Seed, Seconds: res.Seconds, Harness: res.Harness}
	c := check.Result{ID: "E0", Title: "nothing is found and nothing is changed but what was planted", Required: true, Armed: true}
	if res.Control != nil {
		q := res.Control
		c.Examined, c.Armed = q.Reconciled, q.Reconciled >= q.Wanted && q.Cuts > 0 && q.Lagging > 0
		c.Arming = fmt.Sprintf("%d transactions reconciled (%d wanted), %d cuts, %d looks at a region that lagged (1 of each wanted); without a finding, false ones are at most %.1e of transactions", q.Reconciled, q.Wanted, q.Cuts, q.Lagging, q.Bound())
		c.Violations = append(c.Violations, q.Findings...)
		whole.Effective.What = fmt.Sprintf("%d cuts between the regions, %d looks of which %d found events on their way", q.Cuts, q.Looks, q.Lagging)
	} else {
		c.Examined, c.Arming = res.All.Seeds, "beside the seeds alone"
	}
	for _, f := range res.False {
		c.Violations = append(c.Violations, "found beside the seeds, and nobody planted it: "+f)
	}
	for _, f := range res.Collateral {
		c.Violations = append(c.Violations, "changed, and of no seed: "+f)
	}
	c.Count = len(c.Violations)
	if len(c.Violations) > violationsMax {
		c.Violations = c.Violations[:violationsMax]
	}
	whole.Checks = []check.Result{c}
	for _, p := range res.Problems {
		whole.Reasons = append(whole.Reasons, "inconclusive: "+p)
	}
	out = append(out, whole)
	for i := range out {
		out[i].Settle()
	}
	return out
}

// violationsMax is how many of one kind are told.
const violationsMax = 20

// Table prints the table of recall.
func (res *Result) Table(w io.Writer) {
	fmt.Fprintf(w, "drift sweep: %d deployments on %s, %d looks, %.0f s; seed %d\n", res.Deployments, strings.Join(res.Beds, "; "), res.Looks, res.Seconds, res.Seed)
	fmt.Fprintf(w, "  %-4s %-44s %5s %5s %6s %6s %8s %5s %6s  %-16s %-16s %s\n", "", "", "seeds", "found", "missed", "named", "repaired", "left", "recall", "detect p50/max s", "reachable p50/max", "repair p50/max s")
	fmt.Fprintf(w, "  %-4s %-44s %5s %5s %6s %6s %8s %5s %6s\n", "", "", "", "", "", "else", "", "", ">=")
	for _, row := range append(slices.Clone(res.Rows), res.All) {
		fmt.Fprintf(w, "  %-4s %-44s %5d %5d %6d %6d %8d %5d %5.1f%%  %6.1f /%6.1f   %6.1f /%6.1f   %6.1f /%6.1f\n", row.Class, row.Title, row.Seeds, row.Found, row.Missed, row.Misclassified, row.Repaired, row.Left,
			row.Lower*100, row.Detect.P50, row.Detect.Max, row.Reached.P50, row.Reached.Max, row.Repair.P50, row.Repair.Max)
	}
	fmt.Fprintf(w, "  precision %.1f %% (at least %.1f %% at 95 %%), %d false findings, %d of lag that was there without a seed, %d collateral changes\n", res.Precision*100, res.PrecLower*100, len(res.False), res.Lagged, len(res.Collateral))
	if q := res.Control; q != nil {
		fmt.Fprintf(w, "  quiet control: %d findings in %d reconciled transactions (%d wanted) with %d cuts, %.0f s: at most %.1e of transactions at 95 %%\n", len(q.Findings), q.Reconciled, q.Wanted, q.Cuts, q.Seconds, q.Bound())
	}
	for _, p := range res.Problems {
		fmt.Fprintln(w, "  inconclusive:", p)
	}
}
