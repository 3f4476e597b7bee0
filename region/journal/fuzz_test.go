package journal

import (
	"database/sql"
	"errors"
	"math"
	"strconv"
	"strings"
	"testing"

	"github.com/lockstep-tx/lockstep/coordinator/record"
	"github.com/lockstep-tx/lockstep/coordinator/txn"
	"github.com/lockstep-tx/lockstep/region/journal/sample"
)

// FuzzCursor: a cursor is an id that a listing gave, or it is refused as the client's mistake.
func FuzzCursor(f *testing.F) {
	for _, s := range []string{"", "0", "7", "-1", "+7", "9223372036854775807", "9223372036854775808", "1e3", " 7", "j:7"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		below, err := parseCursor(text)
		var te *txn.Error
		switch {
		case err != nil:
			if !errors.As(err, &te) || te.Code != txn.CodeInvalid || te.Text == "" {
				t.Errorf("%q: %v", text, err)
			}
		case below < 0 || text == "" && below != math.MaxInt64:
			t.Errorf("%q begins below %d", text, below)
		case text != "":
			if again, err := parseCursor(strconv.FormatInt(below, 10)); err != nil || again != below {
				t.Errorf("%q was read as %d, then as %d (%v)", text, below, again, err)
			}
		}
	})
}

// FuzzRow: a row is the transaction that its columns name, or it is corrupt and the error names the gid; nothing panics.
// The transaction can be written again.
func FuzzRow(f *testing.F) {
	var m sample.Maker
	for _, p := range []sample.Payment{{Gid: "g", BegunAt: 5}, {Gid: "g", BegunAt: 5, Abort: true}, {Gid: "g", BegunAt: 5, Decided: true}} {
		r := m.Row(p)
		f.Add([]byte(r.Gid), uint8(r.Mode), uint8(r.Phase), 2, r.Closed, r.Progress, r.Decision.Chain[:], r.BegunAt, int64(r.Decision.Seq))
		f.Add([]byte("h"), uint8(r.Mode), uint8(r.Phase), 1, r.Closed, r.Progress, r.Decision.Chain[:], r.BegunAt, int64(r.Decision.Seq))
		f.Add([]byte("g"), uint8(r.Mode), uint8(txn.PhaseAborted), 1, r.Closed, r.Progress, []byte{1}, r.BegunAt, int64(0))
	}
	f.Add([]byte("g"), uint8(txn.ModeSaga), uint8(txn.PhaseCommitted), 0, []byte(nil), []byte(nil), []byte(nil), int64(5), int64(1))
	f.Add([]byte("g"), uint8(9), uint8(txn.PhasePrepared), 0, []byte(nil), []byte(nil), []byte(nil), int64(5), int64(1))
	f.Add([]byte("g"), uint8(txn.ModeSaga), uint8(txn.PhaseCommitted), 0, []byte(nil), []byte(nil), []byte(nil), int64(0), int64(1))
	f.Fuzz(func(t *testing.T, gid []byte, mode, phase uint8, body int, closed, progress, chain []byte, at, seq int64) {
		var s stored
		err := s.scan(func(into ...any) error {
			for i, v := range []any{int64(1), gid, 3, mode, phase, at, at, sql.NullInt64{Int64: at, Valid: true}, sql.NullInt64{Int64: seq, Valid: true},
				sql.NullInt64{Int64: 1, Valid: true}, chain, sql.NullInt64{}, sql.NullInt64{}, []byte(nil), body, closed, progress} {
				switch p := into[i].(type) {
				case *int64:
					*p = v.(int64)
				case *int:
					*p = v.(int)
				case *uint8:
					*p = v.(uint8)
				case *[]byte:
					*p = v.([]byte)
				case *sql.NullInt64:
					*p = v.(sql.NullInt64)
				default:
					t.Fatalf("column %d is scanned into a %T", i, p)
				}
			}
			return nil
		})
		var tx *record.Tx
		if err == nil {
			tx, err = s.tx()
		}
		if err != nil {
			if !errors.Is(err, record.ErrCorrupt) || !strings.Contains(err.Error(), strconv.Quote(string(gid))) {
				t.Errorf("the error is %v", err)
			}
			return
		}
		st := &tx.State
		if string(st.Gid) != string(gid) || uint8(st.Mode) != mode || uint8(st.Phase) != phase {
			t.Errorf("the row of %q, %d, %d was read as %+v", gid, mode, phase, st)
		}
		if body == 0 {
			return // nothing is left of it to write again
		}
		if err := txn.Check(st); err != nil {
			t.Errorf("the row was read into a bad state: %v", err)
		}
		raw, err := tx.Encode()
		if err != nil {
			t.Fatalf("what was read cannot be written: %v", err)
		}
		if again, err := record.Decode(raw); err != nil || again.State.Gid != st.Gid || again.State.Phase != st.Phase {
			t.Errorf("what was written is read as %+v (%v)", again, err)
		}
	})
}
