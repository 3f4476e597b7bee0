package books_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/lockstep-tx/lockstep/participants/payment"
	"github.com/lockstep-tx/lockstep/region/reconcile/channelfile"
	"github.com/lockstep-tx/lockstep/region/reconcile/dayend"
)

var noon = on(20, "12:00:00")

// Random books and files with planted differences: each is found, as what it is, and nothing besides.
func TestEveryPlantedDifferenceIsFoundAndNoneBesides(t *testing.T) {
	for seed := range uint64(12) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			w, rng := onSQLite(t), rand.New(rand.NewPCG(seed, 7))
			want, lines, pool, matched := map[string]string{}, []string{}, 0, 0
			for i := range 40 {
				no, amount, at := fmt.Sprint(i), int64(100+rng.IntN(900)), on(20, fmt.Sprintf("%02d:%02d:00", rng.IntN(21), rng.IntN(60)))
				switch rng.IntN(9) {
				case 0:
					w.pay(at, no, amount)
					want[no] = "long/ended"
				case 1:
					lines = append(lines, line(no, amount, "SUCCESS", at))
					want[no] = "short/open"
				case 2:
					w.pay(at, no, amount)
					lines = append(lines, line(no, amount+1, "SUCCESS", at))
					want[no] = "amount/open"
				case 3:
					w.pay(at, no, amount)
					lines = append(lines, line(no, amount, "FAIL", at))
					want[no] = "state/open"
				case 4:
					w.c.phase = 0
					p := w.pay(at, no, amount)
					w.c.knows[p.Gid], w.c.phase = commit, commit
					lines = append(lines, line(no, amount, "SUCCESS", at))
					want[no] = "lost-answer/ended"
				case 5:
					w.pay(on(20, "21:45:00"), no, amount)
					pool++
				case 6:
					w.pay(at, no, amount)
					lines = append(lines, line(no, amount, "SUCCESS", at), line(no, amount, "SUCCESS", at))
					want[no] = "duplicate/open"
					matched++
				default:
					w.pay(at, no, amount)
					lines = append(lines, line(no, amount, "SUCCESS", at.Add(3*time.Second)))
					matched++
				}
			}
			rng.Shuffle(len(lines), func(i, j int) { lines[i], lines[j] = lines[j], lines[i] })
			r := w.day(20, lines...)
			w.want(20, want)
			if int(r.Matched) != matched || int(r.ToPool) != pool {
				t.Errorf("matched %d and %d into the pool, want %d and %d", r.Matched, r.ToPool, matched, pool)
			}
		})
	}
}

// What waits in the suspense pool and does not come on the next day either is long, and short.
func TestWhatStraddlesAndNeverComesIsADifference(t *testing.T) {
	w := onSQLite(t)
	w.pay(on(20, "21:50:00"), "1", 100)
	w.day(20, line("2", 200, "SUCCESS", on(20, "21:50:00")))
	w.want(20, map[string]string{})
	w.day(21)
	w.want(21, map[string]string{"1": "long/ended", "2": "short/open"})
}

// What the channel has not decided on the day after either is no proof that it was not paid: a person's, never reversed.
func TestWhatTheChannelLeavesUndecidedIsNotReversed(t *testing.T) {
	w := onSQLite(t)
	noon := on(20, "12:00:00")
	w.pay(noon, "1", 100)
	w.day(20, line("1", 100, "PENDING", noon))
	w.want(20, map[string]string{})
	w.day(21, line("1", 100, "PENDING", noon))
	w.want(21, map[string]string{"1": "state/open"})
	if p, err := w.s.Get(t.Context(), payment.PaymentID("m", "1")); err != nil || p.Refunded != 0 {
		t.Errorf("it was given back: %+v, %v", p, err)
	}
}

// The reversed original is refused when it comes late, here and from the channel.
func TestTheLateOriginalIsRefusedAfterAReversal(t *testing.T) {
	w := onSQLite(t)
	w.pay(noon, "1", 100)
	w.day(20)
	w.want(20, map[string]string{"1": "long/ended"})
	w.now = on(21, "09:00:00")
	again := order("1", 100)
	again.Amount = 101 // another attempt
	var no *payment.Problem
	if _, err := w.s.Pay(t.Context(), again, "new-key"); !errors.As(err, &no) {
		t.Fatalf("%v", err)
	}
	began := w.c.began
	w.day(21, line("1", 100, "SUCCESS", on(20, "22:30:00")))
	w.want(21, map[string]string{"1": "late-original/open"})
	if w.c.began != began {
		t.Error("the late original moved money")
	}
	rev, err := w.b.Reversals(t.Context())
	if err != nil || len(rev) != 1 || rev[0].State != "done" || !strings.HasPrefix(rev[0].ID, "recon-") {
		t.Errorf("%+v, %v", rev, err)
	}
}

