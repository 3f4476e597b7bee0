package ledger

import (
	"context"
	"database/sql"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/lockstep-tx/lockstep/participants/barrier"
)

// This file is what a reconciler asks a ledger: what a branch has done, which accounts are not what their entries say, and
// to set such an account right from them. It decides nothing by itself.

// Branch is what the ledger has of a branch.
type Branch struct {
	// State is pending, posted or voided; "" where the ledger has nothing of it.
	State string `json:"state"`
	Legs  []Leg  `json:"legs,omitempty"`
	// Entries are what is posted under its id.
	Entries []Side `json:"entries,omitempty"`
	// Altered: its one leg is not what was tried, by the digest of that time.
	Altered bool `json:"altered,omitempty"`
	// Again are other posted holds that carry its gid and its name, and are not reversed.
	Again []string `json:"again,omitempty"`
}

// Side is one entry of a branch.
type Side struct {
	Leg      int    `json:"leg"`
	Account  string `json:"account"`
	Minor    int64  `json:"amount"`
	Currency string `json:"currency"`
	Debit    bool   `json:"debit"`
}

// AccountFault is an account whose counters are not what its entries and open holds say, or whose entries are not what its
// transfers say.
type AccountFault struct {
	Account  string `json:"account"`
	Currency string `json:"currency"`
	// Have are the counters, with what is buffered; Fold what entries and holds come to, and Transfers what the transfers' legs
	// and holds come to: debits pending and posted, credits pending and posted.
	Have      [4]int64 `json:"have"`
	Fold      [4]int64 `json:"fold"`
	Transfers [4]int64 `json:"transfers"`
	// EntriesDiffer are the first and the last transfer whose entries on the account are not its legs: missing, altered, or
	// entries of no transfer. Where there are any the entries are no authority for the counters.
	EntriesDiffer []string `json:"entries_differ,omitempty"`
	// Phantoms are ids under which the account has entries, and there is no such transfer.
	Phantoms []string `json:"phantoms,omitempty"`
	// Twice are voided holds under ids of their own, which carry the gid and the name of a branch: where less is pending than is
	// held, they say whose cancel was done twice.
	Twice []TwiceVoided `json:"twice,omitempty"`
}

// TwiceVoided is a voided hold beside the branch's own.
type TwiceVoided struct {
	ID     string `json:"id"`
	Gid    string `json:"gid"`
	Branch string `json:"branch"`
	Minor  int64  `json:"amount"`
}

// inspectAtOnce bounds the ids of one statement: SQLite's driver finds n parameters in n² steps.
const inspectAtOnce = 50

