package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/lockstep-tx/lockstep/chaos/report"
	"github.com/lockstep-tx/lockstep/chaos/scenario"
	"github.com/lockstep-tx/lockstep/chaos/sweep"
)

// sweepFlags are those of the drift sweep, the scenarios R01 to R24 and E0.
type sweepFlags struct {
	DriftSeeds   int           `help:"Seeds of each class of drift in the sweep." default:"5"`
	QuietControl int           `help:"Transactions that the sweep's quiet control is to reconcile; 0: there is none." default:"1000"`
	DriftLimit   time.Duration `help:"How long a seed may stay unfound, or unrepaired once it was found, on the reference machine." default:"40s"`
	SQLiteAlone  bool          `help:"The sweep's deployments are on SQLite, also where servers are given." name:"sqlite-alone"`
}

// Sweep stands for all of R01 to R24 and E0.
const sweepID = "R"

// parted takes the sweep's scenarios out of the ids that were asked for: all where none were.
func parted(ids []string) (rest, classes []string, wanted bool, err error) {
	if len(ids) == 0 {
		return nil, nil, true, nil
	}
	all := false
	for _, id := range ids {
		switch {
		case id == sweepID:
			all, wanted = true, true
		case id == sweep.Quiet:
			wanted = true
		case slices.Contains(sweep.IDs(), id):
			classes, wanted = append(classes, "D"+id[1:]), true
		default:
			rest = append(rest, id)
		}
	}
	if all {
		classes = nil
	} else if wanted && len(classes) == 0 { // E0 alone
		classes = []string{sweep.Quiet}
	}
	return rest, classes, wanted, nil
}

// sweep runs the drift sweep and adds it to the report.
func (c *runCmd) sweep(ctx context.Context, out io.Writer, run *report.Run, classes []string, slow float64) (err error) {
	o := sweep.Options{Dir: c.Out, Bin: c.Bin, Env: c.Env, Seed: c.Seed, Each: c.DriftSeeds, Classes: classes, Quiet: c.QuietControl, Limit: c.DriftLimit, Slow: slow,
		Say: func(string, ...any) {}}
	if c.Verbose {
		o.Say = func(f string, args ...any) {
			fmt.Fprintf(out, time.Now().Format("15:04:05.0 ")+f+"\n", args...)
		}
	}
	var drop []func() error
	defer func() {
		for _, f := range drop {
			err = errors.Join(err, f())
		}
	}()
	one := func(bed *sweep.Bed, into, barrier *string, server, name string) {
		if err != nil || server == "" {
			return
		}
		var f func() error
		if *into, f, err = scenario.Database(ctx, server, name, barrier); f != nil {
			drop = append(drop, f)
		}
	}
	runs := (c.DriftSeeds + sweep.PerDeployment - 1) / sweep.PerDeployment
	for n := range max(1, runs) {
		bed := sweep.Bed{}
		// One deployment has all the servers that there are; of several each third one.
		kinds := [2]string{c.Journal, c.MySQL}
		if c.SQLiteAlone {
			kinds = [2]string{}
		}
		switch {
		case runs == 1:
			one(&bed, &bed.Wallets[0], &bed.Barrier[0], kinds[0], "east")
			one(&bed, &bed.Wallets[1], &bed.Barrier[1], kinds[1], "west")
		case n%3 == 1:
			one(&bed, &bed.Wallets[0], &bed.Barrier[0], kinds[0], "east")
			one(&bed, &bed.Journal, nil, kinds[0], "journal")
		case n%3 == 2:
			one(&bed, &bed.Wallets[1], &bed.Barrier[1], kinds[1], "west")
			one(&bed, &bed.Journal, nil, kinds[1], "journal")
		}
		bed.Name = fmt.Sprintf("wallets on %s and %s, journals on %s and SQLite", kindOf(bed.Wallets[0]), kindOf(bed.Wallets[1]), kindOf(bed.Journal))
		o.Beds = append(o.Beds, bed)
	}
	if err != nil {
		return err
	}
	res := sweep.Run(ctx, o)
	res.Table(out)
	run.Sweep = res
	for _, s := range res.Scenarios() {
		if s.Verdict != "passed" {
			report.One(out, &s)
		}
		run.Scenarios = append(run.Scenarios, s)
	}
	return nil
}

func kindOf(address string) string {
	kind, _, _ := strings.Cut(address, ":")
	switch kind {
	case "":
		return "SQLite"
	case "mysql", "mariadb":
		return "MariaDB or MySQL"
	}
	return "PostgreSQL"
}
