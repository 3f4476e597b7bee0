package ledger_test

import (
	"bytes"
	"database/sql"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/lockstep-tx/lockstep/participants/barrier"
	"github.com/lockstep-tx/lockstep/participants/branch"
	"github.com/lockstep-tx/lockstep/participants/ledger"
	"github.com/lockstep-tx/lockstep/participants/money"
)

// The epochs of a region before it was lost, and of the one that took its slots.
const lost, taken = 202, 301

// survivor is one region's wallets behind the kit, in the book's database.
type survivor struct {
	*book
	t    *testing.T
	w    ledger.Wallets
	http http.Handler
}

func newSurvivor(t *testing.T, b *book) *survivor {
	t.Helper()
	if err := barrier.MigrateSchema(ctx, b.db, b.dialect, b.options.Schema); err != nil {
		t.Fatal(err)
	}
	guard, err := barrier.New(b.db, b.dialect, barrier.Options{Schema: b.options.Schema})
	if err != nil {
		t.Fatal(err)
	}
	s := &survivor{book: b, t: t, w: ledger.Wallets{Ledger: b.Ledger}}
	kit := branch.New(guard, branch.Options{Workers: 4})
	t.Cleanup(kit.Close)
	for name, d := range map[string]ledger.Direction{"pay": ledger.Pay, "receive": ledger.Receive} {
		branch.HandleTCC(kit, name, branch.TCC[money.Transfer]{
			Try: branch.Op[money.Transfer](s.w.Try(d)), Confirm: branch.Op[money.Transfer](s.w.Confirm(d)),
			Cancel: branch.Op[money.Transfer](s.w.Cancel(d)), Apply: branch.Op[money.Transfer](s.w.Apply(d)),
		})
	}
	kit.Move(ledger.Slots{Ledger: b.Ledger})
	s.http = kit.Handler()
	return s
}

func (s *survivor) wallet(id string, deposit int64) {
	s.t.Helper()
	if err := s.w.OpenWallet(ctx, s.db, id, "CNY", deposit); err != nil {
		s.t.Fatal(err)
	}
}

func (s *survivor) ask(method, path, body string, headers map[string]string) (int, string) {
	r := httptest.NewRequest(method, path, bytes.NewReader([]byte(body)))
	for k, v := range headers {
		r.Header.Set(k, v)
	}
	rec := httptest.NewRecorder()
	s.http.ServeHTTP(rec, r)
	return rec.Code, rec.Body.String()
}

// must wants 200 of a region's request.
func (s *survivor) ok(method, path, body string) string {
	s.t.Helper()
	status, out := s.ask(method, path, body, nil)
	if status != http.StatusOK {
		s.t.Fatalf("%s %s %s: %d %s", method, path, body, status, out)
	}
	return out
}

// call makes a branch call of a wallet of the account; epoch 0 carries none, as a DTM client's.
func (s *survivor) call(path, gid, op, account string, minor int64, epoch int, extra ...string) (int, string) {
	h := map[string]string{}
	if epoch > 0 {
		h[barrier.HeaderSlot], h[barrier.HeaderEpoch] = fmt.Sprint(barrier.SlotOf(gid)), fmt.Sprint(epoch)
		h[barrier.HeaderAccountSlot], h[barrier.HeaderAccountEpoch] = fmt.Sprint(barrier.SlotOf(account)), fmt.Sprint(epoch)
	}
	for i := 0; i < len(extra); i += 2 {
		h[extra[i]] = extra[i+1]
	}
	if !strings.HasPrefix(path, "/lockstep/") {
		path += "/" + op
	}
	q := url.Values{"gid": {gid}, "branch_id": {"01"}, "op": {op}, "trans_type": {"tcc"}}
	return s.ask("POST", path+"?"+q.Encode(), fmt.Sprintf(`{"account":%q,"amount":%d,"currency":"CNY"}`, account, minor), h)
}

// want makes a call and compares its status, and what its message holds.
func (s *survivor) want(status int, holds string, path, gid, op, account string, minor int64, epoch int, extra ...string) {
	s.t.Helper()
	got, text := s.call(path, gid, op, account, minor, epoch, extra...)
	if got != status || !strings.Contains(text, holds) {
		s.t.Fatalf("%s %s of %s for %d at epoch %d: %d %s, want %d with %q", op, path, account, minor, epoch, got, text, status, holds)
	}
}

func (s *survivor) settle(status int, gid, op, account string, epoch int) {
	s.t.Helper()
	s.want(status, "", "/lockstep/settle", gid, op, account, 0, epoch)
}

