package ledger

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/lockstep-tx/lockstep/participants/barrier"
)

// Balance is an account at one instant; amounts in minor units, none negative. Posted counters and what is buffered
// together are the fold of its entries; pending is what open holds hold.
type Balance struct {
	Account
	DebitsPending  int64 `json:"debits_pending"`
	DebitsPosted   int64 `json:"debits_posted"`
	CreditsPending int64 `json:"credits_pending"`
	CreditsPosted  int64 `json:"credits_posted"`
	// BufferedDebits and BufferedCredits are accepted and durable, and not in the counters yet: they wait for the Poster or,
	// in the clearing account, for the day cut.
	BufferedDebits  int64 `json:"buffered_debits"`
	BufferedCredits int64 `json:"buffered_credits"`
}

// Posted is the balance that the counters show.
func (b Balance) Posted() int64 { return b.CreditsPosted - b.DebitsPosted }

// Total is the balance with what is buffered.
func (b Balance) Total() int64 { return b.Posted() + b.BufferedCredits - b.BufferedDebits }

// Available is what a debit may take: of an Aggregated account what is posted, of others the total, less what is held.
func (b Balance) Available() int64 {
	if b.Mode == Aggregated {
		return b.Posted() - b.DebitsPending
	}
	return b.Total() - b.DebitsPending
}

// Balance reads an account in one statement. sql.ErrNoRows, wrapped, if there is none.
func (l *Ledger) Balance(ctx context.Context, db Querier, id string) (Balance, error) {
	hotDebit, hotCredit := "debit_shard = -1 AND state = 'pending' AND debit", "credit_shard = -1 AND state = 'pending' AND credit"
	if l.dialect == barrier.MySQL {
		hotDebit, hotCredit = "hot_debit", "hot_credit"
	}
	aside := id + clearingSuffix
	b := Balance{Account: Account{ID: id}}
	var overdraft string
	var heldDebits, heldCredits int64
	var globalOnly int
	err := db.QueryRowContext(ctx, l.q(`SELECT d.currency, d.mode, d.shards, d.overdraft, coalesce(d.max_credit, 0), coalesce(d.max_debit, 0), d.state, d.global_only,
		c.dp, c.dq, c.cp, c.cq, h.d, h.c, coalesce(u.d, 0), coalesce(u.c, 0)
		FROM {p}account d
		CROSS JOIN (SELECT coalesce(sum(debits_pending), 0) AS dp, coalesce(sum(debits_posted), 0) AS dq, coalesce(sum(credits_pending), 0) AS cp, coalesce(sum(credits_posted), 0) AS cq
			FROM {p}account WHERE id = ?) c
		CROSS JOIN (SELECT (SELECT coalesce(sum(amount), 0) FROM {p}transfer WHERE `+hotDebit+` IN (?, ?)) AS d,
			(SELECT coalesce(sum(amount), 0) FROM {p}transfer WHERE `+hotCredit+` IN (?, ?)) AS c) h
		CROSS JOIN (SELECT sum(debit) AS d, sum(credit) AS c FROM {p}buffer WHERE account IN (?, ?)) u
		WHERE d.id = ? AND d.shard = 0`), id, id, aside, id, aside, id, aside, id).
		Scan(&b.Currency, &b.Mode, &b.Shards, &overdraft, &b.MaxCredit, &b.MaxDebit, &b.State, &globalOnly, &b.DebitsPending, &b.DebitsPosted, &b.CreditsPending, &b.CreditsPosted,
			&heldDebits, &heldCredits, &b.BufferedDebits, &b.BufferedCredits)
	if err != nil {
		return b, fmt.Errorf("ledger: balance of %s: %w", id, err)
	}
	b.Overdraft, b.GlobalOnly = overdraft == "any", globalOnly != 0
	b.DebitsPending += heldDebits
	b.CreditsPending += heldCredits
	return b, nil
}

