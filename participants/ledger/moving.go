package ledger

import (
	"cmp"
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"github.com/lockstep-tx/lockstep/participants/barrier"
)

// This file is how a region's ledger takes what was decided elsewhere: as the effect of one transfer on a copy, and as the
// accounts of a slot whose home comes here (ADR 8). Neither checks a limit: the home has. Accounts of the house (with
// Overdraft) are every region's own: all effects pass over them everywhere, and they never move.

// Effect posts a transfer that was confirmed at its home: the hold that is here is posted, and where there is none the legs
// are entered at once. A repeat does nothing. barrier.ErrContradiction if it was voided here. An error of a schema's limit
// means that credits are missing which come first; the caller repeats it later. Where t is of a call that says so
// (barrier.Call.Suspense), a debit past a limit goes through the suspense account of its currency instead.
func (l *Ledger) Effect(ctx context.Context, tx *sql.Tx, t Transfer) error {
	if t.call != nil && t.call.Suspense {
		return l.effectPastLimits(ctx, tx, t)
	}
	return l.enterCopy(ctx, tx, t, true)
}

// HoldCopy holds what a hold holds at the home that it comes from.
func (l *Ledger) HoldCopy(ctx context.Context, tx *sql.Tx, t Transfer) error {
	return l.enterCopy(ctx, tx, t, false)
}

func (l *Ledger) enterCopy(ctx context.Context, tx *sql.Tx, t Transfer, post bool) error {
	t, err := t.normal()
	if err != nil {
		return err
	}
	state, _, _, err := l.TransferState(ctx, tx, t.ID)
	switch {
	case err == nil && state == "posted", err == nil && state == "pending" && !post:
		return nil
	case err == nil && state == "pending":
		return l.Post(ctx, tx, t)
	case err == nil:
		return fmt.Errorf("%w: transfer %s is %s here and confirmed at its home", barrier.ErrContradiction, t.ID, state)
	case !errors.Is(err, sql.ErrNoRows):
		return err
	}
	p, err := l.plan(ctx, tx, t, kindHold, post)
	if err != nil {
		return err
	}
	at, settled := "pending", sql.NullInt64{}
	if post {
		at, settled = "posted", sql.NullInt64{Int64: p.us, Valid: true}
	}
	g := l.generic
	for i, leg := range p.legs {
		ok, err := changed(ctx, tx, g.insertLeg, p.id, p.first+i, len(p.legs), p.kind, at, p.digest, p.gid, p.branch, p.of,
			leg.debit, leg.debitShard, leg.credit, leg.creditShard, leg.amount, leg.currency, p.total, p.us, settled)
		if err != nil || !ok {
			return errors.Join(err, fmt.Errorf("transfer %s leg %d: %w", p.id, i, errRaced))
		}
	}
	if p.of != "" {
		if _, err := tx.ExecContext(ctx, l.q("UPDATE {p}transfer SET refunded = refunded + ? WHERE id = ? AND leg = 0"), p.total, p.of); err != nil {
			return err
		}
	}
	for _, m := range p.moves {
		pending := [2]int64{-m.debit, -m.credit}
		posted := [2]int64{}
		if post {
			pending, posted = posted, [2]int64{m.debit, m.credit}
		}
		ok, err := changed(ctx, tx, g.settleMove, pending[0], pending[1], posted[0], posted[1], m.account, m.shard)
		if err != nil || !ok {
			return errors.Join(err, fmt.Errorf("account %s shard %d of transfer %s", m.account, m.shard, p.id))
		}
	}
	if !post {
		return nil
	}
	return g.book(ctx, tx, p)
}

var errRaced = errors.New("another transaction has entered it; repeat the call")

// Slots moves a ledger's accounts between regions: it is the kit's Movable.
type Slots struct{ *Ledger }

// AccountOf is branch.Named's: wallets' payloads name their account.
func (Slots) AccountOf(payload []byte) string {
	var p struct {
		Account string `json:"account"`
	}
	if json.Unmarshal(payload, &p) != nil {
		return ""
	}
	return p.Account
}

// moved is what Take writes down of a slot.
type moved struct {
	Accounts []movedAccount `json:"accounts"`
	// Holds and Posted are the transfers behind the barrier rows: open, and confirmed.
	Holds  []Transfer `json:"holds"`
	Posted []Transfer `json:"posted"`
	// AtRisk is what the accounts have debited under a cap.
	AtRisk []Exposure `json:"at_risk,omitempty"`
}

// movedAccount is an account's definition and its counters, summed over its rows and what is buffered.
type movedAccount struct {
	Account
	DebitsPending  int64 `json:"debits_pending"`
	DebitsPosted   int64 `json:"debits_posted"`
	CreditsPending int64 `json:"credits_pending"`
	CreditsPosted  int64 `json:"credits_posted"`
}

