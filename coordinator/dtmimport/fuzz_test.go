package dtmimport

import (
	"encoding/json"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/lockstep-tx/lockstep/coordinator/record"
	"github.com/lockstep-tx/lockstep/coordinator/txn"
)

// FuzzConvert: whatever stands in DTM's tables, nothing panics: it is a state that keeps every rule, that a record carries
// to the letter and that the core goes on with, or an error of this one transaction. What DTM decided stays decided.
func FuzzConvert(f *testing.F) {
	add := func(g global, rows []row, lossy bool) {
		rawG, err := json.Marshal(g)
		if err != nil {
			f.Fatal(err)
		}
		rawR, err := json.Marshal(rows)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(rawG, rawR, lossy)
	}
	for _, status := range []string{prepared, submitted, aborting, succeed} {
		add(globalOf("tcc", status), rowsOf("01 confirm prepared", "01 cancel prepared", "02 confirm succeed", "02 cancel prepared"), false)
		add(globalOf("xa", status), rowsOf("01 commit prepared", "01 rollback succeed"), false)
		add(globalOf("saga", status), rowsOf("01 compensate prepared", "01 action succeed", "02 compensate prepared", "02 action prepared"), true)
		add(globalOf("msg", status), rowsOf("01 action prepared", "02 action succeed"), false)
		add(globalOf("workflow", status), rowsOf("01 action succeed"), false)
	}
	concurrent := globalOf("saga", submitted)
	concurrent.CustomData = `{"concurrent":true,"orders":{"1":[0],"0":[1]}}`
	add(concurrent, rowsOf("01 compensate prepared", "01 action succeed", "02 compensate prepared", "02 action prepared"), false)
	wide := globalOf("msg", prepared)
	wide.Options, wide.QueryPrepared, wide.CustomData = `{"timeout_to_fail":9223372036854775807}`, "http://q", `{"delay":18446744073709551615}`
	add(wide, rowsOf("01 action prepared"), false)
	f.Fuzz(func(t *testing.T, rawG, rawR []byte, lossy bool) {
		var g global
		var rows []row
		if json.Unmarshal(rawG, &g) != nil || json.Unmarshal(rawR, &rows) != nil {
			return
		}
		now := time.UnixMilli(1_000_000)
		g.Created = now.Add(-time.Minute)
		s, err := convert(&g, rows, lossy, now)
		if err != nil {
			if err.Error() == "" {
				t.Error("the refusal says nothing")
			}
			return
		}
		if err := txn.Check(&s); err != nil {
			t.Fatalf("a bad state: %v", err)
		}
		if s.BegunAt > now.UnixMilli() || (g.Status == aborting && s.Phase.Decided() && s.Phase.Commit()) ||
			(g.Status == submitted && (s.Mode == txn.ModeTCC || s.Mode == txn.ModeXA || s.Mode == txn.ModeMsg) && s.Phase != txn.PhaseCommitting) {
			t.Errorf("DTM says %s of a %s, begun %d: %+v", g.Status, g.TransType, s.BegunAt, s)
		}
		raw, err := (&Transaction{Gid: g.Gid, State: s}).Record()
		if err != nil {
			return // it is too large, and says so
		}
		tx, err := record.Decode(raw)
		if err != nil {
			t.Fatalf("its record cannot be read: %v", err)
		}
		if d := cmp.Diff(s, tx.State, cmpopts.EquateEmpty(), cmpopts.IgnoreFields(txn.OpState{}, "NextAt", "InFlight")); d != "" {
			t.Errorf("its record differs (-converted +read):\n%s", d)
		}
		next := txn.Reloaded(tx.State)
		for _, ev := range []txn.Event{txn.Tick{At: now.UnixMilli() + 3_600_000}, txn.Retry{At: now.UnixMilli() + 3_600_001}} {
			after, _, err := txn.Step(next, ev)
			if err != nil {
				continue
			}
			if err := txn.Check(&after); err != nil {
				t.Fatalf("it goes on into a bad state: %v", err)
			}
			next = after
		}
	})
}

// FuzzDecodeRedis: what stands in Redis is a transaction by the gid of its key, or one that says why it cannot be read.
func FuzzDecodeRedis(f *testing.F) {
	for _, s := range []string{`{`, `null`, `{}`, `{"gid":"g","status":"prepared","trans_type":"tcc","create_time":"2026-11-22T07:00:00Z"}`, `{"gid":"h","status":"prepared"}`, `{"gid":"g","status":"succeed"}`, `{"gid":"g","create_time":7}`, `[1]`} {
		f.Add("g", s)
	}
	f.Fuzz(func(t *testing.T, gid, text string) {
		got, isOpen := decodeRedis(gid, text)
		if isOpen && got.Gid != gid {
			t.Errorf("%q was read as %q", gid, got.Gid)
		}
		if got.err != nil && got.err.Error() == "" {
			t.Error("the error says nothing")
		}
		var plain struct{ Status string }
		if json.Unmarshal([]byte(text), &plain) != nil && (!isOpen || got.err == nil) {
			t.Errorf("%q was passed over", text)
		}
	})
}