func (s *survivor) homes(epoch int, here bool, ids ...string) {
	s.t.Helper()
	for _, id := range ids {
		s.ok("POST", "/lockstep/homes", fmt.Sprintf(`[{"slot":%d,"epoch":%d,"here":%v}]`, barrier.SlotOf(id), epoch, here))
	}
}

func (s *survivor) adopt(id, policy string) {
	s.t.Helper()
	s.ok("POST", fmt.Sprintf("/lockstep/adopt?slot=%d&epoch=%d&forced=true&%s", barrier.SlotOf(id), taken, policy), "")
}

// balance gives what is posted and what is held of an account's debits.
func (s *survivor) balance(id string) (posted, held int64) {
	s.t.Helper()
	b, err := s.Balance(ctx, s.db, id)
	if err != nil {
		s.t.Fatal(err)
	}
	return b.Total(), b.DebitsPending
}

func (s *survivor) sound() {
	s.t.Helper()
	if faults, err := s.Audit(ctx, s.db); err != nil || len(faults) > 0 {
		s.t.Errorf("the audit finds %v, %v", faults, err)
	}
	for _, f := range s.check(s.t) {
		s.t.Errorf("the check finds %+v", f)
	}
}

func onSurvivor(t *testing.T, f func(s *survivor)) {
	onEach(t, func(t *testing.T, b *book) { f(newSurvivor(t, b)) })
}

const durability = barrier.HeaderDurability

func TestTriesTellWhatTheirHoldsHold(t *testing.T) {
	onSurvivor(t, func(s *survivor) {
		s.wallet("ann", 1000)
		s.homes(lost, true, "ann")
		s.want(200, "", "/pay", "{x}-pay", "try", "ann", 30, lost, durability, "global")
		s.want(200, "", "/receive", "{x}-get", "try", "ann", 40, lost)
		s.want(200, "", "/pay", "{x}-dtm", "try", "ann", 5, 0, durability, "global")
		s.want(200, "", "/pay", "{x}-end", "try", "ann", 6, lost)
		s.want(200, "", "/pay", "{x}-end", "cancel", "ann", 6, lost)
		var got struct{ Tries []json.RawMessage }
		out := s.ok("POST", "/lockstep/tries", fmt.Sprintf(`{"slots":[%d]}`, barrier.SlotOf("{x}")))
		if err := json.Unmarshal([]byte(out), &got); err != nil {
			s.t.Fatal(err)
		}
		line := func(gid, d string, minor int, debit bool) string {
			return fmt.Sprintf(`{"gid":"{x}-%s","branch":"01","trans_type":"tcc","durability":%q,"state":"tried","account":"ann","amount":%d,"currency":"CNY","debit":%v}`, gid, d, minor, debit)
		}
		for i, want := range []string{line("dtm", "global", 5, true), line("get", "regional", 40, false), line("pay", "global", 30, true)} {
			if len(got.Tries) != 3 || string(got.Tries[i]) != want {
				s.t.Fatalf("try %d of %s, want %s", i, out, want)
			}
		}
		if out := s.ok("POST", "/lockstep/tries", `{"slots":[1,1]}`); out != "{\"tries\":[]}\n" {
			s.t.Errorf("a slot without tries: %s", out)
		}
		for _, body := range []string{`{}`, `{"slots":[]}`, `{"slots":[1024]}`} {
			if status, text := s.ask("POST", "/lockstep/tries", body, nil); status != 400 || !strings.Contains(text, "slots") {
				s.t.Errorf("%s: %d %s", body, status, text)
			}
		}
		if out := s.ok("GET", "/lockstep/probe", ""); !strings.Contains(out, `"tries":true,"settle":true`) {
			s.t.Errorf("the probe: %s", out)
		}
	})
}

func TestAForcedAdoptionIsCheckedFieldByField(t *testing.T) {
	onSurvivor(t, func(s *survivor) {
		at := fmt.Sprintf("/lockstep/adopt?slot=%d&epoch=%d", barrier.SlotOf("ann"), taken)
		for field, c := range map[string][2]string{
			"at_risk: ":   {"&forced=true"},
			"at_risk: \\": {"&forced=true&at_risk=maybe"},
			"cap: \\":     {"&forced=true&at_risk=limit"},
			"cap: -5":     {"&forced=true&at_risk=limit&cap=-5"},
			"forced":      {"&forced=yes"},
			"at_risk: it": {"&at_risk=block"},
			"body":        {"&forced=true&at_risk=block", "{}"},
		} {
			if status, text := s.ask("POST", at+c[0], c[1], nil); status != 400 || !strings.Contains(text, field) {
				s.t.Errorf("%v: %d %s, want 400 with %q", c, status, text, field)
			}
		}
	})
}

