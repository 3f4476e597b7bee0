package ledger

import (
	"context"
	"fmt"
	"time"
)

// Sum is what an account's entries of a period come to in a currency: credits less debits, in minor units.
type Sum struct {
	Currency string
	Entries  int64
	Net      int64
}

// Sums adds an account's entries posted in [from, to), by currency.
func (l *Ledger) Sums(ctx context.Context, db Querier, account string, from, to time.Time) ([]Sum, error) {
	rows, err := db.QueryContext(ctx, l.q(`SELECT currency, count(*), CAST(sum(CASE WHEN direction = 'credit' THEN amount ELSE -amount END) AS decimal(30)) FROM {p}entry
		WHERE account = ? AND posted_us >= ? AND posted_us < ? GROUP BY currency ORDER BY currency`), account, from.UnixMicro(), to.UnixMicro())
	if err != nil {
		return nil, fmt.Errorf("ledger: sums of %s: %w", account, err)
	}
	defer rows.Close()
	var out []Sum
	for rows.Next() {
		var s Sum
		if err := rows.Scan(&s.Currency, &s.Entries, &s.Net); err != nil {
			return nil, fmt.Errorf("ledger: sums of %s: %w", account, err)
		}
		out = append(out, s)
	}
	return out, rows.Err()
}

// GidOf is the global transaction that a transfer was a branch of, "" for none; sql.ErrNoRows, wrapped, if there is no such
// transfer.
func (l *Ledger) GidOf(ctx context.Context, db Querier, transfer string) (string, error) {
	h, err := l.header(ctx, db, transfer, "")
	if err != nil {
		return "", fmt.Errorf("ledger: transfer %s: %w", transfer, err)
	}
	return h.gid, nil
}
