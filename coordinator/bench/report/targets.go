package report

import (
	"fmt"
	"io"

	"github.com/lockstep-tx/lockstep/coordinator/bench/load"
	"github.com/lockstep-tx/lockstep/coordinator/bench/rig"
)

// targetClients is the number of clients for which the targets are stated.
const targetClients = 64

// Verdict is the outcome of one target.
type Verdict int

// The outcomes: a target is met, missed, or its contenders did not take part.
const (
	Pass Verdict = iota
	FallsShort
	NotMeasured
)

func (v Verdict) String() string {
	switch v {
	case Pass:
		return "PASS"
	case FallsShort:
		return "FALLS SHORT"
	case NotMeasured:
		return "NOT MEASURED"
	}
	return fmt.Sprintf("Verdict(%d)", int(v))
}

// Check is one target with what was measured.
type Check struct {
	Text    string
	Verdict Verdict
	Figure  string
}

// throughput: Lockstep's transactions per second in multiples of the other's.
var throughput = []struct {
	other   string
	atLeast float64
	strict  bool // more than, not just as much
}{
	{other: rig.DTMBoltdb, atLeast: 6},
	{other: rig.DTMPostgres, atLeast: 4},
	{other: rig.DTMMariaDB, atLeast: 4},
	{other: rig.DTMRedisAOF, atLeast: 2},
	{other: rig.DTMRedis, atLeast: 1, strict: true},
	{other: rig.Ceiling, atLeast: 0.7},
}

// cpuAtMost is the coordinator's CPU per transaction in multiples of the ceiling's.
const cpuAtMost = 2.0

// nativeAtLeast is the native API's throughput in multiples of our own over DTM's wire, with single calls to its
// participants and with batches.
var nativeAtLeast = []struct {
	api, text string
	atLeast   float64
}{
	{load.Native, "native one-call API", 1.5},
	{load.NativeBatch, "native one-call API with batches", 3},
}

// Targets checks the run, one by one.
func (r *Run) Targets() []Check {
	var list []Check
	for _, api := range []string{load.HTTP, load.GRPC} {
		own, haveOwn := r.Median(Key{rig.Lockstep, api, targetClients})
		for _, t := range throughput {
			word := "at least"
			if t.strict {
				word = "more than"
			}
			c := Check{Text: fmt.Sprintf("%s: throughput %s %g times %s", api, word, t.atLeast, t.other), Verdict: NotMeasured}
			if m, ok := r.Median(Key{t.other, api, targetClients}); ok && haveOwn && m.PerSecond > 0 {
				ratio := own.PerSecond / m.PerSecond
				c.Figure = fmt.Sprintf("%.2f (%.0f against %.0f tx/s)", ratio, own.PerSecond, m.PerSecond)
				c.Verdict = verdict(ratio > t.atLeast || ratio == t.atLeast && !t.strict)
			}
			list = append(list, c)
		}
		c := Check{Text: fmt.Sprintf("%s: CPU per transaction at most %g times the ceiling's", api, cpuAtMost), Verdict: NotMeasured}
		if m, ok := r.Median(Key{rig.Ceiling, api, targetClients}); ok && haveOwn && m.CPUMicros > 0 {
			ratio := own.CPUMicros / m.CPUMicros
			c.Figure = fmt.Sprintf("%.2f (%.0f against %.0f us)", ratio, own.CPUMicros, m.CPUMicros)
			c.Verdict = verdict(ratio <= cpuAtMost)
		}
		list = append(list, c)
	}
	wire, okWire := r.Median(Key{rig.Lockstep, load.HTTP, targetClients})
	if g, okG := r.Median(Key{rig.Lockstep, load.GRPC, targetClients}); okG && (!okWire || g.PerSecond > wire.PerSecond) {
		wire, okWire = g, true // the better of the two
	}
	for _, t := range nativeAtLeast {
		c := Check{Text: fmt.Sprintf("%s: at least %g times our throughput over DTM's wire", t.text, t.atLeast), Verdict: NotMeasured}
		own, ok := r.Median(Key{rig.Lockstep, t.api, targetClients})
		if ok && okWire && wire.PerSecond > 0 {
			ratio := own.PerSecond / wire.PerSecond
			c.Figure = fmt.Sprintf("%.2f (%.0f against %.0f tx/s)", ratio, own.PerSecond, wire.PerSecond)
			c.Verdict = verdict(ratio >= t.atLeast)
		}
		list = append(list, c)
	}
	return list
}

func verdict(ok bool) Verdict {
	if ok {
		return Pass
	}
	return FallsShort
}

// WriteTargets writes the checks, one a line, and returns how many fall short.
func (r *Run) WriteTargets(w io.Writer) (short int) {
	fmt.Fprintf(w, "\ntargets, with %d clients (medians of this run):\n", targetClients)
	for _, c := range r.Targets() {
		if c.Verdict == FallsShort {
			short++
		}
		fmt.Fprintf(w, "%-12s  %s", c.Verdict, c.Text)
		if c.Figure != "" {
			fmt.Fprintf(w, ": %s", c.Figure)
		}
		fmt.Fprintln(w)
	}
	return short
}
