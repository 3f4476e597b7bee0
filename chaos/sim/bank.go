package sim

import (
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/lockstep-tx/lockstep/coordinator/engine"
	"github.com/lockstep-tx/lockstep/coordinator/txn"
	"github.com/lockstep-tx/lockstep/region/failover/recovery"
	"github.com/lockstep-tx/lockstep/region/slot"
)

const ms = time.Millisecond

// bank is a region's participants: accounts, a barrier row for each branch, a fence row for each slot. Every region has every
// account; one of them is its home, the others are copies that take committed effects alone.
//
// The law it keeps: barrier row and effect are one; confirm, apply and posting from a record share one row; what a newer epoch
// has seen refuses an older one.
type bank struct {
	w        *World
	r        *region
	fences   [slotsInPlay]fenceRow
	accounts map[string]*account
	rows     map[string]*barrierRow
	released map[parcelKey]map[string]barrierRow
}

type fenceRow struct {
	epoch uint64 // highest seen, of transactions and accounts alike
	home  bool
	// blocked: its accounts accept no debits, as the loss that they came by is not worked off.
	blocked bool
}

type parcelKey struct {
	slot  int
	epoch slot.Epoch
}

// account is one account's counters, in minor units.
type account struct {
	name         string
	posted, held int64
	// exposed is what was posted from records without a hold after the block was lifted in good order: G7's exception.
	exposed int64
}

type rowState uint8

const (
	rowTried rowState = iota + 1
	rowConfirmed
	rowCancelled
	rowTombstone // cancelled before its try came
)

// barrierRow is one branch at its participant. Amount is negative for a debit.
type barrierRow struct {
	gid     txn.Gid
	branch  txn.BranchID
	account string
	amount  int64
	global  bool
	state   rowState
}

func newBank(r *region) *bank {
	b := &bank{w: r.w, r: r, accounts: map[string]*account{}, rows: map[string]*barrierRow{}, released: map[parcelKey]map[string]barrierRow{}}
	for _, name := range accountNames() {
		b.accounts[name] = &account{name: name, posted: openingBalance}
	}
	return b
}

// openingBalance of every account, in minor units.
const openingBalance = 120

func rowKey(gid txn.Gid, id txn.BranchID) string { return string(gid) + "/" + string(id) }

// effectOf reads a branch's payload: the amount, negative for a debit. ok is false for one that is ended by its name.
func effectOf(payload []byte) (amount int64, ok bool) {
	n, _ := fmt.Sscanf(string(payload), "amount %d", &amount)
	return amount, n == 1
}

// carry carries a call out.
func (b *bank) carry(c *engine.Call) txn.Outcome {
	out := b.judge(c)
	if out == txn.Done {
		out = b.act(c)
	}
	b.w.say("%s bank: %s of %s/%s at epoch %d: %s", b.r.name, c.Op, c.Gid, c.Branch, c.Epoch, out)
	return out
}

// judge compares epochs: Stale where a newer one has been here, Deferred where the account is still on its way.
func (b *bank) judge(c *engine.Call) txn.Outcome {
	tf, af := &b.fences[c.Slot], &b.fences[c.AccountSlot]
	switch {
	case c.Epoch != 0 && c.Epoch < tf.epoch, c.AccountEpoch < af.epoch:
		return txn.Stale
	case !af.home || c.AccountEpoch > af.epoch:
		return txn.Deferred
	}
	tf.epoch = max(tf.epoch, c.Epoch)
	return txn.Done
}

func (b *bank) act(c *engine.Call) txn.Outcome {
	amount, named := effectOf(c.Payload)
	row := b.rows[rowKey(c.Gid, c.Branch)]
	switch c.Op {
	case txn.OpTry:
		return b.try(c, row, amount)
	case txn.OpConfirm:
		if b.w.opt.Rules.Unbarriered && row != nil && row.state == rowConfirmed {
			b.accounts[row.account].posted += row.amount
		}
		if row != nil || named {
			b.confirm(c.Gid, c.Branch, c.Account, amount)
		}
	case txn.OpCancel:
		b.cancel(c.Gid, c.Branch, c.Account, amount)
	default:
		b.w.fail("unexpected call %s", c.Op)
	}
	return txn.Done
}

// try holds a debit; a credit needs no room.
func (b *bank) try(c *engine.Call, row *barrierRow, amount int64) txn.Outcome {
	a := b.accounts[c.Account]
	switch {
	case row != nil && row.state == rowTombstone, row != nil && row.state == rowCancelled:
		return txn.Refused
	case row != nil:
		return txn.Done
	case amount < 0 && b.fences[c.AccountSlot].blocked, amount < 0 && a.posted-a.held < -amount:
		return txn.Refused
	}
	b.rows[rowKey(c.Gid, c.Branch)] = &barrierRow{c.Gid, c.Branch, c.Account, amount, c.Global, rowTried}
	if amount < 0 {
		a.held -= amount
	}
	return txn.Done
}