// Take is branch.Movable's.
func (s Slots) Take(ctx context.Context, tx *sql.Tx, slot int, rows []barrier.Row) (json.RawMessage, error) {
	var out moved
	ids, err := s.accountsOf(ctx, tx, slot)
	if err != nil {
		return nil, err
	}
	for _, id := range ids {
		a, err := s.counters(ctx, tx, id)
		if err != nil {
			return nil, err
		}
		out.Accounts = append(out.Accounts, a)
	}
	if out.AtRisk, err = s.exposuresOf(ctx, tx, slot); err != nil {
		return nil, err
	}
	// The holds go with the slot: what is left here is a copy, which has none.
	seen := map[string]bool{}
	for _, r := range rows {
		id := HoldID(r.Gid, r.BranchID)
		if seen[id] || (r.Op != barrier.OpTry && r.Op != barrier.OpConfirm) {
			continue
		}
		seen[id] = true
		t, state, err := s.transfer(ctx, tx, id)
		switch {
		case errors.Is(err, sql.ErrNoRows): // a tombstone, or another participant's branch behind the same barrier
		case err != nil:
			return nil, err
		case state == "pending":
			out.Holds = append(out.Holds, t)
			if err := s.letGo(ctx, tx, t); err != nil {
				return nil, err
			}
		case state == "posted":
			out.Posted = append(out.Posted, t)
		}
	}
	return json.Marshal(out)
}

// letGo removes an open hold as if it had never been: it is held elsewhere from now on.
func (s Slots) letGo(ctx context.Context, tx *sql.Tx, t Transfer) error {
	rows, err := tx.QueryContext(ctx, s.q("SELECT debit, debit_shard, credit, credit_shard, amount FROM {p}transfer WHERE id = ? ORDER BY leg"), t.ID)
	if err != nil {
		return err
	}
	b := &planner{p: &plan{}}
	total := int64(0)
	for rows.Next() {
		var g planLeg
		if err := rows.Scan(&g.debit, &g.debitShard, &g.credit, &g.creditShard, &g.amount); err != nil {
			rows.Close()
			return err
		}
		b.move(g.debit, g.debitShard, "", "", g.amount, 0)
		b.move(g.credit, g.creditShard, "", "", 0, g.amount)
		total += g.amount
	}
	if err := errors.Join(rows.Close(), rows.Err()); err != nil {
		return err
	}
	slices.SortFunc(b.p.moves, compareMoves)
	for _, m := range b.p.moves {
		if ok, err := changed(ctx, tx, s.generic.settleMove, m.debit, m.credit, 0, 0, m.account, m.shard); err != nil || !ok {
			return errors.Join(err, fmt.Errorf("account %s shard %d of hold %s", m.account, m.shard, t.ID))
		}
	}
	if t.RefundOf != "" {
		if _, err := tx.ExecContext(ctx, s.q("UPDATE {p}transfer SET refunded = refunded - ? WHERE id = ? AND leg = 0"), total, t.RefundOf); err != nil {
			return err
		}
	}
	_, err = tx.ExecContext(ctx, s.q("DELETE FROM {p}transfer WHERE id = ? AND state = 'pending'"), t.ID)
	return err
}

// accountsOf lists the accounts of a slot that move.
func (s Slots) accountsOf(ctx context.Context, q Querier, slot int) ([]string, error) {
	rows, err := q.QueryContext(ctx, s.q("SELECT id FROM {p}account WHERE shard = 0 AND overdraft = 'none' AND mode <> 'clearing' ORDER BY id"))
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var out []string
	for rows.Next() {
		var id string
		if err := rows.Scan(&id); err != nil {
			return nil, err
		}
		if barrier.SlotOf(id) == slot {
			out = append(out, id)
		}
	}
	return out, rows.Err()
}

func (s Slots) counters(ctx context.Context, q Querier, id string) (movedAccount, error) {
	var a movedAccount
	var err error
	if a.Account, err = s.definition(ctx, q, id); err != nil {
		return a, err
	}
	b, err := s.Balance(ctx, q, id)
	if err != nil {
		return a, err
	}
	a.DebitsPending, a.DebitsPosted = b.DebitsPending, b.DebitsPosted+b.BufferedDebits
	a.CreditsPending, a.CreditsPosted = b.CreditsPending, b.CreditsPosted+b.BufferedCredits
	return a, nil
}

