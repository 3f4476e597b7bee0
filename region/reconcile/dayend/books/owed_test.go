package books_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/lockstep-tx/lockstep/participants/payment"
	"github.com/lockstep-tx/lockstep/region/reconcile/channelfile"
	"github.com/lockstep-tx/lockstep/region/reconcile/dayend"
	"github.com/lockstep-tx/lockstep/region/reconcile/dayend/books"
)

// A run that nobody told where the payments' API is has asked nobody: what is due stays due, and counts as owed until it is done.
func TestWhatCannotBeAskedStaysDue(t *testing.T) {
	w := onSQLite(t)
	w.pay(noon, "1", 100)
	w.now = on(20, "22:02:00")
	if _, err := w.b.Load(t.Context(), w.m, w.file(20)); err != nil {
		t.Fatal(err)
	}
	deaf := *w.our
	deaf.API = ""
	r, _, err := w.b.Run(t.Context(), w.m, &deaf, "20261120", dayend.Options{})
	if !errors.Is(err, books.ErrNoAPI) || r == nil || r.Standing[dayend.Long] != 1 {
		t.Fatalf("%+v, %v", r, err)
	}
	w.want(20, map[string]string{"1": "long/due"})
	if n, due, err := w.b.Standing(t.Context(), "acme", channelfile.Business); err != nil || n[dayend.Long] != 1 || due != 1 {
		t.Fatalf("standing %v, %d due, %v", n, due, err)
	}
	if err := w.b.GoOn(t.Context(), w.m, w.our); err != nil {
		t.Fatal(err)
	}
	w.want(20, map[string]string{"1": "long/ended"})
	if n, due, err := w.b.Standing(t.Context(), "acme", channelfile.Business); err != nil || len(n) != 0 || due != 0 {
		t.Fatalf("standing %v, %d due, %v", n, due, err)
	}
	if p, err := w.s.Get(t.Context(), payment.PaymentID("m", "1")); err != nil || p.Refunded != 100 {
		t.Fatalf("%+v, %v", p, err)
	}
}

// A mapping that does not say how much straddles does not have money go back that the channel has two seconds later.
func TestAMappingWithoutStraddleReversesNothingAtTheCut(t *testing.T) {
	raw, err := os.ReadFile("../../../../deploy/example/recon-business.yaml")
	if err != nil {
		t.Fatal(err)
	}
	w := onSQLite(t)
	path := filepath.Join(w.dir, "mapping.yaml")
	if err := os.WriteFile(path, without(t, raw, "straddle: 30m\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if w.m, err = channelfile.LoadMapping(path); err != nil {
		t.Fatal(err)
	}
	w.m.Signature = channelfile.Signature{Type: "none"}
	w.pay(on(20, "21:59:59"), "1", 100)
	if r := w.day(20); r.ToPool != 1 {
		t.Errorf("%+v", r)
	}
	if r := w.day(21, line("1", 100, "SUCCESS", on(20, "22:00:01"))); r.Matched != 1 || r.Differences() != 0 {
		t.Errorf("%+v", r)
	}
}

func without(t *testing.T, text []byte, part string) []byte {
	t.Helper()
	before, after, ok := strings.Cut(string(text), part)
	if !ok {
		t.Fatalf("%q is not in it", part)
	}
	return []byte(before + after)
}

// The day after a reversal: its entries are no difference, and what was reversed is no duplicate when the channel has it after all.
func TestAStatementOfTheDayAfterAReversal(t *testing.T) {
	w := onSQLite(t)
	l, db, transfer := book(t, &w.now)
	m, err := channelfile.LoadMapping("../../../../deploy/example/recon-bill.yaml")
	if err != nil {
		t.Fatal(err)
	}
	m.Parts, m.Signature.Type, m.Accounts = 1, "none", []string{"b"}
	ours := &books.Entries{DB: db, Ledger: l, Accounts: m.Accounts}
	day := func(n int, lines string, count, sum int) *dayend.Run {
		t.Helper()
		path := filepath.Join(w.dir, fmt.Sprintf("statement_202611%02d_1.txt", n))
		text := fmt.Sprintf("H%015d\n", 0) + lines + fmt.Sprintf("T%08d%015d%015d\n", count, sum, sum)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		w.now = on(n, "22:02:00")
		if _, err := w.b.Load(t.Context(), m, path); err != nil {
			t.Fatal(err)
		}
		r, _, err := w.b.Run(t.Context(), m, ours, fmt.Sprintf("202611%02d", n), dayend.Options{})
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	w.now = noon
	for _, id := range []string{"t1", "t2"} {
		if err := transfer(id, "", 500); err != nil {
			t.Fatal(err)
		}
	}
	if r := day(20, "", 0, 0); r.Ended[dayend.Long] != 2 { // both go back, at 22:02, which is of the next day
		t.Fatalf("%+v", r)
	}
	late := fmt.Sprintf("%-20s%-40s%s%015d20261121090000\n", "b", "t1", "C", 500)
	if r := day(21, late, 1, 500); r.Ours != 0 || r.Differences() != 1 || r.Standing[dayend.LateOriginal] != 1 {
		t.Fatalf("%+v", r)
	}
}

// perMerchant are sums by merchant as a test says.
type perMerchant struct {
	*books.Sums
	w    *world
	sums map[string]int64
}

func (p *perMerchant) Each(_ context.Context, from, _ int64, each func(*dayend.Row) error) error {
	for merchant, net := range p.sums {
		if err := each(&dayend.Row{Key: dayend.SumKey("CNY", merchant), Amount: net, Currency: "CNY", State: channelfile.Paid, AtMS: from}); err != nil {
			return err
		}
	}
	return nil
}

func (p *perMerchant) MerchantOf(ctx context.Context, key string) (string, error) {
	return payment.MerchantOf(ctx, p.w.our.DB, p.w.our.Dialect, key)
}

// What straddles explains the sum of its own merchant, and no other's.
func TestFundsByMerchantDifferByWhatStraddles(t *testing.T) {
	w := onSQLite(t)
	w.pay(on(20, "21:50:00"), "1", 300) // m's
	w.day(20)
	m, err := channelfile.LoadMapping("../../../../deploy/example/recon-funds.yaml")
	if err != nil {
		t.Fatal(err)
	}
	m.Fields["merchant"] = channelfile.Field{Column: 3}
	path := filepath.Join(w.dir, "settled-20261120.csv")
	if err := os.WriteFile(path, []byte("CNY;7.00;m\nCNY;7.00;n\nTOTAL;2;14.00\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	w.now = on(20, "22:02:00")
	if _, err := w.b.Load(t.Context(), m, path); err != nil {
		t.Fatal(err)
	}
	r, res, err := w.b.Run(t.Context(), m, &perMerchant{&books.Sums{}, w, map[string]int64{"m": 1000, "n": 1000}}, "20261120", dayend.Options{})
	if err != nil || r.Matched != 1 || r.Standing[dayend.AmountDiffers] != 1 || res.Findings[0].Key != dayend.SumKey("CNY", "n") {
		t.Fatalf("%+v %+v, %v", r, res, err)
	}
	if _, ok := ofFunds(t, m, w).(dayend.ByMerchant); !ok {
		t.Error("sums by merchant cannot say whose a payment is")
	}
}

func ofFunds(t *testing.T, m *channelfile.Mapping, w *world) dayend.Ours {
	t.Helper()
	ours, err := books.Of(m, w.our.DB, w.our.Dialect, w.our.DB, w.our.Dialect, w.our)
	if err != nil {
		t.Fatal(err)
	}
	return ours
}
