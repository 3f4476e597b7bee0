package payment

import (
	"errors"
	"testing"

	"github.com/lockstep-tx/lockstep/coordinator/api/apipb"
	"github.com/lockstep-tx/lockstep/coordinator/api/client"
)

// An order that was refused is paid by another attempt under a gid of its own; repeats of the refused one keep their answer,
// before and after.
func TestARefusedOrderIsPaidByAnotherAttempt(t *testing.T) {
	refuse, commit := ended(apipb.Phase_PHASE_ABORTED, "insufficient_funds b: 1 available (field amount)"), ended(apipb.Phase_PHASE_COMMITTING, "")
	other := request("1")
	other.Buyer = "c"
	for name, tc := range map[string]struct {
		firstKey, nextKey string
		next              Request
	}{
		"another body":               {"", "", other},
		"another body with keys":     {"k1", "k2", other},
		"the same body, another key": {"k1", "k2", request("1")},
		"the same body, a key now":   {"", "k2", request("1")},
	} {
		t.Run(name, func(t *testing.T) { anotherAttempt(t, refuse, commit, tc.firstKey, tc.nextKey, tc.next) })
	}
}

func anotherAttempt(t *testing.T, refuse, commit client.State, firstKey, nextKey string, next Request) {
	b := onSQLite(t)
	pay := func(r Request, key string, ends client.State, want State) *Payment {
		t.Helper()
		b.f.executes = ends
		p, err := b.Pay(t.Context(), r, key)
		if err != nil || p.State != want {
			t.Fatalf("%+v, %v; want %s", p, err, want)
		}
		return p
	}
	first := pay(request("1"), firstKey, refuse, Refused)
	if again := pay(request("1"), firstKey, commit, Refused); again.Gid != first.Gid || len(b.f.executed) != 1 {
		t.Fatalf("a repeat of what was refused is another attempt: %+v", again)
	}
	second := pay(next, nextKey, commit, Paid)
	if second.ID != first.ID || second.Gid == first.Gid || len(b.f.executed) != 2 {
		t.Fatalf("%+v after %+v; %d executed", second, first, len(b.f.executed))
	}
	if again := pay(next, nextKey, refuse, Paid); again.Gid != second.Gid {
		t.Errorf("a repeat of what was paid: %+v", again)
	}
	if firstKey != "" || next.Buyer != "b" { // without a key and with the same body it is a repeat of what is there now
		if again := pay(request("1"), firstKey, refuse, Refused); again.Gid != first.Gid || again.Reason != "insufficient_funds" || again.Buyer != "b" {
			t.Errorf("a repeat of what was refused: %+v", again)
		}
	}
	var p *Problem
	third := request("1")
	third.Buyer = "d"
	if _, err := b.Pay(t.Context(), third, ""); !errors.As(err, &p) || p.Type != "/problems/duplicate_order" || p.Status != 409 {
		t.Errorf("a third body: %v", err)
	}
	if len(b.f.executed) != 2 {
		t.Errorf("%d executed", len(b.f.executed))
	}
	history, err := b.Refusals(t.Context(), first.ID)
	if err != nil || len(history) != 1 || history[0].Gid != first.Gid || history[0].Reason != "insufficient_funds" || history[0].Buyer != "b" || history[0].DecidedMS == 0 {
		t.Errorf("the history: %+v, %v", history, err)
	}
	if now, err := b.Get(t.Context(), first.ID); err != nil || now.Gid != second.Gid || now.State != Paid || now.Buyer != next.Buyer || now.Reason != "" {
		t.Errorf("now: %+v, %v", now, err)
	}
}

// A decision that is booked late is the attempt's that it was made for.
func TestALateDecisionIsItsOwnAttempts(t *testing.T) {
	b := onSQLite(t)
	b.f.executes = ended(apipb.Phase_PHASE_ABORTED, "")
	first, err := b.Pay(t.Context(), request("1"), "k1")
	if err != nil {
		t.Fatal(err)
	}
	b.f.executes = client.State{}
	second, err := b.Pay(t.Context(), request("1"), "k2")
	if err != nil || second.State != Processing {
		t.Fatalf("%+v, %v", second, err)
	}
	if err := b.decided(t.Context(), first); err != nil {
		t.Fatal(err)
	}
	if now, err := b.Get(t.Context(), first.ID); err != nil || now.Gid != second.Gid || now.State != Processing {
		t.Errorf("%+v, %v", now, err)
	}
}

// A key belongs to one body, and one that came to a payment that was there stands for that.
func TestAKeyStandsForWhatItCameTo(t *testing.T) {
	b := onSQLite(t)
	b.f.executes = ended(apipb.Phase_PHASE_COMMITTING, "")
	first, err := b.Pay(t.Context(), request("1"), "k1")
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if again, err := b.Pay(t.Context(), request("1"), "k2"); err != nil || again.Gid != first.Gid || len(b.f.executed) != 1 {
			t.Errorf("%+v, %v", again, err)
		}
	}
	var p *Problem
	if _, err := b.Pay(t.Context(), request("2"), "k1"); !errors.As(err, &p) || p.Type != "/problems/key_reused" {
		t.Errorf("%v", err)
	}
}