// transfer reads a transfer back as it was asked for.
func (l *Ledger) transfer(ctx context.Context, q Querier, id string) (Transfer, string, error) {
	t := Transfer{ID: id}
	rows, err := q.QueryContext(ctx, l.q("SELECT state, gid, branch, of_id, debit, credit, amount, currency FROM {p}transfer WHERE id = ? ORDER BY leg"), id)
	if err != nil {
		return t, "", err
	}
	defer rows.Close()
	state := ""
	for rows.Next() {
		var g Leg
		if err := rows.Scan(&state, &t.Gid, &t.Branch, &t.RefundOf, &g.Debit, &g.Credit, &g.Minor, &g.Currency); err != nil {
			return t, "", err
		}
		if g.Minor > 0 {
			t.Legs = append(t.Legs, g)
		}
	}
	if err := rows.Err(); err != nil {
		return t, "", err
	}
	if state == "" {
		return t, "", sql.ErrNoRows
	}
	return t, state, nil
}

// Differs is the error of an adoption whose accounts do not come out as they were released: somebody has changed one of the
// two databases behind the ledger's back. Nothing was adopted.
type Differs struct {
	Account    string
	Want, Have [4]int64 // debits pending and posted, credits pending and posted
}

func (e *Differs) Error() string {
	return fmt.Sprintf("account %s: released with debits %d+%d, credits %d+%d (pending+posted), and here it comes to %d+%d and %d+%d: drift; next: lockstep drift run",
		e.Account, e.Want[0], e.Want[1], e.Want[2], e.Want[3], e.Have[0], e.Have[1], e.Have[2], e.Have[3])
}

// Give is branch.Movable's: effects that have not happened here are posted, credits of the slot's accounts first, holds are
// held unless they were confirmed after the release, and then every account must be as it was released.
func (s Slots) Give(ctx context.Context, tx *sql.Tx, slot int, data json.RawMessage, _, fresh []barrier.Row) error {
	var in moved
	if err := json.Unmarshal(data, &in); err != nil {
		return fmt.Errorf("%w: what was released of slot %d: %w", barrier.ErrInvalid, slot, err)
	}
	isFresh := map[string]bool{}
	for _, r := range fresh {
		if r.Op == barrier.OpConfirm {
			isFresh[HoldID(r.Gid, r.BranchID)] = true
		}
	}
	if err := s.openAll(ctx, tx, in.Accounts); err != nil {
		return err
	}
	debits := func(t Transfer) int {
		if len(t.Legs) > 0 && barrier.SlotOf(t.Legs[0].Debit) == slot {
			return 1
		}
		return 0
	}
	slices.SortStableFunc(in.Posted, func(a, b Transfer) int { return cmp.Compare(debits(a), debits(b)) })
	for _, t := range in.Posted {
		if isFresh[t.ID] {
			if err := s.Effect(ctx, tx, t); err != nil {
				return err
			}
		}
	}
	for _, t := range in.Holds {
		state, _, _, err := s.TransferState(ctx, tx, t.ID)
		if err != nil && !errors.Is(err, sql.ErrNoRows) {
			return err
		}
		if state == "posted" {
			in.confirmed(t)
		}
		if err := s.HoldCopy(ctx, tx, t); err != nil {
			return err
		}
	}
	if err := s.expose(ctx, tx, in.AtRisk); err != nil {
		return err
	}
	return s.asReleased(ctx, tx, in.Accounts)
}

// confirmed says that a hold which was released open has been posted here since: after a forced seal apply
// comes in confirm's place, and no home is asked for it.
func (m *moved) confirmed(t Transfer) {
	for i := range m.Accounts {
		a := &m.Accounts[i]
		for _, leg := range t.Legs {
			if leg.Debit == a.ID {
				a.DebitsPending, a.DebitsPosted = a.DebitsPending-leg.Minor, a.DebitsPosted+leg.Minor
			}
			if leg.Credit == a.ID {
				a.CreditsPending, a.CreditsPosted = a.CreditsPending-leg.Minor, a.CreditsPosted+leg.Minor
			}
		}
	}
}

// openAll makes the accounts that are not here, and takes over their states.
func (s Slots) openAll(ctx context.Context, tx *sql.Tx, accounts []movedAccount) error {
	for _, a := range accounts {
		if err := s.insertAccount(ctx, tx, a.Account); err != nil {
			return err
		}
		if _, err := tx.ExecContext(ctx, s.q("UPDATE {p}account SET state = ? WHERE id = ? AND state <> ?"), a.State, a.ID, a.State); err != nil {
			return err
		}
	}
	return nil
}

func (s Slots) asReleased(ctx context.Context, tx *sql.Tx, accounts []movedAccount) error {
	for _, want := range accounts {
		have, err := s.counters(ctx, tx, want.ID)
		if err != nil {
			return err
		}
		w := [4]int64{want.DebitsPending, want.DebitsPosted, want.CreditsPending, want.CreditsPosted}
		h := [4]int64{have.DebitsPending, have.DebitsPosted, have.CreditsPending, have.CreditsPosted}
		if w != h {
			return &Differs{Account: want.ID, Want: w, Have: h}
		}
	}
	return nil
}
