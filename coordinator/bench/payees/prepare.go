package payees

import (
	"context"
	"database/sql"
	"encoding/json"
	"fmt"
	"net/http"

	"github.com/lockstep-tx/lockstep/participants/barrier"
	"github.com/lockstep-tx/lockstep/participants/ledger"
	"github.com/lockstep-tx/lockstep/participants/sqldb"
)

// Plan says what a database is made with.
type Plan struct {
	Kind    string      // of the numbered accounts: "buyer" or "merchant"
	N       int         // how many
	Mode    ledger.Mode // of the numbered accounts; the zero Mode is the ledger's default
	Shards  int         // of the mode Split
	Deposit int64       // each one's first balance in minor units
	Entries int         // of old payments, made by a loader (PostgreSQL)
}

// Prepare makes the tables and accounts of a database that is empty.
func Prepare(ctx context.Context, rawURL string, plan Plan) error {
	db, dialect, err := sqldb.Open(ctx, rawURL)
	if err != nil {
		return err
	}
	defer db.Close()
	d := dialect.Dialect
	if err := barrier.MigrateSchema(ctx, db, d, schemaOf(rawURL)); err != nil {
		return err
	}
	if err := ledger.Migrate(ctx, db, d, ledger.Options{}); err != nil {
		return err
	}
	l, err := ledger.New(d, ledger.Options{})
	if err != nil {
		return err
	}
	for _, id := range []string{World, Clearing} {
		// Insert-only while payments run: all of them touch these.
		if err := l.OpenAccount(ctx, db, ledger.Account{ID: id, Currency: "CNY", Mode: ledger.Aggregated, Overdraft: true}); err != nil {
			return err
		}
	}
	for i := range plan.N {
		a := ledger.Account{ID: Account(plan.Kind, i), Currency: "CNY", Mode: plan.Mode, Shards: plan.Shards}
		if err := l.OpenAccount(ctx, db, a); err != nil {
			return err
		}
	}
	if err := fill(ctx, db, plan); err != nil {
		return fmt.Errorf("fill the ledger: %w", err)
	}
	if plan.Deposit == 0 {
		return nil
	}
	const perTx = 50
	for i := 0; i < plan.N; i += perTx {
		err := l.InTx(ctx, db, func(tx *sql.Tx) error {
			t := ledger.Transfer{ID: fmt.Sprintf("deposit-%d", i), Gid: fmt.Sprintf("deposit-%d", i), Branch: "01"}
			for j := i; j < min(i+perTx, plan.N); j++ {
				t.Legs = append(t.Legs, ledger.Leg{Debit: World, Credit: Account(plan.Kind, j), Minor: plan.Deposit})
			}
			return l.Transfer(ctx, tx, t)
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// fill writes entries of old payments that moved nothing on balance: each of the numbered accounts paid and was paid back.
// They stand where real ones would, with their transfers, gids and times of a year.
func fill(ctx context.Context, db *sql.DB, plan Plan) error {
	const perStmt = 100_000
	for from := 0; from < plan.Entries/2; from += perStmt {
		to := min(from+perStmt, plan.Entries/2) - 1
		for _, stmt := range []string{
			`INSERT INTO ledger_transfer (id, leg, legs, kind, state, digest, gid, branch, of_id, debit, debit_shard, credit, credit_shard, amount, currency, total, created_us, settled_us)
				SELECT 'ls1old' || lpad(i::text, 19, '0') || ':01', 0, 1, 'hold', 'posted', md5(i::text) || md5(i::text), 'ls1old' || lpad(i::text, 19, '0'), '01', '',
					$3 || '-' || lpad((i % $4)::text, 6, '0'), 0, $3 || '-' || lpad((i % $4)::text, 6, '0'), 0, 7, 'CNY', 7, 1700000000000000 + i * 3000000, 1700000000000000 + i * 3000000
				FROM generate_series($1::bigint, $2::bigint) AS i`,
			`INSERT INTO ledger_entry (transfer_id, leg, direction, account, amount, currency, gid, branch, posted_us, balance_after)
				SELECT 'ls1old' || lpad(i::text, 19, '0') || ':01', 0, d, $3 || '-' || lpad((i % $4)::text, 6, '0'), 7, 'CNY', 'ls1old' || lpad(i::text, 19, '0'), '01', 1700000000000000 + i * 3000000, 0
				FROM generate_series($1::bigint, $2::bigint) AS i, (VALUES ('debit'), ('credit')) AS s (d)`,
		} {
			if _, err := db.ExecContext(ctx, stmt, from, to, plan.Kind, plan.N); err != nil {
				return err
			}
		}
	}
	if plan.Entries > 0 {
		_, err := db.ExecContext(ctx, "VACUUM ANALYZE ledger_transfer, ledger_entry")
		return err
	}
	return nil
}

// PaymentMinor is what every payment moves, in minor units.
const PaymentMinor = 7

// Sums are what went through a database: as its clearing account shows it, which every payment touches, and as the
// numbered accounts do together, on the other side of each.
type Sums struct {
	Clearing int64 `json:"clearing"` // credits less debits that are posted or buffered, in minor units
	Accounts int64 `json:"accounts"` // the same of all numbered accounts
	Pending  int64 `json:"pending"`  // debits and credits that are held
}

func (p *Payee) sums(w http.ResponseWriter, r *http.Request) {
	s, err := p.read(r.Context())
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(s)
}

func (p *Payee) read(ctx context.Context) (s Sums, err error) {
	tx, err := (sqldb.Dialect{Dialect: p.dialect}).BeginRead(ctx, p.db)
	if err != nil {
		return s, err
	}
	defer func() { _ = tx.Rollback() }()
	b, err := p.ledger.Balance(ctx, tx, Clearing)
	if err != nil {
		return s, err
	}
	s.Clearing, s.Pending = b.Total(), b.DebitsPending+b.CreditsPending
	err = tx.QueryRowContext(ctx, "SELECT (SELECT coalesce(sum(credits_posted - debits_posted), 0) FROM ledger_account WHERE "+anyNumbered("id")+
		") + (SELECT coalesce(sum(credit - debit), 0) FROM ledger_buffer WHERE "+anyNumbered("account")+")").Scan(&s.Accounts)
	return s, err
}

// anyNumbered is true of a column that names a numbered account, or the clearing account of one.
func anyNumbered(column string) string {
	return column + " LIKE 'buyer-%' OR " + column + " LIKE 'merchant-%'"
}

// Audit recounts the whole book, and gives as an error what does not agree. It reads every entry.
func (p *Payee) Audit(ctx context.Context) error {
	faults, err := p.ledger.Audit(ctx, p.db)
	if err == nil && len(faults) > 0 {
		err = fmt.Errorf("the book does not agree with itself in %d places, such as: %s", len(faults), faults[0])
	}
	return err
}

func (p *Payee) audit(w http.ResponseWriter, r *http.Request) {
	if err := p.Audit(r.Context()); err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(map[string]any{})
}
