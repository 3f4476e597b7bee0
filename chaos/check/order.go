package check

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/anishathalye/porcupine"

	"github.com/lockstep-tx/lockstep/chaos/history"
	"github.com/lockstep-tx/lockstep/chaos/tap"
)

const (
	searchLimit      = 20 * time.Second
	operationsNeeded = 500
)

// chain is the events of one slot that came from one region.
type chain struct {
	origin int64
	slot   int
}

func (v *view) chains(region string) map[chain]map[int64]string {
	out := map[chain]map[int64]string{}
	for _, e := range v.Events {
		if e.Region != region {
			continue
		}
		k := chain{e.Origin, e.Slot}
		if out[k] == nil {
			out[k] = map[int64]string{}
		}
		out[k][e.Seq] = e.Chain
	}
	return out
}

// complete (I9): in every journal the events of one origin and slot are numbered without gaps; in every look while the run
// went on, what was there of another region was a whole beginning of its chain, to the watermark and no further.
func complete(v *view, r *Result) {
	for _, b := range v.Books {
		for k, seqs := range v.chains(b.Region) {
			low, high := int64(-1), int64(0)
			for s := range seqs {
				if low < 0 || s < low {
					low = s
				}
				high = max(high, s)
			}
			r.Examined += len(seqs)
			if high-low+1 != int64(len(seqs)) {
				r.bad("%s's journal: origin %d slot %d has %d events numbered %d to %d", b.Region, k.origin, k.slot, len(seqs), low, high)
			}
		}
	}
	for _, c := range v.Reaches {
		r.Examined++
		if c.Count > 0 && c.High-c.Low+1 != c.Count || c.High != c.Mark && !v.regained(c) {
			r.bad("%s's journal at %d ms: origin %d slot %d has %d events numbered %d to %d, and the watermark is %d", c.Region, c.At/1e6, c.Origin, c.Slot, c.Count, c.Low, c.High, c.Mark)
		}
	}
	r.arm(min(v.Lagged, len(v.Reaches)), 1, "events that a region lacked at the healing, or looks meanwhile")
}

// same (I10): what two journals have of one origin and slot is the same, link by link, to the end; and no watermark goes back,
// but of a journal that begins anew on an empty disk.
func same(v *view, r *Result) {
	if len(v.Books) < 2 {
		return
	}
	type where struct {
		region string
		chain  chain
	}
	marks := map[where]int64{}
	for _, c := range v.Reaches {
		w := where{c.Region, chain{c.Origin, c.Slot}}
		r.Examined++
		if c.Mark < marks[w] && !v.anew(c) {
			r.bad("%s's journal at %d ms: the watermark of origin %d slot %d is %d, and was %d", c.Region, c.At/1e6, c.Origin, c.Slot, c.Mark, marks[w])
		}
		marks[w] = c.Mark
	}
	a, b := v.chains(v.Books[0].Region), v.chains(v.Books[1].Region)
	for k, seqs := range a {
		for s, link := range seqs {
			r.Examined++
			if other, ok := b[k][s]; !ok || other != link {
				r.bad("origin %d slot %d event %d is %.8s in %s and %.8s in %s", k.origin, k.slot, s, link, v.Books[0].Region, other, v.Books[1].Region)
			}
		}
	}
	for k, seqs := range b {
		if len(seqs) > len(a[k]) {
			r.bad("origin %d slot %d has %d events in %s and %d in %s", k.origin, k.slot, len(a[k]), v.Books[0].Region, len(seqs), v.Books[1].Region)
		}
	}
	bodies, numbers := map[string]string{}, map[string]Decided{}
	for _, d := range v.Decided {
		if d.FinishSeq > 0 {
			r.Examined++
			if was, ok := numbers[d.Gid]; ok && (was.DecisionSeq != d.DecisionSeq || was.FinishSeq != d.FinishSeq) {
				r.bad("%s has the events %d and %d in %s, and %d and %d in %s", d.Gid, d.DecisionSeq, d.FinishSeq, d.Region, was.DecisionSeq, was.FinishSeq, was.Region)
			}
			numbers[d.Gid] = d
		}
		if d.Body == "" {
			continue
		}
		r.Examined++
		if was, ok := bodies[d.Gid]; ok && was != d.Body {
			r.bad("%s has another body in %s than elsewhere, under the same events", d.Gid, d.Region)
		}
		bodies[d.Gid] = d.Body
	}
	r.arm(min(v.Lagged, len(v.Reaches)), 1, "events that a region lacked at the healing, or looks meanwhile")
}

