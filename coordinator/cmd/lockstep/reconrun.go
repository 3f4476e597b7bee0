package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/lockstep-tx/lockstep/region/reconcile/channelfile"
	"github.com/lockstep-tx/lockstep/region/reconcile/dayend"
	"github.com/lockstep-tx/lockstep/region/reconcile/dayend/books"
	dayreport "github.com/lockstep-tx/lockstep/region/reconcile/dayend/report"
)

// reconDay is what a run needs beside the day.
type reconDay struct {
	reconFlags
	mappingFlag
	booksFlags
	MaxDifferences int    `help:"More differences than this end the run, with nothing changed: the file or the books are not those of the day." default:"100000"`
	Metrics        string `help:"File to write metrics to, for a textfile collector." type:"path" placeholder:"FILE"`
}

type reconRunCmd struct {
	reconDay
	Day    string `help:"The day that the file is of." required:"" placeholder:"DAY"`
	DryRun bool   `help:"Compare, and change nothing."`
	Output string `help:"table or json (the run, then one finding a line)." enum:"table,json" default:"table" short:"o"`
}

// Run reconciles a day.
func (c *reconRunCmd) Run(e *env) error {
	day, err := dayOf(c.Day)
	if err != nil {
		return err
	}
	m, err := c.load()
	if err != nil {
		return err
	}
	return c.with(e, func(b *dayend.Book) error { return c.run(e, b, m, day) })
}

func (c *reconRunCmd) run(e *env, b *dayend.Book, m *channelfile.Mapping, day string) error {
	ours, done, err := c.ours(e, m)
	if err != nil {
		return err
	}
	defer done()
	again := fmt.Sprintf("lockstep recon run --day %s --mapping %s %s", day, shellQuote(c.Mapping), c.flags())
	r, res, acted := b.Run(e.ctx, m, ours, day, dayend.Options{DryRun: c.DryRun, Max: c.MaxDifferences})
	if acted != nil {
		var not *dayend.NotReadyError
		if errors.As(acted, &not) && not.Field == "file" {
			again = "lockstep recon load --mapping " + shellQuote(c.Mapping) + " " + c.flags()
		}
		if errors.Is(acted, books.ErrNoAPI) {
			again += " --payments URL"
		}
		acted = &failure{acted, again}
	}
	if r == nil {
		return acted
	}
	// The day is compared: what it showed is told and counted even where what follows from it could not be done.
	return errors.Join(acted, c.tell(e, b, m, r, res, again))
}

// tell prints a compared day and gives the verdict on it.
func (c *reconRunCmd) tell(e *env, b *dayend.Book, m *channelfile.Mapping, r *dayend.Run, res *dayend.Result, again string) error {
	var list []dayend.Finding
	if c.DryRun && res != nil {
		list = res.Findings
	}
	if err := b.Each(e.ctx, dayend.Filter{Channel: m.Channel, Kind: m.Kind, Day: r.Day}, func(f dayend.Finding) error {
		if !c.DryRun || f.Class == dayend.BadLine {
			list = append(list, f)
		}
		if c.DryRun && f.Class == dayend.BadLine && res != nil {
			r.Standing = counted(r.Standing, f)
		}
		return nil
	}); err != nil {
		return err
	}
	if err := c.print(e, r, list); err != nil {
		return err
	}
	return c.verdict(e, b, m, r, again)
}

func counted(n map[dayend.Class]int, f dayend.Finding) map[dayend.Class]int {
	if n == nil {
		n = map[dayend.Class]int{}
	}
	if f.Status != dayend.StatusEnded {
		n[f.Class]++
	}
	return n
}

func (c *reconRunCmd) print(e *env, r *dayend.Run, list []dayend.Finding) error {
	if c.Output == "json" {
		enc := json.NewEncoder(e.out)
		err := enc.Encode(r)
		for i := range list {
			err = errors.Join(err, enc.Encode(&list[i]))
		}
		return err
	}
	if err := findings(e, list, 50); err != nil {
		return err
	}
	fmt.Fprintf(e.out, "%s %s day %s, %s to %s: %d ours, %d theirs, %d matched; %d left the suspense pool, %d went into it\n", r.Channel, r.Kind, r.Day,
		time.UnixMilli(r.FromMS).UTC().Format(time.RFC3339), time.UnixMilli(r.ToMS).UTC().Format(time.RFC3339), r.Ours, r.Theirs, r.Matched, r.FromPool, r.ToPool)
	return nil
}

// verdict writes the metrics, and fails while differences stand.
func (c *reconRunCmd) verdict(e *env, b *dayend.Book, m *channelfile.Mapping, r *dayend.Run, again string) error {
	if c.Metrics != "" && !c.DryRun {
		if err := writeMetrics(e.ctx, c.Metrics, b, r); err != nil {
			return err
		}
	}
	held, err := b.Held(e.ctx, m.Channel, m.Kind)
	if err != nil {
		return err
	}
	if held != "" && c.Output == "table" {
		fmt.Fprintln(e.out, "HELD:", held)
	}
	n := r.Differences()
	switch {
	case n == 0 && c.Output == "table" && !c.DryRun:
		fmt.Fprintln(e.out, "no difference stands")
		next(e.out, fmt.Sprintf("lockstep recon report --channel %s --kind %s --day %s --html report.html %s", r.Channel, r.Kind, r.Day, c.flags()))
		return nil
	case n == 0:
		return nil
	case c.DryRun:
		return &failure{fmt.Errorf("%d differences would stand; nothing was changed", n), again}
	}
	return &failure{fmt.Errorf("%d differences stand", n), "lockstep recon cases " + c.flags()}
}