func TestABlockedAccountWaitsUntilItsRiskIsLifted(t *testing.T) {
	onSurvivor(t, func(s *survivor) {
		s.wallet("ann", 1000)
		s.homes(lost, false, "ann")
		s.want(421, "", "/pay", "g0", "try", "ann", 1, taken)
		for range 2 {
			s.adopt("ann", "at_risk=block")
		}
		s.want(409, "account_at_risk ann", "/pay", "g1", "try", "ann", 1, taken)
		s.want(409, "lost region's settlement", "/pay", "g2", "try", "ann", 1, taken, durability, "global")
		s.want(409, "account_at_risk ann", "/pay", "g6", "try", "ann", 1, 0) // as DTM's clients make it
		s.want(200, "", "/receive", "g3", "try", "ann", 10, taken)           // credits are no exposure
		s.want(200, "", "/receive", "g3", "confirm", "ann", 10, taken)
		lift := func(epoch int) {
			s.ok("POST", "/lockstep/risk", fmt.Sprintf(`{"slots":[{"slot":%d,"epoch":%d}]}`, barrier.SlotOf("ann"), epoch))
		}
		lift(lost)
		s.want(409, "account_at_risk", "/pay", "g4", "try", "ann", 1, taken)
		lift(taken)
		lift(taken)
		s.want(200, "", "/pay", "g5", "try", "ann", 1, taken)
		if status, text := s.ask("POST", "/lockstep/risk", `{}`, nil); status != 400 || !strings.Contains(text, "slots") {
			s.t.Errorf("%d %s", status, text)
		}
		s.sound()
	})
}

func TestAnAccountWhoseDebitsAreAllGlobalIsNeverAtRisk(t *testing.T) {
	onSurvivor(t, func(s *survivor) {
		s.wallet("other", 0)
		for range 2 {
			if err := s.w.OpenWalletIn(ctx, s.db, ledger.Account{ID: "ann", Currency: "CNY", GlobalOnly: true}, 1000); err != nil {
				s.t.Fatal(err)
			}
		}
		if b, err := s.Balance(ctx, s.db, "ann"); err != nil || !b.GlobalOnly {
			s.t.Errorf("%+v, %v", b, err)
		}
		s.homes(lost, true, "ann")
		s.want(409, "needs_global ann", "/pay", "g1", "try", "ann", 1, lost)
		s.want(409, "needs_global ann", "/pay", "g2", "try", "ann", 1, lost, durability, "regional")
		s.want(200, "", "/pay", "g3", "try", "ann", 1, lost, durability, "global")
		if err := s.transfer("at once", leg("ann", "other", 1)); err == nil || !strings.Contains(err.Error(), "needs_global") {
			s.t.Errorf("a transfer outside TCC: %v", err)
		}
		s.homes(lost+50, false, "ann")
		s.adopt("ann", "at_risk=block")
		s.want(200, "", "/pay", "g4", "try", "ann", 1, taken, durability, "global")
		s.want(409, "needs_global ann", "/pay", "g5", "try", "ann", 1, taken)
		if err := s.OpenAccount(ctx, s.db, ledger.Account{ID: "house", Currency: "CNY", Overdraft: true, GlobalOnly: true}); err == nil || !strings.Contains(err.Error(), "global_only") {
			s.t.Errorf("an account of the house: %v", err)
		}
		s.sound()
	})
}

func (s *survivor) used(id string) (n int64) {
	s.t.Helper()
	all, err := s.Exposures(ctx, s.db)
	if err != nil {
		s.t.Fatal(err)
	}
	for _, e := range all {
		if e.Account == id && e.Epoch == taken {
			n += e.Used
		}
	}
	return n
}