// Entry is one side of one leg. Entries never change.
type Entry struct {
	Transfer  string    `json:"transfer"`
	Leg       int       `json:"leg"`
	Direction string    `json:"direction"` // debit or credit
	Account   string    `json:"account"`
	Minor     int64     `json:"amount"`
	Currency  string    `json:"currency"`
	Gid       string    `json:"gid,omitempty"`
	Branch    string    `json:"branch,omitempty"`
	PostedAt  time.Time `json:"posted_at"` // by the participant's clock, in microseconds; it orders nothing but statements
	// BalanceAfter is the account's posted balance after the whole transfer; nil where nothing serialises the account's
	// entries: all modes but Direct and Serial.
	BalanceAfter *int64 `json:"balance_after,omitempty"`
}

// Cursor is where a page of a statement ended; the zero Cursor is its beginning.
type Cursor struct {
	us        int64
	transfer  string
	leg       int
	direction string
}

// StatementMax bounds a page.
const StatementMax = 1000

// Statement lists an account's entries posted in [from, to), the oldest first, at most limit (1 to StatementMax) of them,
// and where to go on; the zero Cursor says that there are no more. The details behind an Aggregated account's daily entries
// are the statement of Clearing(id).
func (l *Ledger) Statement(ctx context.Context, db Querier, id string, from, to time.Time, after Cursor, limit int) ([]Entry, Cursor, error) {
	limit = min(max(limit, 1), StatementMax)
	start := max(from.UnixMicro(), after.us)
	out, err := l.entries(ctx, db, `WHERE account = ? AND posted_us >= ? AND posted_us < ?
		AND (posted_us > ? OR transfer_id > ? OR (transfer_id = ? AND (leg > ? OR (leg = ? AND direction > ?))))
		ORDER BY posted_us, transfer_id, leg, direction LIMIT ?`,
		id, start, to.UnixMicro(), after.us, after.transfer, after.transfer, after.leg, after.leg, after.direction, limit)
	if err != nil || len(out) < limit {
		return out, Cursor{}, err
	}
	e := out[len(out)-1]
	return out, Cursor{e.PostedAt.UnixMicro(), e.Transfer, e.Leg, e.Direction}, nil
}

// Clearing names the account where the credits of an Aggregated account wait for the day cut.
func Clearing(id string) string { return id + clearingSuffix }

// EntriesByGid lists all entries of a global transaction in this ledger, by transfer and leg.
func (l *Ledger) EntriesByGid(ctx context.Context, db Querier, gid string) ([]Entry, error) {
	// A hold's id begins with its gid (HoldID), unless it is the caller's own; ';' follows ':'. Holds with ids of their own
	// and other transfers have an index each by gid.
	rest := "gid = ? AND gid <> '' AND kind <> 'hold' UNION SELECT id FROM {p}transfer WHERE gid = ? AND gid <> '' AND kind = 'hold' AND id <> gid || ':' || branch"
	if l.dialect == barrier.MySQL { // where one index has them all
		rest = "gid = ? UNION SELECT id FROM {p}transfer WHERE gid = ?"
	}
	return l.entries(ctx, db, `WHERE gid = ? AND transfer_id IN (SELECT id FROM {p}transfer WHERE id >= ? AND id < ?
		UNION SELECT id FROM {p}transfer WHERE `+rest+`) ORDER BY transfer_id, leg, direction`, gid, gid+":", gid+";", gid, gid)
}

// EntriesOf lists the entries of one transfer.
func (l *Ledger) EntriesOf(ctx context.Context, db Querier, transfer string) ([]Entry, error) {
	return l.entries(ctx, db, "WHERE transfer_id = ? ORDER BY leg, direction", transfer)
}