// A bad line is reported with its number and text, and while it is open nothing is reversed: it may be the one that is missed.
func TestABadLineIsACaseAndHoldsReversals(t *testing.T) {
	w := onSQLite(t)
	w.pay(noon, "1", 100)
	w.day(20, "m,1,,1.00,CNY,UNHEARD OF,2026-11-20 12:00:00", "m,2,,1.5,CNY,SUCCESS,2026-11-20 12:00:00")
	got := w.found(20)
	if got["1"] != "long/due" || got[" line 3"] != "bad-line/open" || got[" line 4"] != "bad-line/open" {
		t.Fatalf("%v", got)
	}
	if p, err := w.s.Get(t.Context(), payment.PaymentID("m", "1")); err != nil || p.Refunded != 0 {
		t.Fatalf("it was reversed: %+v, %v", p, err)
	}
	if held, err := w.b.Held(t.Context(), "acme", channelfile.Business); err != nil || held == "" {
		t.Fatalf("%q, %v", held, err)
	}
	for _, f := range w.cases() {
		if f.Class == dayend.BadLine {
			if !strings.Contains(f.Raw, "2026-11-20") || !strings.HasPrefix(f.Text, "state: ") && !strings.HasPrefix(f.Text, "amount: ") {
				t.Errorf("%+v", f)
			}
			if _, err := w.b.Settle(t.Context(), f.ID, "ann", "the channel says it was a test"); err != nil {
				t.Fatal(err)
			}
		}
	}
	w.run(20)
	if got := w.found(20); got["1"] != "long/ended" {
		t.Fatalf("%v", got)
	}
}

