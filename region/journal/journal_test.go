package journal

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/lockstep-tx/lockstep/coordinator/engine"
	"github.com/lockstep-tx/lockstep/coordinator/record"
	"github.com/lockstep-tx/lockstep/coordinator/store/memstore"
	"github.com/lockstep-tx/lockstep/coordinator/txn"
	"github.com/lockstep-tx/lockstep/region/journal/journaltest"
	"github.com/lockstep-tx/lockstep/region/journal/sample"
	"github.com/lockstep-tx/lockstep/region/slot"
)

// databases gives the URL of a new, empty database of each kind that is tested; with the tag servers there are more.
var databases = map[string]func(t testing.TB) string{
	"sqlite": func(t testing.TB) string { return "sqlite:" + filepath.Join(t.TempDir(), "journal.db") },
}

func onEach(t *testing.T, run func(t *testing.T, url string)) {
	for name, fresh := range databases {
		t.Run(name, func(t *testing.T) { run(t, fresh(t)) })
	}
}

func open(t testing.TB, url string) *Journal {
	t.Helper()
	j, err := Open(context.Background(), url)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := j.Close(); err != nil {
			t.Error(err)
		}
	})
	return j
}

const begin = int64(1_760_000_000_000)

func payments(prefix string, n int) []engine.Row {
	var m sample.Maker
	rows := make([]engine.Row, n)
	for i := range rows {
		rows[i] = m.Row(sample.Payment{Gid: txn.Gid(fmt.Sprintf("%s%06d", prefix, i)), BegunAt: begin + int64(i), Abort: i%5 == 0})
	}
	return rows
}

func mustAppend(t testing.TB, j *Journal, rows ...engine.Row) {
	t.Helper()
	if err := j.Append(context.Background(), rows); err != nil {
		t.Fatal(err)
	}
}

func mustTrim(t *testing.T, j *Journal, bodies, rows int64, limit, want int) {
	t.Helper()
	n, err := j.Trim(context.Background(), bodies, rows, limit)
	if err != nil || n != want {
		t.Fatalf("Trim touched %d, %v; want %d", n, err, want)
	}
}

func TestJournalSuite(t *testing.T) {
	for name, fresh := range databases {
		t.Run(name, func(t *testing.T) {
			journaltest.Run(t, func(t *testing.T) func() engine.Journal {
				url := fresh(t)
				return func() engine.Journal { return open(t, url) }
			})
		})
	}
	t.Run("memory", func(t *testing.T) {
		journaltest.Run(t, func(*testing.T) func() engine.Journal {
			j := memstore.NewJournal()
			return func() engine.Journal { return j }
		})
	})
}