// confirm posts a branch once. Without a try's row it is posting from the record: of an account that came by force, or a copy.
func (b *bank) confirm(gid txn.Gid, id txn.BranchID, name string, amount int64) {
	key := rowKey(gid, id)
	row := b.rows[key]
	if row == nil {
		at := slot.Of(name)
		f := &b.fences[at]
		if f.home && !b.w.forced[at] {
			b.w.fail("%s at %s: a confirm without its try, and the account came in good order (G5)", key, b.r.name)
		}
		row = &barrierRow{gid: gid, branch: id, account: name, amount: amount}
		b.rows[key] = row
		if f.home && b.w.lifted[at] && amount < 0 {
			b.accounts[name].exposed -= amount
		}
	}
	a := b.accounts[row.account]
	switch row.state {
	case rowConfirmed:
		return
	case rowCancelled, rowTombstone:
		b.w.fail("%s at %s: a confirm after its cancel (G5)", key, b.r.name)
		return
	case rowTried:
		if row.amount < 0 {
			a.held += row.amount
		}
	}
	row.state = rowConfirmed
	a.posted += row.amount
}

// cancel lets a try go, or leaves a tombstone where none came yet.
func (b *bank) cancel(gid txn.Gid, id txn.BranchID, name string, amount int64) {
	key := rowKey(gid, id)
	row := b.rows[key]
	if row == nil {
		b.rows[key] = &barrierRow{gid: gid, branch: id, account: name, amount: amount, state: rowTombstone}
		return
	}
	switch row.state {
	case rowConfirmed:
		b.w.fail("%s at %s: a cancel after its confirm (G5)", key, b.r.name)
	case rowTried:
		if row.state = rowCancelled; row.amount < 0 {
			b.accounts[row.account].held += row.amount
		}
	case rowCancelled, rowTombstone:
	}
}

// sortedRows are the barrier rows in the order of their keys.
func (b *bank) sortedRows() []*barrierRow {
	out := make([]*barrierRow, 0, len(b.rows))
	for _, key := range slices.Sorted(maps.Keys(b.rows)) {
		out = append(out, b.rows[key])
	}
	return out
}

// fence raises the fence of a transaction slot: calls of older epochs are refused from now on.
func (b *bank) fence(n int, epoch slot.Epoch) {
	b.fences[n].epoch = max(b.fences[n].epoch, uint64(epoch))
}

// copies makes copies of a slot's accounts: what they hold lives elsewhere.
func (b *bank) copies(n int, epoch uint64) {
	f := &b.fences[n]
	*f = fenceRow{epoch: max(f.epoch, epoch)}
	for key, row := range b.rows {
		if row.state == rowTried && slot.Of(row.account) == n {
			if row.amount < 0 {
				b.accounts[row.account].held += row.amount
			}
			delete(b.rows, key)
		}
	}
}

// release gives out the rows of a slot's accounts, and makes copies of them. nil twice: it was released already, or cannot be yet.
func (b *bank) release(n int, epoch slot.Epoch) bool {
	key := parcelKey{n, epoch}
	if b.released[key] != nil {
		return true
	}
	if f := &b.fences[n]; !f.home || f.epoch != uint64(epoch) || f.blocked {
		return false // what the move before brought is not adopted yet
	}
	parcel := map[string]barrierRow{}
	for k, row := range b.rows {
		if slot.Of(row.account) == n {
			parcel[k] = *row
		}
	}
	b.released[key] = parcel
	b.copies(n, uint64(epoch.Released()))
	b.w.say("%s bank releases slot %d of epoch %d", b.r.name, n, epoch)
	return true
}

// adopt makes homes of a slot's accounts with what was released; nil: they came by force, and nothing came with them.
func (b *bank) adopt(n int, epoch slot.Epoch, parcel map[string]barrierRow) {
	for _, key := range slices.Sorted(maps.Keys(parcel)) {
		came := parcel[key]
		have := b.rows[key]
		switch {
		case have == nil:
			row := came
			b.rows[key] = &row
			if a := b.accounts[row.account]; row.state == rowConfirmed {
				a.posted += row.amount
			} else if row.state == rowTried && row.amount < 0 {
				a.held -= row.amount
			}
		case came.state == rowConfirmed:
			b.confirm(came.gid, came.branch, came.account, came.amount)
		case came.state == rowCancelled && have.state == rowTried:
			b.cancel(came.gid, came.branch, came.account, came.amount)
		case came.state == rowCancelled && have.state == rowConfirmed:
			b.w.fail("%s at %s: cancelled in its old home and posted here (G5)", key, b.r.name)
		}
	}
	b.fences[n] = fenceRow{epoch: max(b.fences[n].epoch, uint64(epoch)), home: true, blocked: parcel == nil}
	b.w.say("%s bank adopts slot %d at epoch %d, %d rows, forced %v", b.r.name, n, epoch, len(parcel), parcel == nil)
}

// tries tells of the branches of a slot's transactions that stand here and are not known to have ended.
func (b *bank) tries(n int, ended func(txn.Gid) bool) []recovery.Try {
	var out []recovery.Try
	for _, row := range b.sortedRows() {
		if slot.Of(string(row.gid)) != n || row.state == rowTombstone || ended(row.gid) {
			continue
		}
		t := recovery.Try{Participant: "p", Gid: row.gid, Branch: row.branch, Mode: txn.ModeTCC, Global: row.global, Account: row.account, Amount: row.amount}
		switch row.state {
		case rowTried:
			t.State = recovery.Tried
		case rowConfirmed:
			t.State = recovery.Confirmed
		case rowCancelled, rowTombstone:
			t.State = recovery.Cancelled
		}
		out = append(out, t)
	}
	return out
}