// writeMetrics makes the file appear whole, as a collector wants it.
func writeMetrics(ctx context.Context, path string, book *dayend.Book, r *dayend.Run) error {
	standing, due, err := book.Standing(ctx, r.Channel, r.Kind)
	if err != nil {
		return err
	}
	classes := map[dayend.Class]int{dayend.Long: 0, dayend.Short: 0, dayend.AmountDiffers: 0}
	maps.Copy(classes, standing)
	label := fmt.Sprintf("channel=%q,kind=%q", r.Channel, r.Kind)
	var b strings.Builder
	gauge := func(name, help string) { fmt.Fprintf(&b, "# HELP %s %s\n# TYPE %s gauge\n", name, help, name) }
	gauge("lockstep_recon_differences", "Differences that are not ended, of every day, by class.")
	for _, c := range slices.Sorted(maps.Keys(classes)) {
		fmt.Fprintf(&b, "lockstep_recon_differences{%s,class=%q} %d\n", label, c, classes[c])
	}
	gauge("lockstep_recon_due", "Those of them that are asked for or reversed without a person, and were not yet.")
	fmt.Fprintf(&b, "lockstep_recon_due{%s} %d\n", label, due)
	gauge("lockstep_recon_matched", "Pairs of the day that was compared last.")
	fmt.Fprintf(&b, "lockstep_recon_matched{%s} %d\n", label, r.Matched)
	gauge("lockstep_recon_day_cut_seconds", "End of the day that was compared last, unix.")
	fmt.Fprintf(&b, "lockstep_recon_day_cut_seconds{%s} %d\n", label, r.ToMS/1000)
	return writeWhole(path, func(w io.Writer) error { _, err := io.WriteString(w, b.String()); return err })
}

// writeWhole makes a file appear complete or not at all.
func writeWhole(path string, write func(io.Writer) error) error {
	f, err := os.CreateTemp(filepath.Dir(path), ".writing-*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	w := bufio.NewWriter(f)
	if err := errors.Join(write(w), w.Flush(), f.Chmod(0o644), f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}

type reconReportCmd struct {
	reconFlags
	Channel string `help:"The channel." placeholder:"NAME"`
	Kind    string `help:"business, funds or bill." enum:"business,funds,bill" default:"business"`
	Day     string `help:"The day." placeholder:"DAY"`
	HTML    string `help:"File to write a page to." name:"html" type:"path" placeholder:"FILE"`
	CSV     string `help:"File to write CSV to." name:"csv" type:"path" placeholder:"FILE"`
	Audit   bool   `help:"Print who did what, and check that no line is missing or altered."`
}

// Run writes reports.
func (c *reconReportCmd) Run(e *env) error {
	if c.Audit {
		return c.with(e, func(b *dayend.Book) error { return audit(e, b) })
	}
	day, err := dayOf(c.Day)
	if err != nil {
		return err
	}
	if c.HTML == "" && c.CSV == "" {
		return usageError{errors.New("--html, --csv: one of them belongs there: where the report goes")}
	}
	return c.with(e, func(b *dayend.Book) error {
		kind := channelfile.Kind(c.Kind)
		r, err := b.RunOf(e.ctx, c.Channel, kind, day)
		if err != nil {
			return err
		}
		if r == nil {
			return &failure{fmt.Errorf("--day: %s %s of channel %q was not compared", c.Kind, day, c.Channel), "lockstep recon run --day " + day + " " + c.flags()}
		}
		return c.write(e, b, r)
	})
}

func (c *reconReportCmd) write(e *env, b *dayend.Book, r *dayend.Run) error {
	all := func(each func(dayend.Finding) error) error {
		return b.Each(e.ctx, dayend.Filter{Channel: r.Channel, Kind: r.Kind, Day: r.Day}, each)
	}
	held, err := b.Held(e.ctx, r.Channel, r.Kind)
	if err != nil {
		return err
	}
	if c.HTML != "" {
		if err := writeWhole(c.HTML, func(w io.Writer) error { return dayreport.HTML(w, r, held, all) }); err != nil {
			return err
		}
		fmt.Fprintln(e.out, "wrote", shown(c.HTML))
	}
	if c.CSV != "" {
		if err := writeWhole(c.CSV, func(w io.Writer) error { return dayreport.CSV(w, all) }); err != nil {
			return err
		}
		fmt.Fprintln(e.out, "wrote", shown(c.CSV))
	}
	return nil
}

func audit(e *env, b *dayend.Book) error {
	lines, broken, err := b.Audit(e.ctx)
	if err != nil {
		return err
	}
	for _, l := range lines {
		row(e.out, l.Seq, time.UnixMilli(l.AtMS).UTC().Format(time.RFC3339), l.Who, l.Act, l.Text)
	}
	if broken != 0 {
		return &failure{fmt.Errorf("line %d of the audit is not what was written: the chain is broken there", broken), "lockstep recon report --audit  # compare it with a backup"}
	}
	return nil
}