func TestTrimmedBodiesLeaveTheOutcome(t *testing.T) {
	onEach(t, func(t *testing.T, url string) {
		j := open(t, url)
		rows := payments("t", 1500)
		rows[3] = sample.Decision(rows[3]) // never trimmed, however old
		mustAppend(t, j, rows...)
		mustTrim(t, j, begin, begin, 100, 0)
		mid := begin + 20 + 1200 // payments take 20 ms
		mustTrim(t, j, mid, 0, 1, 1)
		mustTrim(t, j, mid, 0, 600, 600)
		mustTrim(t, j, mid, 0, 10_000, 598)
		mustTrim(t, j, mid, 0, 10_000, 0)
		for _, i := range []int{0, 1, 7, 1199} {
			got, err := j.Get(context.Background(), rows[i].Gid)
			if err != nil {
				t.Fatal(err)
			}
			want := &record.Tx{
				State: txn.State{
					Gid: rows[i].Gid, Mode: txn.ModeTCC, Phase: rows[i].Phase, BegunAt: rows[i].BegunAt, DecidedAt: rows[i].DecidedAt,
					FinishedAt: rows[i].FinishedAt, UpdatedAt: rows[i].FinishedAt,
				},
				Decision: rows[i].Decision, Finish: rows[i].Finish, DecisionEpoch: 1, FinishEpoch: 1, Trimmed: true,
			}
			if diff := cmp.Diff(got, want); diff != "" {
				t.Fatalf("row %d, got/want:\n%s", i, diff)
			}
		}
		for _, i := range []int{3, 1200, 1499} {
			if tx, err := j.Get(context.Background(), rows[i].Gid); err != nil || len(tx.State.Branches) != 2 {
				t.Fatalf("row %d: %+v, %v", i, tx, err)
			}
		}
		// A repeat of what was trimmed does not bring it back, and listings and gids go on.
		mustAppend(t, j, rows[:10]...)
		if tx, err := j.Get(context.Background(), rows[0].Gid); err != nil || tx.State.Branches != nil {
			t.Fatalf("%+v, %v", tx, err)
		}
		if got := listed(t, j, engine.Filter{Slot: -1}, 400, 0); len(got) != 1499 || got[0] != "t001499" || got[1498] != "t000000" {
			t.Fatalf("%d are listed", len(got))
		}
		if got := listed(t, j, engine.Filter{Slot: -1, Phases: []txn.Phase{txn.PhaseAborted}}, 400, mid-100); len(got) != 80 {
			t.Fatalf("%d aborted ones are visible, want 80", len(got))
		}
		if n := count(t, j); n != 1500 {
			t.Fatalf("%d gids, want 1500", n)
		}
	})
}

func TestTrimDropsWholeRows(t *testing.T) {
	onEach(t, func(t *testing.T, url string) {
		j := open(t, url)
		rows := payments("t", 1000)
		rows[0] = sample.Decision(rows[0])
		mustAppend(t, j, rows...)
		mustTrim(t, j, begin+20+300, 0, 10_000, 299)
		// The bodies of some are trimmed, of others not.
		mustTrim(t, j, begin+20+600, begin+20+400, 10, 10+10)
		mustTrim(t, j, begin+20+600, begin+20+400, 10_000, 389+200)
		if n := count(t, j); n != 601 {
			t.Fatalf("%d rows are left, want 601", n)
		}
		for i, want := range map[int]bool{0: true, 1: false, 399: false, 400: true, 999: true} {
			if tx, err := j.Get(context.Background(), rows[i].Gid); err != nil || (tx != nil) != want {
				t.Fatalf("row %d: %v, %v", i, tx, err)
			}
		}
		// Its decision goes on to its finish, and is listed where it always stood.
		var m sample.Maker
		mustAppend(t, j, m.Row(sample.Payment{Gid: rows[0].Gid, BegunAt: begin + 5000}))
		if got := listed(t, j, engine.Filter{Slot: -1}, 1000, 0); len(got) != 601 || got[600] != string(rows[0].Gid) {
			t.Fatalf("%d are listed", len(got))
		}
	})
}

func TestCoordinatorsTrimAndAppendAtOnce(t *testing.T) {
	onEach(t, func(t *testing.T, url string) {
		const total = 6000
		rows := payments("t", total)
		mustAppend(t, open(t, url), rows[:total/2]...)
		var wg sync.WaitGroup
		for w := range 3 {
			j := open(t, url)
			wg.Go(func() {
				for range 40 {
					if _, err := j.Trim(context.Background(), begin+4000, begin+2000, 100); err != nil {
						t.Errorf("trim: %v", err)
					}
				}
			})
			wg.Go(func() {
				for part := range slices.Chunk(rows[total/2+w*total/6:total/2+(w+1)*total/6], 50) {
					if err := j.Append(context.Background(), part); err != nil {
						t.Errorf("append: %v", err)
					}
				}
			})
		}
		wg.Wait()
		j := open(t, url)
		if _, err := j.Trim(context.Background(), begin+4000, begin+2000, total); err != nil {
			t.Fatal(err)
		}
		if n := count(t, j); n != total-1980 {
			t.Fatalf("%d rows are left, want %d", n, total-1980)
		}
	})
}