// Inspect is branch.Inspectable's: what the ledger has of branches.
func (s Slots) Inspect(ctx context.Context, db *sql.DB, branches []barrier.BranchKey) ([]json.RawMessage, error) {
	found := map[string]*Branch{}
	for part := range slices.Chunk(branches, inspectAtOnce) {
		var ids, gids []any
		for _, k := range part {
			if id := HoldID(k.Gid, k.Branch); found[id] == nil {
				ids, gids, found[id] = append(ids, id), append(gids, k.Gid), &Branch{}
			}
		}
		if len(ids) == 0 {
			continue
		}
		if err := s.branches(ctx, db, ids, gids, found); err != nil {
			return nil, fmt.Errorf("ledger: read branches: %w", err)
		}
	}
	out := make([]json.RawMessage, len(branches))
	for i, k := range branches {
		var err error
		if out[i], err = json.Marshal(found[HoldID(k.Gid, k.Branch)]); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// Check is branch.Inspectable's: every account with a fault, in one snapshot.
func (s Slots) Check(ctx context.Context, db *sql.DB) (json.RawMessage, error) {
	tx, err := Wallets{s.Ledger}.beginRead(ctx, db)
	if err != nil {
		return nil, err
	}
	defer func() { _ = tx.Rollback() }()
	faults, err := s.faults(ctx, tx, "")
	if err != nil {
		return nil, err
	}
	for i := range faults {
		if err := s.explain(ctx, tx, &faults[i]); err != nil {
			return nil, fmt.Errorf("ledger: explain account %s: %w", faults[i].Account, err)
		}
	}
	return json.Marshal(faults)
}

// foldQuery sums counters against entries and holds, account by account, and finds the entries and the transfers' legs that
// have no partner: by the primary keys of both, so that the whole book is read once. {only} may name one account.
const foldQuery = `SELECT f.account, max(f.currency), sum(f.hdp), sum(f.hd), sum(f.hcp), sum(f.hc), sum(f.fdp), sum(f.fd), sum(f.fcp), sum(f.fc), sum(f.td), sum(f.tc),
	coalesce(min(f.id), ''), coalesce(max(f.id), '') FROM (
	SELECT id AS account, currency, debits_pending AS hdp, debits_posted AS hd, credits_pending AS hcp, credits_posted AS hc, 0 AS fdp, 0 AS fd, 0 AS fcp, 0 AS fc,
		0 AS td, 0 AS tc, NULL AS id FROM {p}account
	UNION ALL SELECT account, '', 0, debit, 0, credit, 0, 0, 0, 0, 0, 0, NULL FROM {p}buffer
	UNION ALL SELECT account, '', 0, 0, 0, 0, 0, CASE WHEN direction = 'debit' THEN amount ELSE 0 END, 0, CASE WHEN direction = 'credit' THEN amount ELSE 0 END, 0, 0, NULL FROM {p}entry
	UNION ALL SELECT debit, '', 0, 0, 0, 0, amount, 0, 0, 0, 0, 0, NULL FROM {p}transfer WHERE state = 'pending' AND debit_shard >= 0
	UNION ALL SELECT credit, '', 0, 0, 0, 0, 0, 0, amount, 0, 0, 0, NULL FROM {p}transfer WHERE state = 'pending' AND credit_shard >= 0
	UNION ALL SELECT e.account, '', 0, 0, 0, 0, 0, 0, 0, 0, CASE WHEN e.direction = 'debit' THEN -e.amount ELSE 0 END, CASE WHEN e.direction = 'credit' THEN -e.amount ELSE 0 END, e.transfer_id
		FROM {p}entry e LEFT JOIN {p}transfer t ON t.id = e.transfer_id AND t.leg = e.leg AND t.state = 'posted' AND t.amount = e.amount AND t.currency = e.currency
			AND CASE WHEN e.direction = 'debit' THEN t.debit ELSE t.credit END = e.account WHERE t.id IS NULL
	UNION ALL SELECT t.debit, '', 0, 0, 0, 0, 0, 0, 0, 0, t.amount, 0, t.id ` + legsWithout + `'debit' AND e.account = t.debit AND e.amount = t.amount AND e.currency = t.currency
		WHERE t.state = 'posted' AND t.amount > 0 AND e.account IS NULL
	UNION ALL SELECT t.credit, '', 0, 0, 0, 0, 0, 0, 0, 0, 0, t.amount, t.id ` + legsWithout + `'credit' AND e.account = t.credit AND e.amount = t.amount AND e.currency = t.currency
		WHERE t.state = 'posted' AND t.amount > 0 AND e.account IS NULL
	) f {only} GROUP BY f.account HAVING sum(f.hdp) <> sum(f.fdp) OR sum(f.hd) <> sum(f.fd) OR sum(f.hcp) <> sum(f.fcp) OR sum(f.hc) <> sum(f.fc) OR count(f.id) > 0 ORDER BY f.account`

const legsWithout = `FROM {p}transfer t LEFT JOIN {p}entry e ON e.transfer_id = t.id AND e.leg = t.leg AND e.direction = `

func (l *Ledger) faults(ctx context.Context, q Querier, account string) ([]AccountFault, error) {
	only, args := "", []any(nil)
	if account != "" {
		only, args = "WHERE f.account = ?", []any{account}
	}
	rows, err := q.QueryContext(ctx, l.q(replaceOnly(foldQuery, only)), args...)
	if err != nil {
		return nil, fmt.Errorf("ledger: compare accounts with their entries: %w", err)
	}
	defer rows.Close()
	out := []AccountFault{}
	for rows.Next() {
		var f AccountFault
		var debits, credits int64 // that the transfers have more than the entries
		var first, last string
		if err := rows.Scan(&f.Account, &f.Currency, &f.Have[0], &f.Have[1], &f.Have[2], &f.Have[3], &f.Fold[0], &f.Fold[1], &f.Fold[2], &f.Fold[3],
			&debits, &credits, &first, &last); err != nil {
			return nil, err
		}
		f.Transfers = [4]int64{f.Fold[0], f.Fold[1] + debits, f.Fold[2], f.Fold[3] + credits}
		if first != "" {
			f.EntriesDiffer = slices.Compact([]string{first, last})
		}
		out = append(out, f)
	}
	return out, rows.Err()
}

// replaceOnly puts a condition into a query.
func replaceOnly(query, only string) string { return strings.ReplaceAll(query, "{only}", only) }