// The same file twice changes nothing, another one in its place is refused, and a file that was cut short gives nothing.
func TestAFileIsTakenWholeAndOnce(t *testing.T) {
	w := onSQLite(t)
	ctx := t.Context()
	path := w.file(20, line("1", 100, "SUCCESS", noon))
	if f, err := w.b.Load(ctx, w.m, path); err != nil || f.Again || f.Lines != 1 {
		t.Fatalf("%+v, %v", f, err)
	}
	if f, err := w.b.Load(ctx, w.m, path); err != nil || !f.Again {
		t.Fatalf("%+v, %v", f, err)
	}
	var other *dayend.Conflict
	if _, err := w.b.Load(ctx, w.m, w.file(20, line("1", 101, "SUCCESS", noon))); !errors.As(err, &other) {
		t.Fatalf("another file in its place: %v", err)
	}
	short := w.file(21, line("1", 100, "SUCCESS", noon), line("2", 100, "SUCCESS", noon))
	raw, err := os.ReadFile(short)
	if err != nil {
		t.Fatal(err)
	}
	for cut := range len(raw) - 1 { // the last byte is the trailer's end of line
		if err := os.WriteFile(short, raw[:cut], 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := w.b.Load(ctx, w.m, short); err == nil {
			t.Fatalf("a file of %d of %d bytes was taken: %q", cut, len(raw), raw[:cut])
		}
	}
	if files, err := w.b.Files(ctx, "acme", channelfile.Business, "20261121"); err != nil || len(files) != 0 {
		t.Fatalf("%v, %v", files, err)
	}
	left, err := filepath.Glob(filepath.Join(w.b.Dir, "*", ".*"))
	if err != nil || len(left) > 0 {
		t.Fatalf("left over: %q, %v", left, err)
	}
}

// A day is compared after its end, with all its files, and after the day before it.
func TestADayIsNotComparedBeforeItsTime(t *testing.T) {
	w := onSQLite(t)
	ready := func(day string, field string) {
		t.Helper()
		_, _, err := w.b.Run(t.Context(), w.m, w.our, day, dayend.Options{})
		var not *dayend.NotReadyError
		if !errors.As(err, &not) || not.Field != field {
			t.Fatalf("%v, want it not ready for %s", err, field)
		}
	}
	w.pay(noon, "1", 100)
	ready("20261120", "file")
	if _, err := w.b.Load(t.Context(), w.m, w.file(20)); err != nil {
		t.Fatal(err)
	}
	w.now = on(20, "22:00:30")
	ready("20261120", "day")
	w.day(20)
	if _, err := w.b.Load(t.Context(), w.m, w.file(22)); err != nil {
		t.Fatal(err)
	}
	w.now = on(22, "22:02:00")
	ready("20261122", "day")
}

// A file of another day would have everything reversed: past a number of differences nothing is done at all.
func TestTooManyDifferencesChangeNothing(t *testing.T) {
	w := onSQLite(t)
	for i := range 5 {
		w.pay(noon, fmt.Sprint(i), 100)
	}
	w.now = on(20, "22:02:00")
	if _, err := w.b.Load(t.Context(), w.m, w.file(20)); err != nil {
		t.Fatal(err)
	}
	_, _, err := w.b.Run(t.Context(), w.m, w.our, "20261120", dayend.Options{Max: 4})
	var many *dayend.TooManyError
	if !errors.As(err, &many) {
		t.Fatal(err)
	}
	w.want(20, map[string]string{})
	if r, res, err := w.b.Run(t.Context(), w.m, w.our, "20261120", dayend.Options{DryRun: true}); err != nil || r.Differences() != 5 || len(res.Findings) != 5 {
		t.Fatalf("%+v, %v", r, err)
	}
	w.want(20, map[string]string{}) // a dry run leaves nothing either
}

// killed answers for so many acts, and then is dead: the act is made, its answer lost.
type killed struct {
	dayend.Ours
	left int
}

var errKilled = errors.New("killed")

func (k *killed) Reverse(ctx context.Context, id, key string) (string, bool, error) {
	out, done, err := k.Ours.Reverse(ctx, id, key)
	if k.left--; k.left < 0 {
		return "", false, errKilled
	}
	return out, done, err
}

// A run that loses every answer after the first is repeated: each payment goes back once, each reversal is recorded once.
func TestARunThatWasKilledIsRepeated(t *testing.T) {
	w := onSQLite(t)
	for i := range 6 {
		w.pay(noon, fmt.Sprint(i), 100)
	}
	w.now = on(20, "22:02:00")
	if _, err := w.b.Load(t.Context(), w.m, w.file(20)); err != nil {
		t.Fatal(err)
	}
	if _, _, err := w.b.Run(t.Context(), w.m, &killed{w.our, 1}, "20261120", dayend.Options{}); !errors.Is(err, errKilled) {
		t.Fatal(err)
	}
	r := w.run(20)
	if r.Differences() != 0 || r.Ended[dayend.Long] != 6 {
		t.Fatalf("%+v", r)
	}
	for i := range 6 {
		if p, err := w.s.Get(t.Context(), payment.PaymentID("m", fmt.Sprint(i))); err != nil || p.Refunded != 100 {
			t.Fatalf("%+v, %v", p, err)
		}
	}
	if rev, err := w.b.Reversals(t.Context()); err != nil || len(rev) != 6 {
		t.Fatalf("%d reversals, %v", len(rev), err)
	}
}

// A reversal is on record before it is made.
func TestAReversalIsWrittenDownFirst(t *testing.T) {
	w := onSQLite(t)
	w.pay(noon, "1", 100)
	w.now = on(20, "22:02:00")
	if _, err := w.b.Load(t.Context(), w.m, w.file(20)); err != nil {
		t.Fatal(err)
	}
	_, _, err := w.b.Run(t.Context(), w.m, &killed{w.our, 0}, "20261120", dayend.Options{})
	rev, rerr := w.b.Reversals(t.Context())
	if !errors.Is(err, errKilled) || rerr != nil || len(rev) != 1 || rev[0].State != "begun" {
		t.Fatalf("%v, %+v, %v", err, rev, rerr)
	}
	if _, err := w.b.Settle(t.Context(), rev[0].Finding, "ann", "because"); err == nil {
		t.Fatal("a case whose reversal may have been made was settled")
	}
}

// A line of the audit that somebody altered is named.
func TestTheAuditNamesAnAlteredLine(t *testing.T) {
	w := onSQLite(t)
	w.pay(noon, "1", 100)
	w.day(20)
	if _, err := w.b.DB.Exec("UPDATE recon_audit SET who = 'somebody' WHERE seq = 2"); err != nil {
		t.Fatal(err)
	}
	if _, broken, err := w.b.Audit(t.Context()); err != nil || broken != 2 {
		t.Fatalf("%d, %v", broken, err)
	}
}

// What killed processes have left goes after a day; what one is writing now stays.
func TestHalfWrittenFilesAreRemovedAfterADay(t *testing.T) {
	dir := t.TempDir()
	old, fresh := filepath.Join(dir, "sorted", ".sorting-1"), filepath.Join(dir, "inbox", ".fetch-1")
	for path, at := range map[string]time.Time{old: time.Now().Add(-25 * time.Hour), fresh: time.Now()} {
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o700), os.WriteFile(path, nil, 0o600), os.Chtimes(path, at, at)); err != nil {
			t.Fatal(err)
		}
	}
	b, err := dayend.Open(t.Context(), "sqlite:"+filepath.Join(dir, "recon.db"), dir)
	if err != nil {
		t.Fatal(err)
	}
	defer b.DB.Close()
	if _, err := os.Stat(old); err == nil {
		t.Error("an old one is still there")
	}
	if _, err := os.Stat(fresh); err != nil {
		t.Error("one that is being written is gone")
	}
}

// An original and its reversal that come at the same moment: whichever is first, nothing stands in the end.
func TestAReversalAndItsOriginalAtOnceLeaveNothing(t *testing.T) { theRace(onSQLite(t)) }

func theRace(w *world) {
	ctx := w.t.Context()
	w.now = noon
	for i := range 25 {
		no := fmt.Sprint("race", i)
		rev := payment.ReversalRequest{Merchant: "m", OrderNo: no, ReversalNo: "v"}
		var both sync.WaitGroup
		both.Go(func() { _, _ = w.s.Pay(ctx, order(no, 100), "") }) // refused, paid or failed: what stands is looked at below
		both.Go(func() { _, _ = w.s.Reverse(ctx, rev) })
		both.Wait()
		r, err := w.s.Reverse(ctx, rev)
		if err != nil || r.State != payment.ReversalDone {
			w.t.Fatalf("%+v, %v", r, err)
		}
		p, err := w.s.Get(ctx, r.Payment)
		if err != nil || p.State == payment.Processing || p.State == payment.Paid && p.Refunded != p.Amount {
			w.t.Fatalf("%+v, %v", p, err)
		}
	}
}