func TestSpaceOfTrimmedBodiesIsUsedAgain(t *testing.T) {
	j := open(t, databases["sqlite"](t))
	pages := func(pragma string) (n int) {
		if err := j.write.QueryRow("PRAGMA " + pragma).Scan(&n); err != nil {
			t.Fatal(err)
		}
		return n
	}
	rows := payments("a", 5000)
	for part := range slices.Chunk(rows, 1000) {
		mustAppend(t, j, part...)
	}
	used := pages("page_count")
	mustTrim(t, j, begin+1e6, 0, len(rows), len(rows))
	if free := pages("freelist_count"); free < used/2 {
		t.Errorf("of %d pages %d are free after every body was trimmed", used, free)
	}
}

func listed(t testing.TB, j *Journal, f engine.Filter, limit int, visibleSince int64) []string {
	t.Helper()
	var got []string
	for cursor := ""; ; {
		txs, next, err := j.List(context.Background(), f, cursor, limit, visibleSince)
		if err != nil {
			t.Fatal(err)
		}
		for _, tx := range txs {
			got = append(got, string(tx.State.Gid))
		}
		if next == "" {
			return got
		}
		cursor = next
	}
}

func count(t testing.TB, j *Journal) (n int) {
	t.Helper()
	if err := j.Gids(context.Background(), func(txn.Gid) { n++ }); err != nil {
		t.Fatal(err)
	}
	return n
}

func TestReopenedJournalHasEverything(t *testing.T) {
	onEach(t, func(t *testing.T, url string) {
		j, err := Open(context.Background(), url)
		if err != nil {
			t.Fatal(err)
		}
		rows := payments("p", 2500)
		mustAppend(t, j, rows...)
		if err := j.Close(); err != nil {
			t.Fatal(err)
		}
		if err := j.Append(context.Background(), rows); err == nil {
			t.Fatal("a closed journal takes rows")
		}
		j = open(t, url)
		if got := listed(t, j, engine.Filter{Slot: -1}, 1000, 0); len(got) != len(rows) || got[0] != "p002499" {
			t.Fatalf("%d are listed", len(got))
		}
		tx, err := j.Get(context.Background(), rows[1234].Gid)
		if err != nil || !slices.Equal(tx.Closed, rows[1234].Closed) || !slices.Equal(tx.Progress, rows[1234].Progress) {
			t.Fatalf("%+v, %v", tx, err)
		}
	})
}

// Rows whose bodies fill several statements of one SQL transaction.
func TestLargeBodiesAreWrittenAsAWhole(t *testing.T) {
	onEach(t, func(t *testing.T, url string) {
		j := open(t, url)
		rows := make([]engine.Row, 12)
		for i := range rows {
			gid := txn.Gid(fmt.Sprintf("big%02d", i))
			tx := record.Tx{State: txn.State{
				Gid: gid, Mode: txn.ModeTCC, Phase: txn.PhaseCommitted, BegunAt: 1, DecidedAt: 2, FinishedAt: 3,
				Branches: []txn.Branch{{ID: "01", Payload: slices.Repeat([]byte{0, '\'', '\\', 0xff}, 250_000), Two: txn.OpState{Status: txn.OpDone, Attempts: 1}}},
			}}
			if err := tx.Close(); err != nil {
				t.Fatal(err)
			}
			rows[i] = engine.Row{Gid: gid, Mode: txn.ModeTCC, Phase: txn.PhaseCommitted, BegunAt: 1, DecidedAt: 2, FinishedAt: 3,
				Closed: tx.Closed, Progress: tx.Progress, Decision: record.Head{Seq: 1}, Finish: record.Head{Seq: 2}}
		}
		mustAppend(t, j, rows...)
		for _, row := range rows {
			if tx, err := j.Get(context.Background(), row.Gid); err != nil || !slices.Equal(tx.Closed, row.Closed) {
				t.Fatalf("%s: %v", row.Gid, err)
			}
		}
	})
}

