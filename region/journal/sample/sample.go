// Package sample makes synthetic rows of a journal: payments as a TCC transaction of two branches. It serves tests and
// journal-fill.
package sample

import (
	"fmt"
	"time"

	"github.com/lockstep-tx/lockstep/coordinator/engine"
	"github.com/lockstep-tx/lockstep/coordinator/record"
	"github.com/lockstep-tx/lockstep/coordinator/txn"
	"github.com/lockstep-tx/lockstep/region/slot"
)

// Maker numbers the events of the rows that it makes, slot by slot, as a coordinator does.
type Maker struct {
	// Epoch of the events; 0 means 1.
	Epoch uint64
	heads [slot.Count]record.Head
	n     int
}

// Payment is what differs between two samples. Zero fields mean TCC and commit.
type Payment struct {
	Gid     txn.Gid
	Mode    txn.Mode
	Abort   bool
	BegunAt int64 // unix milliseconds
	// Decided: only the decision is known.
	Decided bool
	// Branches in the place of the two that are made up.
	Branches []txn.Branch
}

// Row makes the row of a payment that took 20 ms.
func (m *Maker) Row(p Payment) engine.Row {
	m.n++
	epoch := max(1, m.Epoch)
	if p.Mode == 0 {
		p.Mode = txn.ModeTCC
	}
	phase, op := txn.PhaseCommitted, txn.OpConfirm
	if p.Abort {
		phase, op = txn.PhaseAborted, txn.OpCancel
	}
	tx := record.Tx{State: txn.State{
		Gid: p.Gid, Mode: p.Mode, Phase: phase, Epoch: epoch, BegunAt: p.BegunAt, DecidedAt: p.BegunAt + 8, UpdatedAt: p.BegunAt + 20,
		FinishedAt: p.BegunAt + 20,
	}}
	tx.State.Branches = p.Branches
	for i, name := range []string{"ledger", "merchant"} {
		if p.Branches != nil {
			break
		}
		base := "http://" + name + ".pay.example:8080/api/v1/" + name
		id := txn.BranchID(fmt.Sprintf("%02d", i+1))
		tx.State.Branches = append(tx.State.Branches, txn.Branch{
			ID: id, Confirm: base + "/confirm", Cancel: base + "/cancel",
			Payload: fmt.Appendf(nil, `{"order":"o-%010d","account":"user-%07d","amount":%d,"currency":"CNY"}`, m.n, m.n%1_000_003, 100+m.n%100_000),
			Two:     txn.OpState{Status: txn.OpDone, Attempts: 1, DoneAt: p.BegunAt + 18},
		})
		tx.Timeline.Add(record.Attempt{
			Branch: id, Op: op, Number: 1, StartedAt: p.BegunAt + 9, Took: time.Duration(7_000+m.n%1000) * time.Microsecond, Outcome: txn.Done,
		})
	}
	if err := tx.Close(); err != nil {
		panic(err) // a state that is made here can be encoded
	}
	n := slot.Of(string(p.Gid))
	row := engine.Row{
		Gid: p.Gid, Slot: n, Mode: p.Mode, Phase: phase, BegunAt: p.BegunAt, DecidedAt: tx.State.DecidedAt, FinishedAt: tx.State.FinishedAt,
		Closed: tx.Closed, Progress: tx.Progress, DecisionEpoch: epoch, FinishEpoch: epoch,
	}
	row.Decision = m.heads[n].Next(n, epoch, record.KindDecision, p.Gid, row.Closed)
	m.heads[n] = row.Decision
	if p.Decided {
		return Decision(row)
	}
	row.Finish = m.heads[n].Next(n, epoch, record.KindFinish, p.Gid, row.Progress)
	m.heads[n] = row.Finish
	return row
}

// Decision gives the row as it was before its finish.
func Decision(row engine.Row) engine.Row {
	row.Phase = txn.PhaseCommitting
	if tx, err := record.FromParts(row.Closed, nil, row.Decision, record.Head{}, row.DecisionEpoch, 0); err == nil {
		row.Phase = tx.State.Phase
	}
	row.FinishedAt, row.Progress, row.Finish, row.FinishEpoch = 0, nil, record.Head{}, 0
	return row
}
