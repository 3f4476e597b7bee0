package ledger

import (
	"context"
	"database/sql"
	"fmt"

	"github.com/lockstep-tx/lockstep/participants/barrier"
)

// Audit recounts the whole book in one snapshot and says in words what does not agree; nil if not a cent is off. It reads
// every entry.
func (l *Ledger) Audit(ctx context.Context, db *sql.DB) ([]string, error) {
	var o *sql.TxOptions
	if l.dialect != barrier.SQLite {
		o = &sql.TxOptions{Isolation: sql.LevelRepeatableRead}
	}
	tx, err := db.BeginTx(ctx, o)
	if err != nil {
		return nil, err
	}
	defer func() { _ = tx.Rollback() }()
	var faults []string
	for _, a := range audits {
		found, err := l.list(ctx, tx, a.query)
		if err != nil {
			return nil, fmt.Errorf("ledger: audit: %s: %w", a.law, err)
		}
		for _, f := range found {
			faults = append(faults, a.law+": "+f)
		}
	}
	return faults, nil
}

// audits give a row for each thing that is wrong.
var audits = []struct{ law, query string }{
	{"entries of a transfer and currency sum to zero", `SELECT concat(transfer_id, ' ', currency) FROM {p}entry GROUP BY transfer_id, currency
		HAVING sum(CASE WHEN direction = 'credit' THEN amount ELSE -amount END) <> 0`},
	{"an entry is in its account's currency", `SELECT concat(e.transfer_id, ' ', e.account) FROM {p}entry e LEFT JOIN {p}account a ON a.id = e.account AND a.shard = 0
		WHERE a.id IS NULL OR a.currency <> e.currency`},
	{"counters and buffer are the fold of the entries", `SELECT concat(f.account, ' debits ', sum(f.d), ' too many, credits ', sum(f.c)) FROM (
		SELECT id AS account, debits_posted AS d, credits_posted AS c FROM {p}account
		UNION ALL SELECT account, debit, credit FROM {p}buffer
		UNION ALL SELECT account, CASE WHEN direction = 'debit' THEN -amount ELSE 0 END, CASE WHEN direction = 'credit' THEN -amount ELSE 0 END FROM {p}entry
		) f GROUP BY f.account HAVING sum(f.d) <> 0 OR sum(f.c) <> 0`},
	{"pending counters are the open holds", `SELECT concat(f.account, ' shard ', f.shard, ' debits ', sum(f.d), ' too many, credits ', sum(f.c)) FROM (
		SELECT id AS account, shard, debits_pending AS d, credits_pending AS c FROM {p}account
		UNION ALL SELECT debit, debit_shard, -amount, 0 FROM {p}transfer WHERE state = 'pending' AND debit_shard >= 0
		UNION ALL SELECT credit, credit_shard, 0, -amount FROM {p}transfer WHERE state = 'pending' AND credit_shard >= 0
		) f GROUP BY f.account, f.shard HAVING sum(f.d) <> 0 OR sum(f.c) <> 0`},
	{"a posted leg has two entries, another none", `SELECT concat(t.id, ' leg ', t.leg, ' ', t.state) FROM {p}transfer t
		LEFT JOIN {p}entry e ON e.transfer_id = t.id AND e.leg = t.leg AND e.amount = t.amount
			AND ((e.direction = 'debit' AND e.account = t.debit) OR (e.direction = 'credit' AND e.account = t.credit))
		GROUP BY t.id, t.leg, t.state, t.amount HAVING count(e.account) <> CASE WHEN t.state = 'posted' AND t.amount > 0 THEN 2 ELSE 0 END`},
	{"what is refunded is the sum of the refunds and reversals", `SELECT concat(p.id, ' has ', p.refunded) FROM {p}transfer p LEFT JOIN (
		SELECT of_id, sum(CASE WHEN kind = 'reversal' THEN amount ELSE total END) AS back FROM {p}transfer
			WHERE of_id <> '' AND state <> 'voided' AND (leg = 0 OR kind = 'reversal') GROUP BY of_id
		) r ON r.of_id = p.id WHERE p.leg = 0 AND p.kind IN ('hold', 'transfer') AND p.refunded <> coalesce(r.back, 0)`},
	{"no account is overdrawn", `SELECT concat(id, ' shard ', shard) FROM {p}account WHERE overdraft = 'none' AND debits_posted + debits_pending > credits_posted`},
}
