package seed

import (
	"fmt"
)

// lostConfirm (D01): the hold is open again, and nothing says that it was ever confirmed.
func (p *planter) lostConfirm() error {
	r, err := p.unpost()
	if err != nil {
		return err
	}
	p.out.Variant = fmt.Sprintf("%d open again", r.amount)
	return p.dropRow("confirm")
}

// unpost makes a posted transfer a hold again.
func (p *planter) unpost() (row, error) {
	r, err := p.of("posted")
	if err != nil {
		return r, err
	}
	return r, all(func() error { return p.dropEntries(r) }, func() error { return p.state(r, "pending") }, func() error { return p.move(r, r.amount, -r.amount) })
}

// lostCancel (D02): the same of a cancel.
func (p *planter) lostCancel() error {
	r, err := p.of("voided")
	if err != nil {
		return err
	}
	return all(func() error { return p.state(r, "pending") }, func() error { return p.move(r, r.amount, 0) }, func() error { return p.dropRow("cancel") })
}

// confirmTwice (D03): transfer, entries and counters once more.
func (p *planter) confirmTwice() error {
	r, err := p.of("posted")
	if err != nil {
		return err
	}
	second := r
	second.id = fmt.Sprintf("%s~%d", r.id, p.rnd.IntN(1_000_000))
	return all(func() error { return p.again(r, second.id) }, func() error { return p.addEntries(second) }, func() error { return p.move(r, 0, r.amount) })
}

// cancelTwice (D04): a voided row once more, and what was held let go once more. Another hold must be open on the accounts.
func (p *planter) cancelTwice() error {
	r, err := p.of("voided")
	if err != nil {
		return err
	}
	return all(func() error { return p.again(r, fmt.Sprintf("%s~%d", r.id, p.rnd.IntN(1_000_000))) }, func() error { return p.move(r, -r.amount, 0) })
}

// both (D05): a cancelled branch is confirmed too.
func (p *planter) both() error {
	r, err := p.of("voided")
	if err != nil {
		return err
	}
	return all(func() error { return p.state(r, "posted") }, func() error { return p.addEntries(r) }, func() error { return p.move(r, 0, r.amount) }, func() error { return p.addRow("confirm") })
}

// counter (D06): a counter of the account is off.
func (p *planter) counter() error {
	n := 1 + p.rnd.Int64N(99_999)
	switch p.out.Variant = fmt.Sprintf("%d", n); p.rnd.IntN(3) {
	case 0:
		return p.count(p.at.Account, 0, 0, 0, n)
	case 1:
		return p.count(p.at.Account, 0, n, 0, 0)
	}
	return p.count(p.at.Account, 0, 0, 0, -n)
}

// amount (D07): the amount of the transfer's row, of an entry, or of both with the counters.
func (p *planter) amount() error {
	r, err := p.of("posted")
	if err != nil {
		return err
	}
	by := 1 + p.rnd.Int64N(89)
	leg := func() error {
		return p.one("UPDATE ledger_transfer SET amount = ? WHERE id = ? AND leg = 0", r.amount+by, r.id)
	}
	entry := func(direction string) func() error {
		return func() error {
			return p.unlocked(r.id, func() error {
				return p.one("UPDATE ledger_entry SET amount = ? WHERE transfer_id = ? AND direction = ?", r.amount+by, r.id, direction)
			})
		}
	}
	switch v := p.rnd.IntN(4); v {
	case 0:
		p.out.Variant = "the transfer's row"
		return leg()
	case 1, 2:
		p.out.Variant = "one entry"
		return entry([]string{"debit", "credit"}[v-1])()
	}
	p.out.Variant = "all rows and the counters"
	return all(leg, entry("debit"), entry("credit"), func() error { return p.move(r, 0, by) })
}

// moved (D08): the branch's effect is on another account, with or without the counters.
func (p *planter) moved() error {
	r, err := p.of("posted")
	if err != nil {
		return err
	}
	side := "credit"
	if p.debited(r) {
		side = "debit"
	}
	p.out.Other = p.at.Other
	err = all(func() error {
		return p.one("UPDATE ledger_transfer SET "+side+" = ? WHERE id = ? AND leg = 0", p.at.Other, r.id)
	},
		func() error {
			return p.unlocked(r.id, func() error {
				return p.one("UPDATE ledger_entry SET account = ? WHERE transfer_id = ? AND direction = ?", p.at.Other, r.id, side)
			})
		})
	if p.out.Variant = "rows"; err != nil || p.rnd.IntN(2) == 0 {
		return err
	}
	p.out.Variant = "rows and counters"
	if side == "debit" {
		return all(func() error { return p.count(p.at.Account, 0, -r.amount, 0, 0) }, func() error { return p.count(p.at.Other, 0, r.amount, 0, 0) })
	}
	return all(func() error { return p.count(p.at.Account, 0, 0, 0, -r.amount) }, func() error { return p.count(p.at.Other, 0, 0, 0, r.amount) })
}

