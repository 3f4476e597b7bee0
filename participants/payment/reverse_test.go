package payment

import (
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/lockstep-tx/lockstep/coordinator/api/apipb"
	"github.com/lockstep-tx/lockstep/coordinator/api/client"
	"github.com/lockstep-tx/lockstep/participants/sqldb"
)

func reversal(no string) ReversalRequest {
	return ReversalRequest{Merchant: "m", OrderNo: no, ReversalNo: "rev-" + no}
}

func refusedAs(t *testing.T, err error, kind string) {
	t.Helper()
	var p *Problem
	if !errors.As(err, &p) || p.Type != "/problems/"+kind {
		t.Fatalf("%v, want the problem %s", err, kind)
	}
}

// A reversal writes its id first: the original that comes after it is refused, whatever body and key it brings.
func TestTheLateOriginalOfAReversedOrderIsRefused(t *testing.T) {
	b := onSQLite(t)
	b.f.executes = ended(apipb.Phase_PHASE_COMMITTING, "", "done")
	for range 2 { // a repeat is the same reversal
		r, err := b.Reverse(t.Context(), reversal("1"))
		if err != nil || r.State != ReversalDone || r.Amount != 0 {
			t.Fatalf("%+v, %v", r, err)
		}
	}
	for _, key := range []string{"", "k1", "k2"} {
		_, err := b.Pay(t.Context(), request("1"), key)
		refusedAs(t, err, "reversed")
	}
	if len(b.f.executed) != 0 {
		t.Fatalf("the late original reached the coordinator: %+v", b.f.executed)
	}
	other := reversal("1")
	other.ReversalNo = "another"
	_, err := b.Reverse(t.Context(), other)
	refusedAs(t, err, "reversed")
}

// What was refused and is reversed is not paid by a new attempt either.
func TestARefusedOrderThatWasReversedTakesNoNewAttempt(t *testing.T) {
	b := onSQLite(t)
	b.f.executes = ended(apipb.Phase_PHASE_ABORTED, "insufficient_funds b (field amount)")
	if p, err := b.Pay(t.Context(), request("1"), "k1"); err != nil || p.State != Refused {
		t.Fatalf("%+v, %v", p, err)
	}
	if r, err := b.Reverse(t.Context(), reversal("1")); err != nil || r.State != ReversalDone {
		t.Fatalf("%+v, %v", r, err)
	}
	b.f.executes = ended(apipb.Phase_PHASE_COMMITTING, "", "done")
	_, err := b.Pay(t.Context(), request("1"), "k2")
	refusedAs(t, err, "reversed")
}

// A paid order goes back whole, once; one that is not decided is asked for and not decided by the reversal.
func TestAReversalGivesBackWhatWasPaidOnce(t *testing.T) {
	b := onSQLite(t)
	b.f.executes = ended(apipb.Phase_PHASE_COMMITTING, "", "done")
	if p, err := b.Pay(t.Context(), request("1"), ""); err != nil || p.State != Paid {
		t.Fatalf("%+v, %v", p, err)
	}
	if _, err := b.Refund(t.Context(), PaymentID("m", "1"), RefundRequest{RefundNo: "r", Amount: 30}, ""); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		r, err := b.Reverse(t.Context(), reversal("1"))
		if err != nil || r.State != ReversalDone || r.Amount != 70 {
			t.Fatalf("%+v, %v", r, err)
		}
	}
	if p, err := b.Get(t.Context(), PaymentID("m", "1")); err != nil || p.Refunded != 100 {
		t.Fatalf("%+v, %v", p, err)
	}
	// The reversal's refund is not part of what a day has settled: the channel never had the pair.
	var keys []string
	err := EachSettled(t.Context(), b.DB, b.Dialect, 0, math.MaxInt64/2, func(s Settled) error { keys = append(keys, s.RefundNo); return nil })
	if err != nil || fmt.Sprint(keys) != "[ r]" {
		t.Fatalf("%q, %v", keys, err)
	}
	b.f.executes = client.State{}
	open := b.open("2")
	b.f.knows[open.Gid] = ended(apipb.Phase_PHASE_RUNNING, "")
	if r, err := b.Reverse(t.Context(), reversal("2")); err != nil || r.State != string(Processing) {
		t.Fatalf("%+v, %v", r, err)
	}
	b.f.knows[open.Gid] = ended(apipb.Phase_PHASE_COMMITTING, "", "done")
	b.f.executes = b.f.knows[open.Gid]
	if r, err := b.Reverse(t.Context(), reversal("2")); err != nil || r.State != ReversalDone || r.Amount != 100 {
		t.Fatalf("%+v, %v", r, err)
	}
}