func TestACapHoldsHowManyTriesThereAreAtOnce(t *testing.T) {
	onSurvivor(t, func(s *survivor) {
		const limit, each = 100, 7
		s.wallet("ann", 100_000)
		s.wallet("bob", 100_000)
		s.homes(lost, false, "ann", "bob")
		s.adopt("ann", fmt.Sprintf("at_risk=limit&cap=%d", limit))
		s.adopt("bob", "at_risk=allow")
		burst := func(round string, n int) (held []string) {
			var mu sync.Mutex
			var wg sync.WaitGroup
			for i := range n {
				wg.Go(func() {
					gid := fmt.Sprintf("%s-%d", round, i)
					status, text := s.call("/pay", gid, "try", "ann", each, taken)
					mu.Lock()
					defer mu.Unlock()
					switch {
					case status == 200:
						held = append(held, gid)
					case status != 409 || !strings.Contains(text, "account_at_risk ann"):
						s.t.Errorf("%s: %d %s", gid, status, text)
					}
				})
			}
			wg.Wait()
			return held
		}
		held := burst("first", 40)
		if len(held) != limit/each || s.used("ann") != int64(len(held)*each) {
			s.t.Fatalf("%d tries of %d are held under a cap of %d, %d are counted", len(held), each, limit, s.used("ann"))
		}
		for i, gid := range held { // posted ones stay counted, cancelled ones come back
			op := []string{"confirm", "cancel"}[i%2]
			for range 2 {
				s.want(200, "", "/pay", gid, op, "ann", each, taken)
			}
		}
		if s.used("ann") != limit/each/2*each {
			s.t.Errorf("%d are counted after half of them was cancelled", s.used("ann"))
		}
		if again := burst("second", 40); len(again) != limit/each-limit/each/2 {
			s.t.Errorf("%d more are held", len(again))
		}
		s.want(200, "", "/pay", "bob-1", "try", "bob", 90_000, taken)
		s.sound()
	})
}

// A shared transaction whose members are held as a set, some of which the cap refuses, and voided as a set.
func TestACapHoldsForSetsOfHolds(t *testing.T) {
	onSurvivor(t, func(s *survivor) {
		s.wallet("ann", 1000)
		s.homes(lost, false, "ann")
		s.adopt("ann", "at_risk=limit&cap=20")
		guard, err := barrier.New(s.db, s.dialect, barrier.Options{Schema: s.options.Schema})
		if err != nil {
			s.t.Fatal(err)
		}
		sets := 0
		set := func(op string, one oneFunc, all allFunc, gids ...string) (done []string) {
			s.t.Helper()
			calls, legs := make([]*barrier.Call, len(gids)), make([]ledger.Transfer, len(gids))
			for i, gid := range gids {
				calls[i] = &barrier.Call{TransType: "tcc", Gid: gid, BranchID: "01", Op: op, Fence: barrier.Fence{Slot: barrier.SlotOf(gid), Epoch: taken},
					Account: barrier.Fence{Slot: barrier.SlotOf("ann"), Epoch: taken}}
				legs[i] = ledger.Of(calls[i], leg("ann", ledger.Passage("CNY"), 6))
			}
			for i, r := range guard.DoWork(ctx, 0, calls, barrier.Work{
				One: func(i int, tx *sql.Tx) error { return one(ctx, tx, ledger.Of(calls[i], legs[i].Legs...)) },
				Set: func(int) int { return 0 },
				All: func(members []int, tx *sql.Tx) error {
					sets++
					var some []ledger.Transfer
					for _, i := range members {
						some = append(some, ledger.Of(calls[i], legs[i].Legs...))
					}
					return all(ctx, tx, some)
				},
			}) {
				if r.Err == nil {
					done = append(done, gids[i])
				} else if !strings.Contains(r.Err.Error(), "account_at_risk ann") {
					s.t.Errorf("%s: %v", gids[i], r.Err)
				}
			}
			return done
		}
		held := set("try", s.Hold, s.HoldAll, "g0", "g1", "g2", "g3", "g4")
		if len(held) != 3 || s.used("ann") != 18 {
			s.t.Fatalf("%v are held, %d counted", held, s.used("ann"))
		}
		if voided := set("cancel", s.Void, s.VoidAll, held[:2]...); len(voided) != 2 || s.used("ann") != 6 {
			s.t.Errorf("%v are voided, %d counted", voided, s.used("ann"))
		}
		if more := set("try", s.Hold, s.HoldAll, "g5", "g6"); len(more) != 2 || s.used("ann") != 18 {
			s.t.Errorf("%v are held, %d counted", more, s.used("ann"))
		}
		if sets != 3 {
			s.t.Errorf("%d sets", sets)
		}
		s.sound()
	})
}