// phantomEntry (D09): an entry that no transfer made, with or without the counter.
func (p *planter) phantomEntry() error {
	n := 1 + p.rnd.Int64N(9_999)
	id := fmt.Sprintf("phantom-%d", p.rnd.Int64())
	p.out.Gid, p.out.Branch, p.out.Variant = "", "", id
	if err := p.addEntry(id, "credit", p.at.Account, n, "CNY", "", ""); err != nil || p.rnd.IntN(2) == 0 {
		return err
	}
	return p.count(p.at.Account, 0, 0, 0, n)
}

// phantomHold (D10): a hold of a transaction that was never begun; half of them with a barrier row, which is what a lost
// transaction looks like too.
func (p *planter) phantomHold() error {
	n := 1 + p.rnd.Int64N(500)
	gid := fmt.Sprintf("ghost-%d", p.rnd.Int64())
	p.at.Gid, p.at.Branch, p.out.Gid, p.out.Branch, p.out.Variant = gid, "01", gid, "01", "no barrier row"
	r := row{id: gid + ":01", debit: p.at.Account, credit: "house:passage:CNY", currency: "CNY", amount: n}
	err := all(func() error {
		return p.one(`INSERT INTO ledger_transfer (id, leg, legs, kind, state, digest, gid, branch, of_id, debit, debit_shard, credit, credit_shard, amount, currency, total, created_us)
			VALUES (?, 0, 1, 'hold', 'pending', 'ghost', ?, '01', '', ?, 0, ?, 0, ?, 'CNY', ?, 1000000)`, r.id, gid, r.debit, r.credit, n, n)
	}, func() error { return p.move(r, n, 0) })
	if err != nil || p.rnd.IntN(2) == 0 {
		return err
	}
	p.out.Variant = "with a barrier row"
	return p.addRow("try")
}

// rowGone (D11): the barrier forgets what ended the branch.
func (p *planter) rowGone() error {
	if p.at.Commit {
		return p.dropRow("confirm")
	}
	return p.dropRow("cancel")
}

// effectGone (D12): the barrier's row stays, what it stands for is taken back; sometimes with the whole transfer.
func (p *planter) effectGone() error {
	if !p.at.Commit {
		r, err := p.of("voided")
		if err != nil {
			return err
		}
		p.out.Variant = "a cancel"
		return all(func() error { return p.state(r, "pending") }, func() error { return p.move(r, r.amount, 0) })
	}
	r, err := p.unpost()
	if p.out.Variant = "a confirm"; err != nil || p.rnd.IntN(2) == 0 {
		return err
	}
	p.out.Variant = "a confirm and its hold"
	return all(func() error { return p.move(r, -r.amount, 0) }, func() error { return p.one("DELETE FROM ledger_transfer WHERE id = ?", r.id) })
}

// neverTried (D13): no trace of the branch is left, as if it had been added to the record afterwards.
func (p *planter) neverTried() error {
	r, err := p.unpost()
	if err != nil {
		return err
	}
	return all(func() error { return p.move(r, -r.amount, 0) }, func() error { return p.one("DELETE FROM ledger_transfer WHERE id = ?", r.id) },
		func() error { return p.dropRow("confirm") }, func() error { return p.dropRow("try") })
}

// pair (D23): so much more here, so much less there; no total shows it.
func (p *planter) pair() error {
	n := 1 + p.rnd.Int64N(9_999)
	p.out.Other, p.out.Variant = p.at.Other, fmt.Sprintf("%d", n)
	return all(func() error { return p.count(p.at.Account, 0, 0, 0, n) }, func() error { return p.count(p.at.Other, 0, 0, 0, -n) })
}

// unit (D24): the amount a hundred times or a hundredth in all rows and counters, or another currency.
func (p *planter) unit() error {
	r, err := p.of("posted")
	if err != nil {
		return err
	}
	amount, currency := r.amount, "USD"
	switch p.out.Variant = "currency"; p.rnd.IntN(3) {
	case 0:
		p.out.Variant, amount, currency = "times 100", r.amount*100, r.currency
	case 1:
		p.out.Variant, amount, currency = "a hundredth", r.amount/100, r.currency
	}
	return all(func() error {
		return p.one("UPDATE ledger_transfer SET amount = ?, total = ?, currency = ? WHERE id = ? AND leg = 0", amount, amount, currency, r.id)
	}, func() error {
		return p.unlocked(r.id, func() error {
			return p.change(2, "UPDATE ledger_entry SET amount = ?, currency = ? WHERE transfer_id = ?", amount, currency, r.id)
		})
	}, func() error {
		if amount == r.amount {
			return nil // MySQL counts a row that stays as it is as not changed
		}
		return p.move(r, 0, amount-r.amount)
	})
}
