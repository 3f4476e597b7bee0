package sim

import (
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/lockstep-tx/lockstep/coordinator/engine"
	"github.com/lockstep-tx/lockstep/coordinator/txn"
	"github.com/lockstep-tx/lockstep/region/slot"
)

// accountsPerSlot accounts live in every slot in play.
const accountsPerSlot = 2

// accountNames are the accounts of every world, in the order of their slots.
var accountNames = sync.OnceValue(func() []string {
	bySlot := [slotsInPlay][]string{}
	for k, missing := 0, slotsInPlay*accountsPerSlot; missing > 0; k++ {
		name := fmt.Sprintf("a%d", k)
		if n := slot.Of(name); n < slotsInPlay && len(bySlot[n]) < accountsPerSlot {
			bySlot[n] = append(bySlot[n], name)
			missing--
		}
	}
	var out []string
	for _, names := range bySlot {
		out = append(out, names...)
	}
	return out
})

// client begins one transaction that takes money from one account and gives it to others, and asks until it is told.
type client struct {
	w        *World
	gid      txn.Gid
	slot     int
	at       int  // the region that it is in
	driven   bool // one request; else it makes the tries itself, as DTM's clients do
	global   bool
	abort    bool // it aborts in the end
	branches []txn.Branch

	epoch      slot.Epoch // of the slot when it was first asked
	begunAt    int64
	prepared   bool
	registered int
	asked      *engine.Asked
	kind       string
	until      int64
	told       txn.Phase
	repeats    int
	done       bool
}

// begin makes the i-th client. The transaction lives with the account that pays.
func (w *World) begin(i int) {
	names := accountNames()
	from := w.rng.IntN(len(names))
	c := &client{
		w: w, gid: txn.Gid(fmt.Sprintf("{%s}tx%d", names[from], i)), slot: slot.Of(names[from]), at: w.rng.IntN(regionsCount),
		driven: w.rng.IntN(3) > 0, global: w.rng.IntN(4) == 0, abort: w.rng.IntN(8) == 0, begunAt: w.now, repeats: w.rng.IntN(3),
	}
	credits := 1 + w.rng.IntN(2)
	amount := int64(1 + w.rng.IntN(40))
	c.add(names[from], -amount*int64(credits))
	for k := range credits {
		c.add(names[(from+1+k+w.rng.IntN(len(names)-2))%len(names)], amount)
	}
	w.clients = append(w.clients, c)
	c.next()
}

func (c *client) add(account string, amount int64) {
	b := txn.Branch{ID: txn.BranchID(fmt.Sprint(len(c.branches))), Confirm: "http://p/c", Cancel: "http://p/x", Account: account, Payload: fmt.Appendf(nil, "amount %d", amount)}
	if c.driven {
		b.Try = "http://p/t"
	}
	c.branches = append(c.branches, b)
}

func (c *client) options() txn.Options {
	o := txn.Options{Timeout: 8 * time.Second, RetryInterval: time.Second}
	if c.global {
		o.Durability = txn.Global
	}
	return o
}

// giveUpAfter is how long a client asks; what it began ends without it.
const giveUpAfter = 60_000

// next does the next thing, and the one after it.
func (c *client) next() {
	w := c.w
	if c.done {
		return
	}
	if w.now-c.begunAt > giveUpAfter {
		c.done = true
		return
	}
	pause := 20 + w.rng.Int64N(200)
	if n := c.holder(); n != nil {
		kind, ev, want := c.request()
		w.after(w.lag(), func() {
			if !n.up {
				w.after(pause, c.next)
				return
			}
			if c.epoch == 0 {
				c.epoch = slot.Epoch(n.epochs[c.slot])
			}
			c.kind, c.until = kind, w.now+3000
			c.asked = n.core.Ask(n.at(), engine.Request{Gid: c.gid, Event: ev, Want: want})
			n.pump()
			w.after(2, c.look)
		})
		return
	}
	w.after(pause+200, c.next)
}