func TestUndecodableRowIsAnErrorThatNamesIt(t *testing.T) {
	onEach(t, func(t *testing.T, url string) {
		j := open(t, url)
		rows := payments("u", 6)
		mustAppend(t, j, rows...)
		for i, stmt := range []string{
			"UPDATE lockstep_journal SET closed = ? WHERE gid = ?",
			"UPDATE lockstep_journal SET progress = ? WHERE gid = ?",
			"UPDATE lockstep_journal SET finish_chain = ? WHERE gid = ?",
		} {
			if _, err := j.write.Exec(j.d.bind(stmt), []byte{0xff, 0xff}, []byte(rows[i].Gid)); err != nil {
				t.Fatal(err)
			}
		}
		// One transaction's bodies in another's row; a phase that the bodies do not bear out.
		if _, err := j.write.Exec(j.d.bind("UPDATE lockstep_journal SET closed = ?, progress = ? WHERE gid = ?"), rows[0].Closed, rows[0].Progress, []byte(rows[3].Gid)); err != nil {
			t.Fatal(err)
		}
		if _, err := j.write.Exec(j.d.bind("UPDATE lockstep_journal SET phase = 6 WHERE gid = ?"), []byte(rows[4].Gid)); err != nil {
			t.Fatal(err)
		}
		for i, row := range rows {
			tx, err := j.Get(context.Background(), row.Gid)
			if i == 5 {
				if err != nil {
					t.Error(err)
				}
				continue
			}
			if tx != nil || !errors.Is(err, record.ErrCorrupt) || !strings.Contains(err.Error(), string(row.Gid)) {
				t.Errorf("row %d: %+v, %v", i, tx, err)
			}
			_, _, err = j.List(context.Background(), engine.Filter{Slot: -1, GidPrefix: string(row.Gid)}, "", 10, 0)
			if !errors.Is(err, record.ErrCorrupt) || !strings.Contains(err.Error(), string(row.Gid)) {
				t.Errorf("row %d, listed: %v", i, err)
			}
		}
	})
}

func TestAppendRefusesWhatIsNoRow(t *testing.T) {
	j := open(t, databases["sqlite"](t))
	good := payments("g", 1)[0]
	for name, spoil := range map[string]func(*engine.Row){
		"no gid":                     func(r *engine.Row) { r.Gid = "" },
		"a gid of 129 bytes":         func(r *engine.Row) { r.Gid = txn.Gid(strings.Repeat("x", 129)) },
		"a slot beyond the last":     func(r *engine.Row) { r.Slot = slot.Count },
		"no closed part":             func(r *engine.Row) { r.Closed = nil },
		"a finish without progress":  func(r *engine.Row) { r.Progress = nil },
		"progress without its event": func(r *engine.Row) { r.Finish = record.Head{} },
	} {
		bad := good
		spoil(&bad)
		if err := j.Append(context.Background(), []engine.Row{good, bad}); err == nil {
			t.Errorf("%s: taken", name)
		}
	}
	if n := count(t, j); n != 0 {
		t.Fatalf("%d rows are there", n)
	}
}

