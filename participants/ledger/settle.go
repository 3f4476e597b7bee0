package ledger

import (
	"context"
	"database/sql"
	"errors"
	"fmt"

	"github.com/lockstep-tx/lockstep/participants/barrier"
)

// settlement ends a hold.
type settlement struct {
	id, digest string // digest "" compares nothing
	post       bool
	us         int64
	day        int
}

// header is leg 0 of a transfer.
type header struct {
	legs              int
	kind, state       string
	digest, of        string
	currency          string
	total, refunded   int64
	gid, branch       string
	debit, credit     string
	debitShard        int
	creditShard       int
	amount, createdUS int64
}

func (l *Ledger) header(ctx context.Context, db Querier, id, lock string) (h header, err error) {
	err = db.QueryRowContext(ctx, l.q(`SELECT legs, kind, state, digest, of_id, currency, total, refunded, gid, branch, debit, credit, debit_shard, credit_shard, amount, created_us
		FROM {p}transfer WHERE id = ? AND leg = 0`+lock), id).
		Scan(&h.legs, &h.kind, &h.state, &h.digest, &h.of, &h.currency, &h.total, &h.refunded, &h.gid, &h.branch, &h.debit, &h.credit, &h.debitShard, &h.creditShard, &h.amount, &h.createdUS)
	return h, err
}

// existing says what a call finds under its id: nil if it is the same thing, done before.
func (l *Ledger) existing(ctx context.Context, tx *sql.Tx, id, digest string) (header, bool, error) {
	h, err := l.header(ctx, tx, id, "{share}")
	switch {
	case errors.Is(err, sql.ErrNoRows):
		return h, false, nil
	case err != nil:
		return h, false, err
	case h.kind == kindTombstone:
		return h, true, &Refusal{Reason: Reversed, Field: "id", Detail: fmt.Sprintf("%s was reversed before it came", id)}
	case h.digest != digest:
		return h, true, &MismatchError{ID: id, Kind: h.kind, State: h.state}
	case h.state == "voided":
		return h, true, &Refusal{Reason: Voided, Field: "id", Detail: fmt.Sprintf("%s was voided", id)}
	}
	return h, true, nil
}

func (l *Ledger) settle(ctx context.Context, tx *sql.Tx, t Transfer, post bool) error {
	t, err := t.normal()
	if err != nil {
		return err
	}
	s := settlement{id: t.ID, post: post}
	if len(t.Legs) > 0 {
		s.digest = t.digest(kindHold)
	}
	s.us, s.day = l.time()
	done, err := l.writer.settle(ctx, tx, s)
	if err != nil {
		return fmt.Errorf("ledger: settle %s: %w", t.ID, err)
	}
	if done && !post {
		return l.giveBack(ctx, tx, t)
	}
	if done {
		return nil
	}
	want, op := "voided", "void"
	if post {
		want, op = "posted", "post"
	}
	h, err := l.header(ctx, tx, t.ID, "{share}")
	switch {
	case errors.Is(err, sql.ErrNoRows):
		return fmt.Errorf("%w: %s to %s", ErrNoHold, t.ID, op)
	case err != nil:
		return fmt.Errorf("ledger: settle %s: %w", t.ID, err)
	case h.kind != kindHold || (s.digest != "" && h.digest != s.digest):
		return &MismatchError{ID: t.ID, Kind: h.kind, State: h.state}
	case h.state == want:
		return nil
	case h.state == "pending":
		return fmt.Errorf("ledger: settle %s: it did not match and would now; call again", t.ID)
	}
	return fmt.Errorf("%w: %s of hold %s, which is %s", barrier.ErrContradiction, op, t.ID, h.state)
}

// whyNoRefund says why a payment does not take a refund.
func (l *Ledger) whyNoRefund(ctx context.Context, tx *sql.Tx, of, currency string, minor int64) error {
	h, err := l.header(ctx, tx, of, "{share}")
	no := func(r Reason, format string, args ...any) error {
		return &Refusal{Reason: r, Field: "refund_of", Detail: fmt.Sprintf("payment %s: ", of) + fmt.Sprintf(format, args...)}
	}
	switch {
	case errors.Is(err, sql.ErrNoRows):
		return no(NoPayment, "there is none")
	case err != nil:
		return err
	case h.kind == kindTombstone:
		return no(Reversed, "it is reversed")
	case h.kind != kindHold && h.kind != kindTransfer || h.of != "":
		return no(NoPayment, "a %s has no refunds", h.kind)
	case h.state == "voided":
		return no(NoPayment, "it is %s", h.state)
	case h.currency != currency:
		return no(NoPayment, "it is in %s, not %s", h.currency, currency)
	case h.state == "pending" && minor <= h.total: // it may be decided, and its post on the way
		return fmt.Errorf("%w: payment %s is not posted yet", barrier.ErrOngoing, of)
	}
	return no(RefundExceeds, "%d of %d are refunded or reversed, %d more are asked for", h.refunded, h.total, minor)
}

