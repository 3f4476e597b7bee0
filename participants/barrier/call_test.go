package barrier_test

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/lockstep-tx/lockstep/participants/barrier"
)

// The numbers are FNV-1a-64 % 1024 from the reference vectors of the FNV authors: they are on the wire and in databases, and may never
// change.
func TestSlotOf(t *testing.T) {
	const a, foobar, offset = 0xaf63dc4c8601ec8c % 1024, 0x85944171f73967e8 % 1024, 0xcbf29ce484222325 % 1024
	for gid, want := range map[string]int{
		"": offset, "a": a, "foobar": foobar,
		"{a}one": a, "two{a}": a, "x{a}y{b}": a, "{foobar}rest": foobar, "{a{b}": barrier.SlotOf("a{b"),
	} {
		if got := barrier.SlotOf(gid); got != want {
			t.Errorf("slot of %q is %d, want %d", gid, got, want)
		}
	}
	for _, whole := range []string{"{}x", "{x", "x}", "}x{"} {
		if barrier.SlotOf(whole) == barrier.SlotOf("x") {
			t.Errorf("%q has no tag, yet shares the slot of x", whole)
		}
	}
}

func TestFromHTTP(t *testing.T) {
	r := httptest.NewRequest(http.MethodPost, "/try?tenant=7&gid=%7Bc42%7Dt1&trans_type=tcc&branch_id=0102&op=try", nil)
	slot := barrier.SlotOf("c42")
	r.Header.Set("lockstep-slot", itoa(slot))
	r.Header.Set("lockstep-epoch", "12")
	r.Header.Set("lockstep-account-slot", "9")
	r.Header.Set("lockstep-account-epoch", "3")
	got, err := barrier.FromHTTP(r)
	if err != nil {
		t.Fatal(err)
	}
	want := barrier.Call{TransType: "tcc", Gid: "{c42}t1", BranchID: "0102", Op: "try",
		Fence: barrier.Fence{Slot: slot, Epoch: 12}, Account: barrier.Fence{Slot: 9, Epoch: 3}}
	if *got != want {
		t.Errorf("got %+v, want %+v", *got, want)
	}
}

func TestFromMetadata(t *testing.T) {
	got, err := barrier.FromMetadata(map[string][]string{"dtm-gid": {"g"}, "dtm-trans_type": {"saga"}, "dtm-branch_id": {"01"},
		"dtm-op": {"action"}, "lockstep-slot": {itoa(barrier.SlotOf("g"))}, "lockstep-epoch": {"2"}})
	if err != nil {
		t.Fatal(err)
	}
	want := barrier.Call{TransType: "saga", Gid: "g", BranchID: "01", Op: "action", Fence: barrier.Fence{Slot: barrier.SlotOf("g"), Epoch: 2}}
	if *got != want {
		t.Errorf("got %+v, want %+v", *got, want)
	}
}

func TestCallsThatCannotBeAreInvalid(t *testing.T) {
	good := "gid=g&trans_type=tcc&branch_id=01&op=try"
	own := itoa(barrier.SlotOf("g"))
	for _, tc := range []struct {
		name, query string
		header      map[string]string
	}{
		{"no gid", "trans_type=tcc&branch_id=01&op=try", nil},
		{"no op", "gid=g&trans_type=tcc&branch_id=01", nil},
		{"no type", "gid=g&branch_id=01&op=try", nil},
		{"no branch", "gid=g&trans_type=tcc&op=try", nil},
		{"long gid", "trans_type=tcc&branch_id=01&op=try&gid=" + strings.Repeat("g", 129), nil},
		{"broken query", "gid=%zz", nil},
		{"epoch without slot", good, map[string]string{"Lockstep-Epoch": "1"}},
		{"slot without epoch", good, map[string]string{"Lockstep-Slot": own}},
		{"epoch zero", good, map[string]string{"Lockstep-Slot": own, "Lockstep-Epoch": "0"}},
		{"epoch in words", good, map[string]string{"Lockstep-Slot": own, "Lockstep-Epoch": "one"}},
		{"epoch too large", good, map[string]string{"Lockstep-Slot": own, "Lockstep-Epoch": "9223372036854775808"}},
		{"slot of another gid", good, map[string]string{"Lockstep-Slot": itoa((barrier.SlotOf("g") + 1) % 1024), "Lockstep-Epoch": "1"}},
		{"slot 1024", good, map[string]string{"Lockstep-Account-Slot": "1024", "Lockstep-Account-Epoch": "1"}},
	} {
		r := httptest.NewRequest(http.MethodPost, "/x", nil)
		r.URL.RawQuery = tc.query
		for k, v := range tc.header {
			r.Header.Set(k, v)
		}
		if _, err := barrier.FromHTTP(r); !errors.Is(err, barrier.ErrInvalid) {
			t.Errorf("%s: %v", tc.name, err)
		}
	}
}

// A call that was built by hand is checked as one from the wire.
func TestDoRefusesAnInvalidCall(t *testing.T) {
	onEach(t, func(t *testing.T, d barrier.Dialect) {
		c := newCounter(t, d)
		if _, err := c.b.Do(context.Background(), &barrier.Call{Gid: "g"}, c.effect("x")); !errors.Is(err, barrier.ErrInvalid) {
			t.Fatal(err)
		}
	})
}

func FuzzFromHTTP(f *testing.F) {
	f.Add("gid=g&trans_type=tcc&branch_id=01&op=try", "1", "1")
	f.Add("gid=%7B%7D&trans_type=&op=%00", "-1", "99999999999999999999")
	f.Fuzz(func(t *testing.T, query, slot, epoch string) {
		r := httptest.NewRequest(http.MethodGet, "/", nil)
		r.URL.RawQuery = query
		r.Header[barrier.HeaderSlot], r.Header[barrier.HeaderEpoch] = []string{slot}, []string{epoch}
		call, err := barrier.FromHTTP(r)
		switch {
		case err != nil && !errors.Is(err, barrier.ErrInvalid):
			t.Fatal(err)
		case err == nil && (call.Gid == "" || call.Op == "" || call.Fence.Epoch < 0 || call.Fence.Slot < 0 || call.Fence.Slot >= barrier.SlotCount):
			t.Fatalf("%+v passed", call)
		}
	})
}

// What one database cannot store, or takes for another id, is no id anywhere.
func TestCheckID(t *testing.T) {
	for value, ok := range map[string]bool{
		"r": true, "r 1": true, "ä": true, strings.Repeat("x", 8): true, "\u00a0x": false,
		"": false, strings.Repeat("x", 9): false, "r ": false, " r": false, "r\t": false, "r\n2": false, "r\x00": false, "\xff": false,
	} {
		err := barrier.CheckID("refund_no", value, 8)
		if (err == nil) != ok || !ok && (!errors.Is(err, barrier.ErrInvalid) || !strings.Contains(err.Error(), "refund_no")) {
			t.Errorf("%q: %v", value, err)
		}
	}
}