func TestCoordinatorsMigrateAtOnce(t *testing.T) {
	onEach(t, func(t *testing.T, url string) {
		var wg sync.WaitGroup
		for range 8 {
			wg.Go(func() {
				j, err := Open(context.Background(), url)
				if err != nil {
					t.Error(err)
					return
				}
				defer j.Close()
				if err := j.Append(context.Background(), payments("m", 3)); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if n := count(t, open(t, url)); n != 3 {
			t.Fatalf("%d rows", n)
		}
	})
}

func TestJournalOfANewerProgramIsRefused(t *testing.T) {
	onEach(t, func(t *testing.T, url string) {
		j := open(t, url)
		if _, err := j.write.Exec("INSERT INTO lockstep_journal_version (version, applied_at) VALUES (99, 0)"); err != nil {
			t.Fatal(err)
		}
		_, err := Open(context.Background(), url)
		if err == nil || !strings.Contains(err.Error(), "version 99") || !strings.Contains(err.Error(), "newer lockstep") {
			t.Fatal(err)
		}
	})
}

func TestSQLiteFileIsReadableForItsOwnerAlone(t *testing.T) {
	file := filepath.Join(t.TempDir(), "made", "journal with %20 and ? and #.db")
	mustAppend(t, open(t, "sqlite:"+file), payments("x", 1)...)
	for _, suffix := range []string{"", "-wal"} {
		info, err := os.Stat(file + suffix)
		if err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v", suffix, info, err)
		}
	}
}

func TestSQLiteSyncsEveryCommit(t *testing.T) {
	j := open(t, databases["sqlite"](t))
	var mode string
	var sync int
	if err := j.write.QueryRow("PRAGMA journal_mode").Scan(&mode); err != nil || mode != "wal" {
		t.Errorf("journal_mode %q, %v", mode, err)
	}
	if err := j.write.QueryRow("PRAGMA synchronous").Scan(&sync); err != nil || sync != 2 {
		t.Errorf("synchronous %d, %v", sync, err)
	}
	if _, err := j.read.Exec("DELETE FROM lockstep_journal"); err == nil {
		t.Error("a reader's connection writes")
	}
}

// Whatever way a page is found in, it is the same page: small windows and small indexes lead through all of them.
func TestEveryWayOfListingGivesTheSame(t *testing.T) {
	onEach(t, func(t *testing.T, url string) {
		j := open(t, url)
		rows := payments("w", 1200)
		// Some were decided early and finished late, so that ids and finishing times disagree.
		for i := range rows {
			if i%10 == 0 {
				mustAppend(t, j, sample.Decision(rows[i]))
			}
		}
		for part := range slices.Chunk(rows, 500) {
			mustAppend(t, j, part...)
		}
		mustTrim(t, j, begin+400, 0, 10_000, 380)
		defer func(w, x, m int64) { window, indexed, windowsMax = w, int(x), m }(window, int64(indexed), windowsMax)
		for _, f := range []engine.Filter{
			{Slot: -1}, {Slot: -1, GidPrefix: "w0010"}, {Slot: -1, Phases: []txn.Phase{txn.PhaseAborted}}, {Slot: 5}, {Slot: -1, BegunAfter: begin + 1000},
		} {
			for _, since := range []int64{0, begin + 200, begin + 1100, begin + 99_999} {
				window, indexed, windowsMax = 20_000, 20_000, 1_000_000
				want := listed(t, j, f, 5000, since)
				for _, limits := range [][3]int64{{10, 5, 40}, {10, 5, 1 << 40}, {100, 20_000, 1 << 40}, {1, 0, 1}} {
					window, indexed, windowsMax = limits[0], int(limits[1]), limits[2]
					for _, limit := range []int{11, 300} {
						if diff := cmp.Diff(listed(t, j, f, limit, since), want); diff != "" {
							t.Fatalf("%+v since %d, bounds %v, pages of %d, got/want:\n%s", f, since-begin, limits, limit, diff)
						}
					}
				}
			}
		}
	})
}

func TestContextEndsReads(t *testing.T) {
	onEach(t, func(t *testing.T, url string) {
		j := open(t, url)
		mustAppend(t, j, payments("x", 10)...)
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		_, getErr := j.Get(ctx, "x000001")
		_, _, listErr := j.List(ctx, engine.Filter{Slot: -1}, "", 10, 0)
		_, trimErr := j.Trim(ctx, begin+1e9, 0, 10)
		for name, err := range map[string]error{"Get": getErr, "Gids": j.Gids(ctx, func(txn.Gid) {}), "List": listErr, "Trim": trimErr} {
			if !errors.Is(err, context.Canceled) {
				t.Errorf("%s: %v", name, err)
			}
		}
		if n := count(t, j); n != 10 {
			t.Fatal(n)
		}
	})
}