func (l *Ledger) entries(ctx context.Context, db Querier, where string, args ...any) ([]Entry, error) {
	rows, err := db.QueryContext(ctx, l.q("SELECT transfer_id, leg, direction, account, amount, currency, gid, branch, posted_us, balance_after FROM {p}entry "+where), args...)
	if err != nil {
		return nil, fmt.Errorf("ledger: entries: %w", err)
	}
	defer rows.Close()
	var out []Entry
	for rows.Next() {
		var e Entry
		var us int64
		var balance sql.NullInt64
		if err := rows.Scan(&e.Transfer, &e.Leg, &e.Direction, &e.Account, &e.Minor, &e.Currency, &e.Gid, &e.Branch, &us, &balance); err != nil {
			return nil, fmt.Errorf("ledger: entries: %w", err)
		}
		e.PostedAt = time.UnixMicro(us).UTC()
		if balance.Valid {
			e.BalanceAfter = &balance.Int64
		}
		out = append(out, e)
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("ledger: entries: %w", err)
	}
	return out, nil
}

// BalanceAt is an account's balance, buffered included, after the entries posted before at: today's, less what came since.
// It reads as many entries as there are since then.
func (l *Ledger) BalanceAt(ctx context.Context, db Querier, id string, at time.Time) (int64, error) {
	aside := id + clearingSuffix
	var now, since int64
	err := db.QueryRowContext(ctx, l.q(`SELECT (SELECT coalesce(sum(credits_posted - debits_posted), 0) FROM {p}account WHERE id IN (?, ?))
		+ (SELECT coalesce(sum(credit - debit), 0) FROM {p}buffer WHERE account IN (?, ?)),
		(SELECT coalesce(sum(CASE WHEN direction = 'credit' THEN amount ELSE -amount END), 0) FROM {p}entry WHERE account IN (?, ?) AND posted_us >= ?)`),
		id, aside, id, aside, id, aside, at.UnixMicro()).Scan(&now, &since)
	if err != nil {
		return 0, fmt.Errorf("ledger: balance of %s at %s: %w", id, at, err)
	}
	return now - since, nil
}

// TransferState says what became of a transfer: "pending", "posted" or "voided", what it moves in all, and how much of it
// is refunded or held for refunds; sql.ErrNoRows, wrapped, if there is none.
func (l *Ledger) TransferState(ctx context.Context, db Querier, id string) (state string, total, refunded int64, err error) {
	h, err := l.header(ctx, db, id, "")
	if err != nil {
		return "", 0, 0, fmt.Errorf("ledger: transfer %s: %w", id, err)
	}
	return h.state, h.total, h.refunded, nil
}

// legsOf reads a transfer's legs as its caller named them, but for debits that shards gave together.
func (l *Ledger) legsOf(ctx context.Context, tx *sql.Tx, id string) ([]Leg, error) {
	rows, err := tx.QueryContext(ctx, l.q("SELECT debit, credit, amount, currency FROM {p}transfer WHERE id = ? AND amount > 0 ORDER BY leg"), id)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var out []Leg
	for rows.Next() {
		var g Leg
		if err := rows.Scan(&g.Debit, &g.Credit, &g.Minor, &g.Currency); err != nil {
			return nil, err
		}
		g.Debit, g.Credit = strings.TrimSuffix(g.Debit, clearingSuffix), strings.TrimSuffix(g.Credit, clearingSuffix)
		out = append(out, g)
	}
	return out, rows.Err()
}

// InTx runs f in a transaction, again where the database gave it up for a deadlock, a lock wait or a conflict, five times
// at most. Inside a branch function the kit does that.
func (l *Ledger) InTx(ctx context.Context, db *sql.DB, f func(tx *sql.Tx) error) error {
	return l.inTx(ctx, db, nil, f)
}

func (l *Ledger) inTx(ctx context.Context, db *sql.DB, o *sql.TxOptions, f func(tx *sql.Tx) error) error {
	once := func() error {
		tx, err := db.BeginTx(ctx, o)
		if err != nil {
			return err
		}
		defer func() { _ = tx.Rollback() }()
		if err := f(tx); err != nil {
			return err
		}
		return tx.Commit()
	}
	for attempt := 1; ; attempt++ {
		err := once()
		if err == nil || !retryable(err) || attempt == 5 {
			return err
		}
		select {
		case <-ctx.Done():
			return errors.Join(err, context.Cause(ctx))
		case <-time.After(time.Duration(attempt) * 5 * time.Millisecond):
		}
	}
}