func TestADemotedHomeLetsItsHoldsGoAndAppliesWhatWasDecidedElsewhereOnce(t *testing.T) {
	onSurvivor(t, func(s *survivor) {
		s.wallet("ann", 1000)
		s.homes(lost, true, "ann")
		s.want(200, "", "/pay", "g1", "try", "ann", 10, lost)
		s.want(200, "", "/pay", "g2", "try", "ann", 20, lost)
		for range 2 {
			s.homes(taken, false, "ann")
		}
		if posted, held := s.balance("ann"); posted != 1000 || held != 0 {
			s.t.Errorf("after the demotion: posted %d, held %d", posted, held)
		}
		evidence := s.ok("GET", fmt.Sprintf("/lockstep/released?slot=%d&epoch=%d", barrier.SlotOf("ann"), taken), "")
		if !strings.Contains(evidence, `"g1:01"`) || !strings.Contains(evidence, `"g2:01"`) {
			s.t.Errorf("the evidence: %s", evidence)
		}
		s.want(412, "", "/pay", "g1", "confirm", "ann", 10, lost)
		s.want(421, "", "/pay", "g1", "confirm", "ann", 10, taken)
		for range 3 {
			s.want(200, "", "/pay", "g1", "apply", "ann", 10, taken)
		}
		if posted, held := s.balance("ann"); posted != 990 || held != 0 {
			s.t.Errorf("after the apply: posted %d, held %d", posted, held)
		}
		s.sound()
	})
}

func TestAnApplyPastALimitGoesThroughSuspenseOnceWhereItMay(t *testing.T) {
	onSurvivor(t, func(s *survivor) {
		s.wallet("ann", 100)
		s.homes(lost, false, "ann")
		s.want(500, "", "/pay", "g1", "apply", "ann", 130, lost)
		for range 3 {
			s.want(200, "", "/pay", "g1", "apply", "ann", 130, lost, barrier.HeaderSuspense, "true")
		}
		s.want(200, "", "/pay", "g2", "apply", "ann", 60, lost, barrier.HeaderSuspense, "true") // within the limit
		s.want(400, barrier.HeaderSuspense, "/pay", "g3", "confirm", "ann", 1, lost, barrier.HeaderSuspense, "true")
		if posted, _ := s.balance("ann"); posted != 40 {
			s.t.Errorf("ann has %d", posted)
		}
		if posted, _ := s.balance(ledger.Suspense("CNY")); posted != -130 {
			s.t.Errorf("suspense has %d", posted)
		}
		all, err := s.Suspended(ctx, s.db)
		if err != nil || len(all) != 1 || all[0].Account != "ann" || all[0].Minor != 130 || all[0].Transfer != "g1:01" {
			s.t.Errorf("%+v, %v", all, err)
		}
		s.sound()
	})
}

// TestABookFromBeforeForcedFailoverIsMigratedAndGoesOn makes the tables by the statements of before, and migrates them.
func TestABookFromBeforeForcedFailoverIsMigratedAndGoesOn(t *testing.T) {
	onEach(t, func(t *testing.T, b *book) {
		for _, stmt := range []string{"DROP TABLE {p}at_risk", "DROP TABLE {p}at_risk_debit", "DROP TABLE {p}suspense", "ALTER TABLE {p}account DROP COLUMN global_only",
			"DROP TABLE {p}mending", "DELETE FROM {p}migration WHERE version >= (SELECT v - 1 FROM (SELECT max(version) AS v FROM {p}migration) x)"} {
			if _, err := b.db.Exec(strings.ReplaceAll(stmt, "{p}", b.prefix)); err != nil {
				t.Fatalf("%s: %v", stmt, err)
			}
		}
		last, err := filepath.Glob("migrations/" + strings.ToLower(b.dialect.String())[:5] + "*.sql")
		if err != nil {
			t.Fatal(err)
		}
		if raw, err := os.ReadFile(last[len(last)-2]); err != nil || !strings.Contains(string(raw), "global_only") {
			t.Fatalf("%s is not the first migration that was taken back, %v", last[len(last)-2], err)
		}
		if _, err := b.db.Exec(strings.ReplaceAll("INSERT INTO {p}account (id, shard, currency, mode, shards, overdraft, state, credits_posted) VALUES ('old', 0, 'CNY', 'direct', 0, 'none', 'open', 0)", "{p}", b.prefix)); err != nil {
			t.Fatal(err)
		}
		for range 2 {
			if err := ledger.Migrate(ctx, b.db, b.dialect, b.options); err != nil {
				t.Fatal(err)
			}
		}
		b.deposit(t, "old", 50)
		s := newSurvivor(t, b)
		s.wallet("new", 0)
		s.want(200, "", "/pay", "g1", "try", "old", 20, 1)
		s.want(200, "", "/pay", "g1", "confirm", "old", 20, 1)
		if posted, _ := s.balance("old"); posted != 30 {
			t.Errorf("the old account has %d", posted)
		}
		s.sound()
	})
}
