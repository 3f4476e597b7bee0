package books

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/lockstep-tx/lockstep/participants/barrier"
	"github.com/lockstep-tx/lockstep/participants/ledger"
	"github.com/lockstep-tx/lockstep/participants/merchant"
	"github.com/lockstep-tx/lockstep/participants/payment"
	"github.com/lockstep-tx/lockstep/participants/sqldb"
	"github.com/lockstep-tx/lockstep/region/reconcile/channelfile"
	"github.com/lockstep-tx/lockstep/region/reconcile/dayend"
)

// noAct is of sides on which nothing is asked for or booked.
type noAct struct{}

// Ask is dayend.Ours's.
func (noAct) Ask(context.Context, string) (dayend.Known, error) {
	return dayend.Known{}, errors.New("nothing is open here")
}

// Book is dayend.Ours's.
func (noAct) Book(context.Context, *dayend.Finding, dayend.Missing) (string, bool, error) {
	return "", false, &dayend.Conflict{Field: "case", Text: "a statement's entry is booked with the payment that it is of: book that one's case, and settle this one"}
}

// Entries is our side of the bill kind: the entries of accounts, a transfer's together.
type Entries struct {
	noAct
	DB       *sql.DB
	Ledger   *ledger.Ledger
	Accounts []string
}

var _ dayend.Ours = (*Entries)(nil)

// Each is dayend.Ours's.
func (e *Entries) Each(ctx context.Context, from, to int64, each func(*dayend.Row) error) error {
	for _, account := range e.Accounts {
		if err := e.statement(ctx, account, time.UnixMilli(from), time.UnixMilli(to), each); err != nil {
			return err
		}
	}
	return nil
}

// statement gives an account's entries, those of one transfer and direction as one.
func (e *Entries) statement(ctx context.Context, account string, from, to time.Time, each func(*dayend.Row) error) error {
	var sums [2]dayend.Row // debit, credit, of the transfer that was read last
	of := ""
	flush := func() error {
		for i := range sums {
			if sums[i].Amount > 0 {
				if err := each(&sums[i]); err != nil {
					return err
				}
			}
			sums[i] = dayend.Row{}
		}
		return nil
	}
	var after ledger.Cursor
	for {
		page, next, err := e.Ledger.Statement(ctx, e.DB, account, from, to, after, ledger.StatementMax)
		if err != nil {
			return err
		}
		for _, x := range page {
			if strings.HasPrefix(x.Transfer, dayend.ReversalPrefix) {
				continue // the channel does not know of it: what it reverses never left the house
			}
			if x.Transfer != of {
				if err := flush(); err != nil {
					return err
				}
				of = x.Transfer
			}
			add(&sums, account, x)
		}
		if next == (ledger.Cursor{}) {
			return flush()
		}
		after = next
	}
}

func add(sums *[2]dayend.Row, account string, x ledger.Entry) {
	i := 0
	if x.Direction == "credit" {
		i = 1
	}
	s := &sums[i]
	s.Key, s.Currency, s.State, s.AtMS = dayend.EntryKey(account, x.Transfer, i == 0), x.Currency, channelfile.Paid, x.PostedAt.UnixMilli()
	s.Amount += x.Minor
}

// Look is dayend.Ours's.
func (e *Entries) Look(ctx context.Context, keys []string) (map[string]dayend.Known, error) {
	out := map[string]dayend.Known{}
	for _, key := range keys {
		account, transfer, _ := splitEntry(key)
		entries, err := e.Ledger.EntriesOf(ctx, e.DB, transfer)
		if err != nil {
			return nil, err
		}
		var sums [2]dayend.Row
		for _, x := range entries {
			if x.Account == account {
				add(&sums, account, x)
			}
		}
		for _, s := range sums {
			if s.Key == key {
				out[key] = dayend.Known{Row: s}
			}
		}
	}
	return out, nil
}

func splitEntry(key string) (account, transfer, side string) {
	parts := strings.SplitN(key, "\x1f", 3)
	if len(parts) != 3 {
		return "", "", ""
	}
	return parts[0], parts[1], parts[2]
}

