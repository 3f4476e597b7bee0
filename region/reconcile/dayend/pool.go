package dayend

import (
	"context"
	"database/sql"
	"slices"
	"strings"

	"github.com/lockstep-tx/lockstep/region/reconcile/channelfile"
)

// pool reads what waits in the suspense pool, by side, in the order of keys.
func (b *Book) pool(ctx context.Context, at of, most int) (map[string][]*pooled, error) {
	rows, err := b.DB.QueryContext(ctx, b.Dialect.Q(`SELECT id, pool_key, side, ahead, amount, currency, state, at_ms, line_no, line_offset, part, day FROM recon_pool
		WHERE channel = ? AND kind = ? AND left_day = '' LIMIT ?`), at.channel, string(at.kind), most+1)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	out := map[string][]*pooled{}
	n := 0
	for ; rows.Next(); n++ {
		p := &pooled{}
		if err := rows.Scan(&p.id, &p.Key, &p.side, &p.ahead, &p.Amount, &p.Currency, &p.State, &p.AtMS, &p.Line, &p.Offset, &p.Part, &p.day); err != nil {
			return nil, err
		}
		out[p.side] = append(out[p.side], p)
	}
	if n > most {
		return nil, &TooManyError{most}
	}
	for _, side := range out {
		slices.SortFunc(side, func(x, y *pooled) int { return strings.Compare(x.Key, y.Key) })
	}
	return out, rows.Err()
}

// straddled is by how much a day's sums must differ, by their keys, because of orders whose two sides fall on different days:
// what went into the suspense pool of the business reconciliation on that day, less what left it. What no merchant can be said
// of explains nothing in sums by merchant.
func (b *Book) straddled(ctx context.Context, at of, ours Ours) (map[string]int64, error) {
	by, _ := ours.(ByMerchant)
	rows, err := b.DB.QueryContext(ctx, b.Dialect.Q(`SELECT pool_key, currency,
			(CASE WHEN side = 'ours' THEN amount ELSE -amount END) * (CASE WHEN pool_key LIKE '%/%' THEN -1 ELSE 1 END)
			* ((CASE WHEN day = ? THEN 1 ELSE 0 END) - (CASE WHEN left_day = ? THEN 1 ELSE 0 END))
		FROM recon_pool WHERE channel = ? AND kind = ? AND (day = ? OR left_day = ?)`), at.day, at.day, at.channel, string(channelfile.Business), at.day, at.day)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	type sum struct {
		key, currency string
		n             int64
	}
	var all []sum
	for rows.Next() {
		var x sum
		if err := rows.Scan(&x.key, &x.currency, &x.n); err != nil {
			return nil, err
		}
		all = append(all, x)
	}
	if err := rows.Err(); err != nil {
		return nil, err
	}
	out := map[string]int64{}
	for _, x := range all {
		merchant := ""
		if by != nil {
			if merchant, err = by.MerchantOf(ctx, x.key); err != nil {
				return nil, err
			}
		}
		out[SumKey(x.currency, merchant)] += x.n
	}
	return out, nil
}

// reversedKeys are the keys that were reversed of a channel's kind.
func (b *Book) reversedKeys(ctx context.Context, at of) (map[string]bool, error) {
	list, err := b.findings(ctx, "channel = ? AND kind = ? AND id IN (SELECT finding FROM recon_reversal WHERE state = 'done' AND outcome NOT LIKE ?)",
		at.channel, string(at.kind), notReversed+"%")
	out := map[string]bool{}
	for i := range list {
		out[list[i].Key] = true
	}
	return out, err
}

// suspend puts a row into the suspense pool.
func (b *Book) suspend(ctx context.Context, tx *sql.Tx, at of, p *pooled) error {
	ahead := 0
	if p.ahead {
		ahead = 1
	}
	_, err := b.inserted(ctx, tx, `INTO recon_pool (channel, kind, id, pool_key, side, ahead, amount, currency, state, at_ms, line_no, line_offset, part, day, left_day)
		VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, '')`, at.channel, string(at.kind), p.id, p.Key, p.side, ahead, p.Amount, p.Currency, int(p.State), p.AtMS, p.Line, p.Offset, p.Part, at.day)
	return err
}
