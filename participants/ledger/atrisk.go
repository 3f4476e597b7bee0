package ledger

import (
	"context"
	"database/sql"
	"fmt"
	"maps"
	"slices"

	"github.com/lockstep-tx/lockstep/participants/barrier"
)

// This file is what an account may do whose region was lost (ADR 9). The policy comes with the branch call (barrier.Policy)
// and is judged at the try. Accounts of the house are every region's own and never at risk; accounts whose debits are all
// global are not either, since nothing of theirs is lost with a region.

// allowed says whether what t debits may be debited: by what accounts promise and by the policy of the call's slot.
func (l *Ledger) allowed(ctx context.Context, tx *sql.Tx, t Transfer) error {
	for _, g := range t.Legs {
		m, err := l.meta(ctx, tx, g.Debit)
		switch {
		case err != nil:
			return err
		case m.unlimited:
		case m.globalOnly && !t.isGlobal():
			return &Refusal{Reason: NeedsGlobal, Field: "debit", Account: g.Debit, Detail: "its debits are all of durability global; begin the transaction with that"}
		case !m.globalOnly && t.policy().Risk == barrier.RiskBlock:
			return &Refusal{Reason: AccountAtRisk, Field: "debit", Account: g.Debit, Detail: "its region was lost; its debits wait for the lost region's settlement"}
		}
	}
	return nil
}

// count counts what t debits at risk, once for its id, and refuses what would go past the cap. The row of the sum is locked
// until the local transaction ends, so that tries beside each other see each other.
func (l *Ledger) count(ctx context.Context, tx *sql.Tx, t Transfer) error {
	p := t.policy()
	if p.Risk != barrier.RiskLimit {
		return nil
	}
	debits := map[string]int64{}
	for _, g := range t.Legs {
		m, err := l.meta(ctx, tx, g.Debit)
		if err != nil {
			return err
		}
		if !m.unlimited && !m.globalOnly {
			debits[g.Debit] += g.Minor
		}
	}
	for _, account := range slices.Sorted(maps.Keys(debits)) { // in one order, so that no two wait for each other
		if err := l.countOne(ctx, tx, t.ID, account, debits[account], p); err != nil {
			return err
		}
	}
	return nil
}

func (l *Ledger) countOne(ctx context.Context, tx *sql.Tx, id, account string, minor int64, p barrier.Policy) error {
	if _, err := tx.ExecContext(ctx, l.insertNew("at_risk (account, epoch, used) VALUES (?, ?, 0)", "account, epoch", "account"), account, p.Since); err != nil {
		return fmt.Errorf("ledger: debits at risk of %s: %w", account, err)
	}
	fresh, err := changed(ctx, tx, l.insertNew("at_risk_debit (id, account, epoch, amount) VALUES (?, ?, ?, ?)", "id, account", "id"), id, account, p.Since, minor)
	if err != nil || !fresh {
		return err
	}
	ok, err := changed(ctx, tx, l.q("UPDATE {p}at_risk SET used = used + ? WHERE account = ? AND epoch = ? AND used <= ?"), minor, account, p.Since, p.Cap-minor)
	if err != nil || ok {
		return err
	}
	used := int64(0)
	if err := tx.QueryRowContext(ctx, l.q("SELECT used FROM {p}at_risk WHERE account = ? AND epoch = ?"), account, p.Since).Scan(&used); err != nil {
		return err
	}
	return &Refusal{Reason: AccountAtRisk, Field: "amount", Account: account, Detail: fmt.Sprintf(
		"its region was lost; %d of %d are debited since then, %d more wait for the lost region's settlement", used, p.Cap, minor)}
}

// giveBack takes a voided hold's part out of what was debited at risk. Only where a cap stands, or where nobody says whether
// one does, is there anything to look for.
func (l *Ledger) giveBack(ctx context.Context, tx *sql.Tx, t Transfer) error {
	if t.call != nil && t.policy().Risk != barrier.RiskLimit {
		return nil
	}
	rows, err := tx.QueryContext(ctx, l.q("SELECT account, epoch, amount FROM {p}at_risk_debit WHERE id = ? ORDER BY account"), t.ID)
	if err != nil {
		return err
	}
	type part struct {
		account       string
		epoch, amount int64
	}
	var parts []part
	for rows.Next() {
		var p part
		if err := rows.Scan(&p.account, &p.epoch, &p.amount); err != nil {
			rows.Close()
			return err
		}
		parts = append(parts, p)
	}
	if err := rows.Close(); err != nil {
		return err
	}
	if err := rows.Err(); err != nil {
		return err
	}
	for _, p := range parts {
		if ok, err := changed(ctx, tx, l.q("DELETE FROM {p}at_risk_debit WHERE id = ? AND account = ?"), t.ID, p.account); err != nil || !ok {
			return err
		}
		if _, err := tx.ExecContext(ctx, l.q("UPDATE {p}at_risk SET used = used - ? WHERE account = ? AND epoch = ?"), p.amount, p.account, p.epoch); err != nil {
			return err
		}
	}
	return nil
}

// insertNew is the insert of a row of one of the ledger's tables that may be there, and is left as it is then. On MySQL it
// locks the row as a writer does: two readers that both go on to write would wait for each other.
func (l *Ledger) insertNew(into, key, same string) string {
	if l.dialect == barrier.MySQL {
		return l.q("INSERT INTO {p}" + into + " ON DUPLICATE KEY UPDATE " + same + " = " + same)
	}
	return l.q("INSERT INTO {p}" + into + " ON CONFLICT (" + key + ") DO NOTHING")
}

// Exposure is what an account has debited at risk since its slot was adopted at Epoch, in minor units, held and posted.
type Exposure struct {
	Account string `json:"account"`
	Epoch   int64  `json:"epoch"`
	Used    int64  `json:"used"`
}

// Exposures lists what accounts have debited under a cap, by account and epoch.
func (l *Ledger) Exposures(ctx context.Context, db Querier) ([]Exposure, error) {
	rows, err := db.QueryContext(ctx, l.q("SELECT account, epoch, used FROM {p}at_risk ORDER BY account, epoch"))
	if err != nil {
		return nil, fmt.Errorf("ledger: debits at risk: %w", err)
	}
	defer rows.Close()
	var out []Exposure
	for rows.Next() {
		var e Exposure
		if err := rows.Scan(&e.Account, &e.Epoch, &e.Used); err != nil {
			return nil, fmt.Errorf("ledger: debits at risk: %w", err)
		}
		out = append(out, e)
	}
	return out, rows.Err()
}

// exposuresOf are those of a slot's accounts, which go with it.
func (s Slots) exposuresOf(ctx context.Context, tx *sql.Tx, slot int) ([]Exposure, error) {
	all, err := s.Exposures(ctx, tx)
	return slices.DeleteFunc(all, func(e Exposure) bool { return barrier.SlotOf(e.Account) != slot }), err
}

// expose takes over what was debited elsewhere. What is voided here of a hold that came with the slot is not given back.
func (s Slots) expose(ctx context.Context, tx *sql.Tx, all []Exposure) error {
	for _, e := range all {
		if _, err := tx.ExecContext(ctx, s.insertNew("at_risk (account, epoch, used) VALUES (?, ?, 0)", "account, epoch", "account"), e.Account, e.Epoch); err != nil {
			return err
		}
		if _, err := tx.ExecContext(ctx, s.q("UPDATE {p}at_risk SET used = ? WHERE account = ? AND epoch = ? AND used < ?"), e.Used, e.Account, e.Epoch, e.Used); err != nil {
			return err
		}
	}
	return nil
}