// fencing (I11): a call of an epoch that began after the participant had answered one of a higher epoch has no effect.
func fencing(v *view, r *Result) {
	type where struct {
		region string
		slot   int
	}
	// The fence went up before the answer of the call that raised it: order those by their ends, all calls by their beginnings.
	ends, begins := slices.Clone(v.Calls), slices.Clone(v.Calls)
	slices.SortFunc(ends, func(a, b tap.Call) int { return int(a.End - b.End) })
	slices.SortFunc(begins, func(a, b tap.Call) int { return int(a.Start - b.Start) })
	high, next := map[where]int64{}, 0
	raise := func(region string, slot int, epoch int64) {
		if w := (where{region, slot}); epoch > high[w] {
			high[w] = epoch
		}
	}
	refused := 0
	for _, c := range begins {
		for ; next < len(ends) && ends[next].End < c.Start; next++ {
			if e := ends[next]; e.Status == http.StatusOK && e.Kind != tap.Lost && e.Op != "apply" && e.Op != "hold" {
				raise(e.Region, e.Slot, e.Epoch)
				if e.AccountEpoch > 0 {
					raise(e.Region, e.AccountSlot, e.AccountEpoch)
				}
			}
		}
		// An apply carries no epoch of its own: the journal that it comes from is its authority. Nor has a hold, which does again at
		// a copy what was tried at a home that is lost: the transaction's record is.
		if c.Epoch == 0 || c.Op == "apply" || c.Op == "hold" || c.Kind == tap.Lost || c.Kind == tap.Dropped {
			continue
		}
		r.Examined++
		if c.Status == http.StatusPreconditionFailed {
			refused++
		}
		if c.Status == http.StatusOK && c.Epoch < high[where{c.Region, c.Slot}] {
			r.bad("%s: a %s of %s at epoch %d was taken, and slot %d had been at %d", c.Region, c.Op, c.Key(), c.Epoch, c.Slot, high[where{c.Region, c.Slot}])
		}
	}
	r.arm(refused, 1, "calls of an old epoch refused")
}

// input and output of a register.
type input struct{ read bool }

// linearizable (I14): each transaction is a register that is decided once, and each slot's owner one whose epoch only grows. An
// unknown may take effect at any later time.
func linearizable(v *view, r *Result) {
	end := int64(0)
	for _, op := range v.all {
		end = max(end, op.End)
	}
	var ops []porcupine.Operation
	for _, op := range v.all {
		if op.Kind == history.Other {
			continue
		}
		known := op.Outcome == history.OK
		if !known && (op.Kind == history.Read || op.Outcome == history.Fail) || op.Kind == history.Abandon {
			continue
		}
		o := porcupine.Operation{ClientId: op.Client, Input: keyed{op.Gid, input{op.Kind == history.Read}}, Call: op.Start, Output: op.Value, Return: op.End}
		if !known {
			o.Return, o.Output = end+1, history.None // nobody knows
		}
		ops = append(ops, o)
	}
	r.Examined = len(ops)
	again, other := v.repeats(r)
	v.owners(r)
	for _, part := range register.Partition(ops) {
		switch porcupine.CheckOperationsTimeout(register, part, searchLimit) {
		case porcupine.Illegal:
			text := ""
			for _, o := range part {
				text += fmt.Sprintf(" client %d %d-%d ms read=%v: %q;", o.ClientId, o.Call/1e6, o.Return/1e6, o.Input.(keyed).in.read, o.Output)
			}
			r.bad("%s has no order:%s", part[0].Input.(keyed).gid, text)
		case porcupine.Unknown:
			r.TimedOut = true
		case porcupine.Ok:
		}
	}
	r.arm(len(ops), operationsNeeded, "operations")
	r.Arming += fmt.Sprintf("; %d requests made again, %d ids used for something else and refused", again, other)
}

// mismatch stands in what a client is told whose request is not the one that its gid had.
const mismatch = "AlreadyExists"

// repeats (I14, the register of a gid's request): what is asked for under a gid is what was asked for first, whatever comes later. A
// repeat is not refused, and something else is. That both have one effect is for I4 and I6 to see.
func (v *view) repeats(r *Result) (again, other int) {
	for _, op := range v.all {
		switch {
		case op.Kind == history.Again && op.Outcome == history.OK:
			again++
		case op.Kind == history.Again && strings.Contains(op.Error, mismatch):
			r.bad("%s was asked for again by client %d, and refused: %s", op.Gid, op.Client, op.Error)
		case op.Kind == history.Other && strings.Contains(op.Error, mismatch):
			other++
		case op.Kind == history.Other && op.Outcome == history.OK:
			r.bad("%s was used by client %d for something else, and answered as if it had been asked for: %q", op.Gid, op.Client, op.Value)
		}
		if op.Kind == history.Again || op.Kind == history.Other {
			r.Examined++
		}
	}
	return again, other
}

type keyed struct {
	gid string
	in  input
}

// register is the model: undecided, then committed or aborted for ever. It may also be decided by nobody's request (a
// timeout), so that a read may be the first to see it.
var register = porcupine.Model{
	Partition: func(all []porcupine.Operation) (out [][]porcupine.Operation) {
		by := map[string][]porcupine.Operation{}
		for _, o := range all {
			gid := o.Input.(keyed).gid
			by[gid] = append(by[gid], o)
		}
		for _, gid := range sorted(by) {
			out = append(out, by[gid])
		}
		return out
	},
	Init: func() any { return history.Open },
	Step: func(state, in, out any) (bool, any) {
		was, said := state.(history.Value), out.(history.Value)
		switch {
		case said == history.None:
			return true, was // unknown: what it did shows itself in what others see
		case said == history.Open:
			return was == history.Open, was
		}
		return was == history.Open || was == said, said
	},
}
