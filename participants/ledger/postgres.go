package ledger

import (
	"context"
	"database/sql"
)

// postgres does each of enter, settle and fold in one statement, the first two by functions that the migration makes.
type postgres struct{ enterSQL, settleSQL, foldSQL string }

func newPostgres(n names) postgres {
	return postgres{
		enterSQL:  n.text("SELECT {p}enter($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20, $21, $22, $23, $24, $25)"),
		settleSQL: n.text("SELECT {p}settle($1, $2, $3, $4, $5)"),
		foldSQL:   n.text("SELECT {p}fold($1, $2)"),
	}
}

func (w postgres) enter(ctx context.Context, tx *sql.Tx, p *plan) (answer, int, error) {
	n := len(p.legs)
	leg, debit, dshard := make([]int32, n), make([]string, n), make([]int32, n)
	credit, cshard, amount, currency := make([]string, n), make([]int32, n), make([]int64, n), make([]string, n)
	for i, g := range p.legs {
		leg[i], debit[i], dshard[i], credit[i], cshard[i] = int32(p.first+i), g.debit, int32(g.debitShard), g.credit, int32(g.creditShard)
		amount[i], currency[i] = g.amount, g.currency
	}
	gates, gateModes := make([]string, len(p.gates)), make([]string, len(p.gates))
	for i, g := range p.gates {
		gates[i], gateModes[i] = g.account, string(g.mode)
	}
	m := len(p.moves)
	accounts, shards, modes := make([]string, m), make([]int32, m), make([]string, m)
	currencies, debits, credits := make([]string, m), make([]int64, m), make([]int64, m)
	for i, v := range p.moves {
		accounts[i], shards[i], modes[i], currencies[i], debits[i], credits[i] = v.account, int32(v.shard), string(v.mode), v.currency, v.debit, v.credit
	}
	var code int
	err := tx.QueryRowContext(ctx, w.enterSQL, p.id, p.kind, p.post, p.gid, p.branch, p.digest, p.of, p.total, p.us, p.day,
		leg, debit, dshard, credit, cshard, amount, currency, gates, gateModes, accounts, shards, modes, currencies, debits, credits).Scan(&code)
	switch {
	case err != nil || code < 1000:
		return answer(code), 0, err
	case code < 2000:
		return gateRefused, code - 1000, nil
	}
	return moveRefused, code - 2000, nil
}

func (w postgres) settle(ctx context.Context, tx *sql.Tx, s settlement) (done bool, err error) {
	err = tx.QueryRowContext(ctx, w.settleSQL, s.id, s.digest, s.post, s.us, s.day).Scan(&done)
	return done, err
}

func (w postgres) fold(ctx context.Context, tx *sql.Tx, account string) (bool, error) {
	var n int
	err := tx.QueryRowContext(ctx, w.foldSQL, account, foldMax).Scan(&n)
	return n > 0, err
}