// Reverse undoes the transfer or posted hold of (冲正) at once, as entries of its own under id; gid and branch stand in
// them and may be empty. It writes id first, and, where the original is not there, a tombstone under the original's id: an
// original that comes late is refused with Reversed. A hold that is not decided yet is barrier.ErrOngoing; one that was
// voided leaves nothing to do. A *Refusal if the original has refunds, or if its accounts cannot give the money back.
// Idempotent by id as Hold; what is reversed once is not reversed again under another id.
func (l *Ledger) Reverse(ctx context.Context, tx *sql.Tx, id, of, gid, branch string) error {
	t, err := Transfer{ID: id, Gid: gid, Branch: branch, RefundOf: of}.normal()
	if err == nil {
		err = t.callers()
	}
	if err == nil && (of == "" || of == t.ID) {
		err = fmt.Errorf("%w: reversal %q of %q", barrier.ErrInvalid, t.ID, of)
	}
	if err != nil {
		return err
	}
	digest := t.digest(kindReversal)
	us, _ := l.time()
	mark := func(id, kind, state, digest, of string) (bool, error) {
		stmt := `INSERT INTO {p}transfer (id, leg, legs, kind, state, digest, gid, branch, of_id, debit, debit_shard, credit, credit_shard, amount, currency, total, created_us, settled_us)
			VALUES (?, 0, 1, ?, ?, ?, ?, ?, ?, '', -2, '', -2, 0, '', 0, ?, ?)`
		if l.dialect == barrier.MySQL {
			stmt += " ON DUPLICATE KEY UPDATE id = id"
		} else {
			stmt += " ON CONFLICT (id, leg) DO NOTHING"
		}
		r, err := tx.ExecContext(ctx, l.q(stmt), id, kind, state, digest, gid, branch, of, us, us)
		if err != nil {
			return false, fmt.Errorf("ledger: reverse %s: %w", of, err)
		}
		n, err := r.RowsAffected()
		return n > 0, err
	}
	fresh, err := mark(t.ID, kindReversal, "posted", digest, of)
	if err != nil {
		return err
	}
	if !fresh {
		_, _, err := l.existing(ctx, tx, t.ID, digest)
		return err
	}
	if late, err := mark(of, kindTombstone, "voided", "", t.ID); err != nil || late {
		return err
	}
	return l.reverse(ctx, tx, t, digest)
}

// reverse writes the reversal's entries. Its id and the original are there.
func (l *Ledger) reverse(ctx context.Context, tx *sql.Tx, t Transfer, digest string) error {
	// Taking the whole of what may be refunded keeps refunds and other reversals away, from here on.
	r, err := tx.ExecContext(ctx, l.q(`UPDATE {p}transfer SET refunded = total WHERE id = ? AND leg = 0 AND kind IN ('hold', 'transfer') AND of_id = ''
		AND state = 'posted' AND refunded = 0 AND total > 0`), t.RefundOf)
	if err != nil {
		return fmt.Errorf("ledger: reverse %s: %w", t.RefundOf, err)
	}
	n, err := r.RowsAffected()
	if err != nil {
		return err
	}
	h, err := l.header(ctx, tx, t.RefundOf, "{exclusive}")
	if err != nil {
		return fmt.Errorf("ledger: reverse %s: %w", t.RefundOf, err)
	}
	no := func(reason Reason, detail string) error {
		return &Refusal{Reason: reason, Field: "of", Detail: fmt.Sprintf("%s %s: %s", h.kind, t.RefundOf, detail)}
	}
	switch {
	case n == 1:
	case h.state == "pending":
		return fmt.Errorf("%w: hold %s is not decided yet", barrier.ErrOngoing, t.RefundOf)
	case h.kind == kindTombstone:
		return no(Reversed, "another reversal has been here")
	case h.state == "voided":
		return nil
	case h.kind != kindHold && h.kind != kindTransfer || h.of != "" || h.total == 0:
		return no(NoPayment, "refunds, reversals and transfers in several currencies are not reversed")
	default:
		return no(Refunded, fmt.Sprintf("%d of %d are refunded or reversed", h.refunded, h.total))
	}
	legs, err := l.legsOf(ctx, tx, t.RefundOf)
	if err != nil {
		return err
	}
	for _, g := range legs {
		t.Legs = append(t.Legs, Leg{Debit: g.Credit, Credit: g.Debit, Minor: g.Minor, Currency: g.Currency})
	}
	p, err := l.plan(ctx, tx, t, kindReversal, true)
	if err == nil {
		err = l.allowed(ctx, tx, t)
	}
	if err != nil {
		return err
	}
	p.first, p.digest, p.total = 1, digest, 0
	return l.write(ctx, tx, p)
}
