package ledger_test

import (
	"errors"

	"github.com/lockstep-tx/lockstep/participants/barrier"
	"github.com/lockstep-tx/lockstep/participants/ledger"
)

// model is the ledger as its documentation has it, in memory: no shards, no buffers, no rows.
type model struct {
	accounts  map[string]*modelAccount
	transfers map[string]*modelTransfer
}

type modelAccount struct {
	def            ledger.Account
	frozen         bool
	dp, dq, cp, cq int64
	today          int64 // of an aggregated account: net, until the day cut
}

type modelTransfer struct {
	kind, state, of string // kind tombstone: the id is taken by a reversal
	legs            []ledger.Leg
	total, refunded int64
}

// The classes of outcomes.
const (
	ok            = "ok"
	no            = "refused"
	mismatch      = "mismatch"
	ongoing       = "ongoing"
	contradiction = "contradiction"
	noHold        = "no hold"
)

func classOf(err error) string {
	var other *ledger.MismatchError
	switch {
	case err == nil:
		return ok
	case errors.As(err, &other):
		return mismatch
	case errors.Is(err, barrier.ErrRefused):
		return no
	case errors.Is(err, barrier.ErrOngoing):
		return ongoing
	case errors.Is(err, barrier.ErrContradiction):
		return contradiction
	case errors.Is(err, ledger.ErrNoHold):
		return noHold
	}
	return err.Error()
}

func same(a, b []ledger.Leg) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		if a[i] != b[i] {
			return false
		}
	}
	return true
}

// enter predicts a hold, transfer or refund; do also makes it so.
func (m *model) enter(id, kind, of string, legs []ledger.Leg, post, do bool) string {
	if t := m.transfers[id]; t != nil {
		switch {
		case t.kind == "tombstone":
			return no
		case t.kind != kind || t.of != of || !same(t.legs, legs):
			return mismatch
		case t.state == "voided":
			return no
		}
		return ok
	}
	var total int64
	for _, g := range legs {
		total += g.Minor
	}
	if of != "" {
		p := m.transfers[of]
		if p == nil || (p.kind != "hold" && p.kind != "transfer") || p.of != "" || p.state == "voided" || p.legs[0].Currency != legs[0].Currency || p.refunded+total > p.total {
			return no
		}
		if p.state == "pending" { // before balances and states count
			if !m.inCurrency(legs) {
				return no
			}
			return ongoing
		}
	}
	if !m.fits(legs) {
		return no
	}
	if do {
		t := &modelTransfer{kind: kind, state: "pending", of: of, legs: legs, total: total}
		m.transfers[id] = t
		if of != "" {
			m.transfers[of].refunded += total
		}
		m.pend(legs, 1)
		if post {
			t.state = "posted"
			m.pend(legs, -1)
			m.book(legs)
		}
	}
	return ok
}

// inCurrency says whether the legs' accounts are in their currencies.
func (m *model) inCurrency(legs []ledger.Leg) bool {
	for _, g := range legs {
		if m.accounts[g.Debit].def.Currency != g.Currency || m.accounts[g.Credit].def.Currency != g.Currency {
			return false
		}
	}
	return true
}

// fits says whether legs pass every limit. No account stands on both sides.
func (m *model) fits(legs []ledger.Leg) bool {
	if !m.inCurrency(legs) {
		return false
	}
	debits, credits := map[string]int64{}, map[string]int64{}
	for _, g := range legs {
		debits[g.Debit] += g.Minor
		credits[g.Credit] += g.Minor
		if m.accounts[g.Debit].frozen || m.accounts[g.Credit].frozen {
			return false
		}
	}
	for id, n := range debits {
		a := m.accounts[id]
		if !a.def.Overdraft && a.dp+a.dq+n > a.cq {
			return false
		}
		if a.def.MaxDebit > 0 && a.dp+a.dq+n > a.def.MaxDebit {
			return false
		}
	}
	for id, n := range credits {
		a := m.accounts[id]
		if a.def.MaxCredit > 0 && a.cp+a.cq+n > a.def.MaxCredit {
			return false
		}
	}
	return true
}

func (m *model) pend(legs []ledger.Leg, sign int64) {
	for _, g := range legs {
		m.accounts[g.Debit].dp += sign * g.Minor
		m.accounts[g.Credit].cp += sign * g.Minor
	}
}

func (m *model) book(legs []ledger.Leg) {
	for _, g := range legs {
		if d := m.accounts[g.Debit]; d.def.Mode == ledger.Aggregated && d.def.Overdraft {
			d.today -= g.Minor
		} else {
			d.dq += g.Minor
		}
		if c := m.accounts[g.Credit]; c.def.Mode == ledger.Aggregated {
			c.today += g.Minor
		} else {
			c.cq += g.Minor
		}
	}
}

func (m *model) settle(id string, post, do bool) string {
	t := m.transfers[id]
	switch {
	case t == nil:
		return noHold
	case t.kind != "hold":
		return mismatch
	case t.state == "posted" && post, t.state == "voided" && !post:
		return ok
	case t.state != "pending":
		return contradiction
	}
	if do {
		m.pend(t.legs, -1)
		t.state = "voided"
		if post {
			t.state = "posted"
			m.book(t.legs)
		} else if t.of != "" {
			m.transfers[t.of].refunded -= t.total
		}
	}
	return ok
}

func (m *model) reverse(id, of string, do bool) string {
	if t := m.transfers[id]; t != nil {
		if t.of != of {
			return mismatch
		}
		return ok
	}
	t := m.transfers[of]
	back := []ledger.Leg(nil)
	switch {
	case t == nil:
		if do {
			m.transfers[of] = &modelTransfer{kind: "tombstone", state: "voided"}
		}
	case t.kind == "tombstone":
		return no
	case t.state == "pending":
		return ongoing
	case t.state == "voided":
	case t.of != "" || t.refunded > 0:
		return no
	default:
		for _, g := range t.legs {
			back = append(back, ledger.Leg{Debit: g.Credit, Credit: g.Debit, Minor: g.Minor, Currency: g.Currency})
		}
		if !m.fits(back) {
			return no
		}
		if do {
			t.refunded = t.total
			m.book(back)
		}
	}
	if do {
		m.transfers[id] = &modelTransfer{kind: "reversal", state: "posted", of: of}
	}
	return ok
}

func (m *model) cut() {
	for _, a := range m.accounts {
		if a.today > 0 {
			a.cq += a.today
		} else {
			a.dq -= a.today
		}
		a.today = 0
	}
}
