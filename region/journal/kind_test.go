package journal

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"github.com/lockstep-tx/lockstep/coordinator/engine"
	"github.com/lockstep-tx/lockstep/coordinator/txn"
	"github.com/lockstep-tx/lockstep/region/journal/sample"
)

// A filter by phase or mode reads the rows it gives and no others, wherever they lie and however few they are: the
// rows between are not looked at. What is asked of the database shows it, not a clock.
func TestASparseFilterLooksAtNoOtherRows(t *testing.T) {
	for name, fresh := range databases {
		t.Run(name, func(t *testing.T) {
			j := open(t, fresh(t))
			var m sample.Maker
			var rows []engine.Row
			for i := range 3000 {
				p := sample.Payment{Gid: txn.Gid(fmt.Sprintf("k%05d", i)), BegunAt: begin + int64(i)}
				p.Abort = i == 3 || i == 1700
				if i == 5 || i == 2000 {
					p.Mode = txn.ModeXA
				}
				rows = append(rows, m.Row(p))
			}
			mustAppend(t, j, rows...)
			defer func(w int64) { window = w }(window)
			window = 1 // a walk through the ids would take a query per row at first
			for _, tc := range []struct {
				f    engine.Filter
				want string
			}{
				{engine.Filter{Slot: -1, Phases: []txn.Phase{txn.PhaseAborted}}, "k01700 k00003"},
				{engine.Filter{Slot: -1, Mode: txn.ModeXA}, "k02000 k00005"},
				{engine.Filter{Slot: -1, Mode: txn.ModeXA, Phases: []txn.Phase{txn.PhaseAborted}}, ""},
				{engine.Filter{Slot: -1, Mode: txn.ModeSaga}, ""},
				{engine.Filter{Slot: -1, Mode: txn.ModeXA, BegunBefore: begin + 100}, "k00005"},
			} {
				l := &listing{j: j, below: 1 << 60, want: 50, kinds: kindsOf(&tc.f)}
				l.match, _ = matching(&tc.f, 0)
				done, err := l.byKind(context.Background())
				if err != nil || !done {
					t.Fatalf("%+v: done %v, %v", tc.f, done, err)
				}
				txs, _, err := j.List(context.Background(), tc.f, "", 49, 0)
				if err != nil {
					t.Fatal(err)
				}
				var got, listed []string
				for _, s := range l.found {
					tx, err := s.tx()
					if err != nil {
						t.Fatal(err)
					}
					got = append(got, string(tx.State.Gid))
				}
				for _, tx := range txs {
					listed = append(listed, string(tx.State.Gid))
				}
				if strings.Join(got, " ") != tc.want || strings.Join(listed, " ") != tc.want {
					t.Errorf("%+v: found %v, listed %v, want %s", tc.f, got, listed, tc.want)
				}
			}
		})
	}
}