// Reverse is dayend.Ours's: the ledger's own reversal. A transfer that is a branch of a transaction is not reversed here: its
// other branches would stand.
func (e *Entries) Reverse(ctx context.Context, id, key string) (string, bool, error) {
	_, transfer, _ := splitEntry(key)
	gid, err := e.Ledger.GidOf(ctx, e.DB, transfer)
	if err != nil && !errors.Is(err, sql.ErrNoRows) {
		return "", false, err
	}
	if gid != "" {
		return "", false, &dayend.Conflict{Field: "transfer", Text: fmt.Sprintf("%s is a branch of transaction %s: it is reversed with its payment, by the business reconciliation", transfer, gid)}
	}
	err = e.Ledger.InTx(ctx, e.DB, func(tx *sql.Tx) error { return e.Ledger.Reverse(ctx, tx, id, transfer, "", "") })
	switch {
	case errors.Is(err, barrier.ErrRefused):
		return "", false, &dayend.Conflict{Field: "transfer", Text: err.Error()}
	case errors.Is(err, barrier.ErrOngoing):
		return "", false, nil
	case err != nil:
		return "", false, err
	}
	return fmt.Sprintf("transfer %s is reversed as %s", transfer, id), true, nil
}

// Sums is our side of the funds kind: of each currency the net of an account of the ledger, or of each merchant what was
// settled.
type Sums struct {
	noAct
	DB     *sql.DB
	Ledger *ledger.Ledger
	// Accounts of the ledger whose entries are added.
	Accounts []string
	// Merchants, if there are any, are added instead, from MerchantDB, whose bookings have days of UTC.
	Merchants  *merchant.Merchants
	MerchantDB *sql.DB
}

var _ dayend.Ours = (*Sums)(nil)

// Each is dayend.Ours's.
func (s *Sums) Each(ctx context.Context, from, to int64, each func(*dayend.Row) error) error {
	if s.Merchants != nil {
		return s.merchants(ctx, from, to, each)
	}
	total := map[string]int64{}
	for _, account := range s.Accounts {
		sums, err := s.Ledger.Sums(ctx, s.DB, account, time.UnixMilli(from), time.UnixMilli(to))
		if err != nil {
			return err
		}
		for _, x := range sums {
			total[x.Currency] += x.Net
		}
	}
	for currency, net := range total {
		if err := each(&dayend.Row{Key: dayend.SumKey(currency, ""), Amount: net, Currency: currency, State: channelfile.Paid, AtMS: from}); err != nil {
			return err
		}
	}
	return nil
}

func (s *Sums) merchants(ctx context.Context, from, to int64, each func(*dayend.Row) error) error {
	begin, end := time.UnixMilli(from).UTC(), time.UnixMilli(to).UTC()
	if begin != begin.Truncate(24*time.Hour) || end.Sub(begin) != 24*time.Hour {
		return &dayend.Conflict{Field: "day_cut", Text: fmt.Sprintf("merchants' sums are kept by days of UTC, and this day is from %s to %s: set day_cut 00:00 and zone UTC, or leave the field merchant out", begin.Format(time.RFC3339), end.Format(time.RFC3339))}
	}
	return s.Merchants.SettledOn(ctx, s.MerchantDB, begin.Year()*10000+int(begin.Month())*100+begin.Day(), func(x merchant.SettledSum) error {
		return each(&dayend.Row{Key: dayend.SumKey(x.Currency, x.Merchant), Amount: x.Net, Currency: x.Currency, State: channelfile.Paid, AtMS: from})
	})
}

// byMerchant are sums by merchant, which can say whose a payment is.
type byMerchant struct {
	*Sums
	dialect sqldb.Dialect
}

var _ dayend.ByMerchant = byMerchant{}

// MerchantOf is dayend.ByMerchant's.
func (s byMerchant) MerchantOf(ctx context.Context, key string) (string, error) {
	return payment.MerchantOf(ctx, s.MerchantDB, s.dialect, key)
}

// Look is dayend.Ours's: a sum that is not there is not there.
func (s *Sums) Look(context.Context, []string) (map[string]dayend.Known, error) { return nil, nil }

// Reverse is dayend.Ours's.
func (s *Sums) Reverse(context.Context, string, string) (string, bool, error) {
	return "", false, &dayend.Conflict{Field: "kind", Text: "a sum is not reversed"}
}

// Of makes our side for a mapping. db holds payments and merchants, buyers the ledger.
func Of(m *channelfile.Mapping, db *sql.DB, d sqldb.Dialect, buyers *sql.DB, bd sqldb.Dialect, api *Payments) (dayend.Ours, error) {
	book, err := ledger.New(bd.Dialect, ledger.Options{})
	if err != nil {
		return nil, err
	}
	switch m.Kind {
	case channelfile.Business:
		return api, nil
	case channelfile.Bill:
		return &Entries{DB: buyers, Ledger: book, Accounts: m.Accounts}, nil
	case channelfile.Funds:
		s := &Sums{DB: buyers, Ledger: book, Accounts: m.Accounts}
		if _, ok := m.Fields["merchant"]; ok {
			s.Merchants, s.MerchantDB = merchant.New(d, nil), db
			return byMerchant{s, d}, nil
		}
		return s, nil
	}
	return nil, fmt.Errorf("kind: %q", m.Kind)
}