// holder finds whom to ask. What was begun in a region that was lost is asked for elsewhere only when its outcome had got out, or
// when the loss is worked off: else nobody can know (regional durability).
func (c *client) holder() *node {
	w := c.w
	r := w.regions[c.at]
	if r.down {
		c.at = (c.at + 1) % regionsCount
		return nil
	}
	o, now := r.owners[c.slot], w.arb.owners[c.slot]
	if o.Region == "" {
		return nil
	}
	if _, known := w.promised[c.gid]; !known && o.Epoch == now.Epoch && now.Lost != 0 && c.epoch != 0 && c.epoch < now.Epoch {
		return nil
	}
	owner := w.named(o.Region)
	if !w.reach(r.at, owner.at) {
		return nil
	}
	return owner.holder(c.slot)
}

// request is the client's next request.
func (c *client) request() (kind string, ev txn.Event, want engine.Want) {
	spec := txn.Spec{Mode: txn.ModeTCC, Opt: c.options()}
	switch {
	case c.driven: // also after its end: a late repeat gets the same answer
		spec.Digest, spec.Branches = "d", append([]txn.Branch(nil), c.branches...)
		return "execute", txn.Execute{Spec: spec}, engine.WantDecided
	case !c.prepared && c.told == txn.PhaseNone:
		return "prepare", txn.Prepare{Spec: spec}, engine.WantAccepted
	case c.registered < len(c.branches) && !c.abort && c.told == txn.PhaseNone:
		return "register", txn.Register{Mode: txn.ModeTCC, Branch: c.branches[c.registered]}, engine.WantAccepted
	case c.abort:
		return "abort", txn.Abort{Mode: txn.ModeTCC}, engine.WantDecided
	}
	return "submit", txn.Submit{Spec: txn.Spec{Mode: txn.ModeTCC}}, engine.WantDecided
}

// look waits for the answer.
func (c *client) look() {
	w := c.w
	rep, answered, err := c.asked.Answer()
	switch {
	case !answered && w.now < c.until:
		w.after(5+(w.now+3000-c.until)/8, c.look)
		return
	case answered:
		c.answer(&rep, err)
	}
	if c.done {
		return
	}
	w.after(20+w.rng.Int64N(300), c.next)
}

func (c *client) answer(rep *engine.Reply, err error) {
	var te *txn.Error
	switch {
	case err == nil && rep.State.Phase.Decided():
		c.hear(rep.State.Phase)
	case errors.As(err, &te) && te.Phase.Decided():
		c.hear(te.Phase)
	case errors.As(err, &te) && te.Code == txn.CodeNotFound:
		c.prepared, c.registered = false, 0 // the prepare was in memory alone
		c.done = c.told == txn.PhaseNone && c.abort
	case err == nil && c.kind == "prepare":
		c.prepared = true
	case err == nil && c.kind == "register":
		c.try()
	}
}

// try is the client's own try at the home of the branch's account, with the account's epoch and without the transaction's.
func (c *client) try() {
	w, r := c.w, c.w.regions[c.at]
	b := &c.branches[c.registered]
	n := slot.Of(b.Account)
	to, epoch, ok := r.homeOf(n)
	if !ok || !w.reach(r.at, to) {
		return // again
	}
	out := w.regions[to].bank.carry(&engine.Call{
		Gid: c.gid, Slot: c.slot, Branch: b.ID, Op: txn.OpTry, Payload: b.Payload, Account: b.Account, AccountSlot: n, AccountEpoch: epoch, Global: c.global,
	})
	switch out {
	case txn.Done:
		c.registered++
	case txn.Refused:
		c.abort = true
	case txn.Ongoing, txn.Unknown, txn.Stale, txn.Deferred:
	}
}

// hear is the end: what a client was told once does not change.
func (c *client) hear(p txn.Phase) {
	if c.told != txn.PhaseNone && c.told.Commit() != p.Commit() && !c.w.forgotten[c.gid] {
		c.w.fail("%s: the client was told %s and then %s (G1)", c.gid, c.told, p)
	}
	if c.told == txn.PhaseNone {
		c.w.say("client of %s is told %s", c.gid, p)
	}
	if c.told = p; c.repeats == 0 {
		c.done = true
	}
	c.repeats--
	c.begunAt = c.w.now
}
