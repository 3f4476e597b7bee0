package applier

import (
	"strings"

	"github.com/lockstep-tx/lockstep/coordinator/engine"
	"github.com/lockstep-tx/lockstep/coordinator/record"
	"github.com/lockstep-tx/lockstep/coordinator/txn"
	"github.com/lockstep-tx/lockstep/region/registry"
)

// effect makes the call that a confirmed branch owes here; false where nothing is owed, since its participant keeps no copies.
// A participant that the branch names and that is not registered may keep some: the effect is owed, and its call not known.
func (a *Applier) effect(e *effect, n int) (owed bool) {
	return e.tx.State.Branches[e.branch].Two.Status == txn.OpDone && a.post(e, n, a.cfg.Self)
}

// Posts gives the calls that post a committed transaction of slot n in a region from its record, whatever became of its
// confirms, at participants that keep copies there; false where one of its participants is not registered (ADR 9).
func (a *Applier) Posts(tx *record.Tx, n int, region string) (calls []*engine.Call, known bool) {
	known = true
	for i := range tx.State.Branches {
		e := &effect{tx: tx, branch: i}
		if !a.post(e, n, region) {
			continue
		}
		if e.call == nil {
			known = false
			continue
		}
		calls = append(calls, e.call)
	}
	return calls, known
}

// post makes the call that posts a branch in a region; false where its participant keeps no copies.
func (a *Applier) post(e *effect, n int, region string) (owed bool) {
	s, b, table := &e.tx.State, &e.tx.State.Branches[e.branch], a.cfg.Table()
	if b.Message || b.Confirm == "" {
		return false
	}
	part, rest := table.Split(b.Confirm)
	if part == nil {
		e.call = nil
		return strings.HasPrefix(b.Confirm, registry.Scheme)
	}
	if part.Can == nil || !part.Can.Apply || part.Endpoints[region] == "" {
		return false
	}
	path, query, asks := strings.Cut(rest, "?")
	path, ok := strings.CutSuffix(path, "/confirm")
	if !ok {
		return false
	}
	url := strings.TrimSuffix(part.Endpoints[region], "/") + path + "/" + OpWord
	if asks {
		url += "?" + query
	}
	account := table.AccountSlot(b.Confirm, b.Account, b.Payload, n)
	e.call = &engine.Call{
		Gid: s.Gid, Slot: n, Epoch: 1, Mode: s.Mode, Branch: b.ID, Op: txn.OpConfirm, OpWord: OpWord, URL: url, Protocol: s.Opt.Protocol,
		Payload: b.Payload, Headers: s.Opt.Headers, Timeout: s.RequestTimeout(), AccountSlot: account, AccountEpoch: 1,
	}
	return true
}

// Holds gives the calls that rebuild in this region what the branches of a TCC transaction of slot n hold of accounts in the
// slots given, at participants that can: those of an abort are none, and a branch whose confirm was answered is one of them, since
// its effect is posted here only with the finish (ADR 9). A try that the coordinator makes and that nobody has answered with Done is
// none: it is made again, at the new home, which then judges it; held ahead of that, it would pass by the policy for accounts at
// risk. A participant that is not registered here has no copies to spend from.
func (a *Applier) Holds(tx *record.Tx, n int, in func(slot int) bool) (calls []*engine.Call) {
	s, table := &tx.State, a.cfg.Table()
	if s.Mode != txn.ModeTCC || s.InDoubt || s.Phase.Decided() && !s.Phase.Commit() {
		return nil
	}
	for i := range s.Branches {
		e := &effect{tx: tx, branch: i}
		if s.Phase == txn.PhaseRunning && s.Branches[i].One.Status != txn.OpDone {
			continue
		}
		if !a.post(e, n, a.cfg.Self) || e.call == nil || !in(e.call.AccountSlot) {
			continue
		}
		if part, _ := table.Split(s.Branches[i].Confirm); !part.Can.Hold {
			continue
		}
		c := e.call
		path, query, asks := strings.Cut(c.URL, "?")
		if c.URL = strings.TrimSuffix(path, OpWord) + HoldWord; asks {
			c.URL += "?" + query
		}
		c.Op, c.OpWord, c.Global = txn.OpTry, HoldWord, s.Opt.Durability == txn.Global
		calls = append(calls, c)
	}
	return calls
}