// A refund that had the reversal's number before is not taken for the reversal.
func TestAReversalUnderARefundsNumberSaysWhatIsLeft(t *testing.T) {
	b := onSQLite(t)
	b.f.executes = ended(apipb.Phase_PHASE_COMMITTING, "", "done")
	if p, err := b.Pay(t.Context(), request("1"), ""); err != nil || p.State != Paid {
		t.Fatalf("%+v, %v", p, err)
	}
	r := reversal("1")
	if _, err := b.Refund(t.Context(), PaymentID("m", "1"), RefundRequest{RefundNo: r.ReversalNo, Amount: 30}, ""); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		got, err := b.Reverse(t.Context(), r)
		if err != nil || got.State != string(Refused) || !strings.Contains(got.Reason, "70 of 100") {
			t.Fatalf("%+v, %v", got, err)
		}
	}
}

// A lost answer is asked for, and booked as the coordinator has it.
func TestAskBooksTheCoordinatorsDecision(t *testing.T) {
	b := onSQLite(t)
	p := b.open("1")
	b.f.knows[p.Gid] = ended(apipb.Phase_PHASE_COMMITTING, "", "done")
	got, err := b.Ask(t.Context(), p.ID)
	if err != nil || got.State != Paid || len(b.f.executed) != 0 {
		t.Fatalf("%+v, %v, executed %d", got, err, len(b.f.executed))
	}
}

// The quick look into a body finds what decoding it finds, whatever stands in its texts.
func TestTheMoneyOfABodyIsWhatDecodingGives(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		r := Request{Merchant: rapid.String().Draw(t, "m"), OrderNo: rapid.SampledFrom([]string{`,"amount":7`, `x,`, `","amount":9,"currency":"EUR"`}).Draw(t, "o"),
			Buyer: rapid.String().Draw(t, "b"), Amount: rapid.Int64().Draw(t, "a"), Currency: rapid.SampledFrom([]string{"CNY", "EUR", "", "X", `A"`}).Draw(t, "c")}
		raw, err := json.Marshal(r)
		if err != nil {
			t.Fatal(err)
		}
		var want Request
		if err := json.Unmarshal(raw, &want); err != nil {
			t.Fatal(err)
		}
		if a, c, err := moneyOf(raw); err != nil || a != want.Amount || c != want.Currency {
			t.Fatalf("%s: %d %q %v", raw, a, c, err)
		}
	})
}

// Every page is read, also where many were decided in the same millisecond.
func TestEachSettledReadsEveryPage(t *testing.T) {
	b := onSQLite(t)
	const n = settledPage + 10
	err := sqldb.InTx(t.Context(), b.DB, func(tx *sql.Tx) error {
		for i := range n {
			if _, err := tx.Exec(`INSERT INTO payment (id, merchant, order_no, body, digest, gid, state, created_ms, decided_ms) VALUES (?, 'm', ?, '{"a":1,"amount":5,"currency":"CNY"}', '', ?, 'paid', 1, ?)`,
				fmt.Sprintf("p%06d", i), fmt.Sprint(i), fmt.Sprint(i), 10+i/15000); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	err = EachSettled(t.Context(), b.DB, b.Dialect, 10, 12, func(s Settled) error { seen[s.Payment] = true; return nil })
	if err != nil || len(seen) != n {
		t.Fatalf("%d of %d, %v", len(seen), n, err)
	}
}
