package dayend

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/lockstep-tx/lockstep/participants/sqldb"
	"github.com/lockstep-tx/lockstep/region/reconcile/channelfile"
)

// Grace is how long after the day cut a day can be compared: until then an answer of before the cut may be on its way into
// the books.
const Grace = time.Minute

// Run is the reconciliation of a day.
type Run struct {
	Channel  string           `json:"channel"`
	Kind     channelfile.Kind `json:"kind"`
	Day      string           `json:"day"`
	FromMS   int64            `json:"from_ms"`
	ToMS     int64            `json:"to_ms"`
	Ours     int64            `json:"ours"`
	Theirs   int64            `json:"theirs"`
	Matched  int64            `json:"matched"`
	FromPool int64            `json:"from_pool"`
	ToPool   int64            `json:"to_pool"`
	// Standing are the findings that are not ended, by class.
	Standing map[Class]int `json:"standing"`
	Ended    map[Class]int `json:"ended"`
}

// Differences is how many findings stand.
func (r *Run) Differences() (n int) {
	for _, k := range r.Standing {
		n += k
	}
	return n
}

// NotReadyError says why a day cannot be compared yet.
type NotReadyError struct{ Field, Text string }

func (e *NotReadyError) Error() string { return e.Field + ": " + e.Text }

// Options of a run.
type Options struct {
	DryRun bool
	// Max differences, after which the run ends without having changed anything. Defaults to 100,000.
	Max int
	// acted is called before each act; tests end the run there.
	acted func() error
}

// Run compares a day and does what follows from it: lost answers are asked for, what is long is reversed. A run that was killed
// is repeated; a day that was compared is not compared again, what is due of it is gone on with. A dry run changes nothing,
// and its Result says what would be found.
func (b *Book) Run(ctx context.Context, m *channelfile.Mapping, ours Ours, day string, o Options) (*Run, *Result, error) {
	at := of{m.Channel, m.Kind, day}
	if o.Max == 0 {
		o.Max = 100_000
	}
	done, err := b.run(ctx, at)
	if err != nil {
		return nil, nil, err
	}
	var res *Result
	if done == nil {
		if done, res, err = b.compare(ctx, m, ours, at, o); err != nil {
			return nil, nil, err
		}
		if o.DryRun {
			for _, f := range res.Findings {
				done.count(f)
			}
			return done, res, nil
		}
		if err := b.commit(ctx, done, res); err != nil {
			return nil, nil, err
		}
	}
	if !o.DryRun {
		err = b.act(ctx, ours, m.Channel, m.Kind, o)
	}
	return done, res, errors.Join(err, b.tally(ctx, done))
}

func (r *Run) count(f Finding) {
	if r.Standing == nil {
		r.Standing, r.Ended = map[Class]int{}, map[Class]int{}
	}
	if f.Status == StatusEnded {
		r.Ended[f.Class]++
	} else {
		r.Standing[f.Class]++
	}
}

func (b *Book) tally(ctx context.Context, r *Run) error {
	r.Standing, r.Ended = map[Class]int{}, map[Class]int{}
	return b.Each(ctx, Filter{Channel: r.Channel, Kind: r.Kind, Day: r.Day}, func(f Finding) error { r.count(f); return nil })
}

// RunOf reads a day's run; nil where the day was not compared.
func (b *Book) RunOf(ctx context.Context, channel string, kind channelfile.Kind, day string) (*Run, error) {
	r, err := b.run(ctx, of{channel, kind, day})
	if err == nil && r != nil {
		err = b.tally(ctx, r)
	}
	return r, err
}

// LastRun reads the run of the last day that was compared of a channel's kind; nil where none was.
func (b *Book) LastRun(ctx context.Context, channel string, kind channelfile.Kind) (*Run, error) {
	var day sql.NullString
	err := b.DB.QueryRowContext(ctx, b.Dialect.Q("SELECT max(day) FROM recon_run WHERE channel = ? AND kind = ?"), channel, string(kind)).Scan(&day)
	if err != nil || !day.Valid {
		return nil, err
	}
	return b.RunOf(ctx, channel, kind, day.String)
}

func (b *Book) run(ctx context.Context, at of) (*Run, error) {
	r := &Run{Channel: at.channel, Kind: at.kind, Day: at.day}
	err := b.DB.QueryRowContext(ctx, b.Dialect.Q("SELECT from_ms, to_ms, ours, theirs, matched, from_pool, to_pool FROM recon_run WHERE channel = ? AND kind = ? AND day = ?"), at.channel, string(at.kind), at.day).
		Scan(&r.FromMS, &r.ToMS, &r.Ours, &r.Theirs, &r.Matched, &r.FromPool, &r.ToPool)
	if errors.Is(err, sql.ErrNoRows) {
		return nil, nil
	}
	return r, err
}

// period finds what a day is, and refuses one that cannot be compared.
func (b *Book) period(ctx context.Context, m *channelfile.Mapping, at of) (r *Run, files []File, first bool, err error) {
	if files, err = b.Files(ctx, at.channel, at.kind, at.day); err != nil {
		return nil, nil, false, err
	}
	if len(files) != m.Parts {
		return nil, nil, false, &NotReadyError{"file", fmt.Sprintf("%d of the %d files of %s are loaded; without them everything of ours would be taken for long", len(files), m.Parts, at)}
	}
	r = &Run{Channel: at.channel, Kind: at.kind, Day: at.day, ToMS: files[0].CutMS}
	for _, f := range files {
		if f.CutMS != r.ToMS {
			return nil, nil, false, &NotReadyError{"cut", fmt.Sprintf("the files of %s do not agree when the day ends", at)}
		}
	}
	if left := time.UnixMilli(r.ToMS).Add(Grace).Sub(b.Now()); left > 0 {
		return nil, nil, false, &NotReadyError{"day", fmt.Sprintf("%s ends at %s, %s from now", at, time.UnixMilli(r.ToMS).UTC().Format(time.RFC3339), left.Round(time.Second))}
	}
	before, err := inDays(at.day, -1)
	if err != nil {
		return nil, nil, false, err
	}
	prev, err := b.LastRun(ctx, at.channel, at.kind)
	if err != nil {
		return nil, nil, false, err
	}
	if prev == nil {
		cut, err := m.CutOf(before)
		r.FromMS = cut.UnixMilli()
		return r, files, true, err
	}
	if prev.Day != before {
		next, err := inDays(prev.Day, 1)
		return nil, nil, false, errors.Join(err, &NotReadyError{"day", fmt.Sprintf("the last day that was compared is %s: the next one is %s, not %s", prev.Day, next, at.day)})
	}
	r.FromMS = prev.ToMS
	return r, files, false, nil
}

// compare reads both sides and joins them. It writes nothing but its own temporary file.
func (b *Book) compare(ctx context.Context, m *channelfile.Mapping, ours Ours, at of, o Options) (*Run, *Result, error) {
	r, files, first, err := b.period(ctx, m, at)
	if err != nil {
		return nil, nil, err
	}
	pool, err := b.pool(ctx, at, o.Max)
	if err != nil {
		return nil, nil, err
	}
	work := filepath.Join(b.Dir, "work", strings.Join([]string{at.channel, string(at.kind), at.day, fmt.Sprint(os.Getpid())}, "-"))
	defer os.Remove(work)
	if err := b.sortOurs(ctx, ours, r, work); err != nil {
		return nil, nil, err
	}
	var closers []*os.File
	defer func() {
		for _, f := range closers {
			f.Close()
		}
	}()
	open := func(side string, paths ...string) (*merge, error) {
		sources := []source{&inMemory{pool[side]}}
		for _, path := range paths {
			f, runs, err := openSorted(path)
			if err != nil {
				return nil, err
			}
			closers = append(closers, f)
			sources = append(sources, runs...)
		}
		return newMerge(sources...)
	}
	var paths []string
	for _, f := range files {
		paths = append(paths, b.sortedPath(f.Digest))
	}
	theirs, err := open("theirs", paths...)
	if errors.Is(err, os.ErrNotExist) {
		err = &NotReadyError{"file", fmt.Sprintf("the sorted lines of %s are not in this directory (%v): load its files again here", at, err)}
	}
	if err != nil {
		return nil, nil, err
	}
	mine, err := open("ours", work)
	if err != nil {
		return nil, nil, err
	}
	res := &Result{}
	c := comparer{of: at, from: r.FromMS, to: r.ToMS, straddle: m.Straddle.Milliseconds(), first: first, max: o.Max, res: res}
	switch at.kind {
	case channelfile.Funds:
		c.straddled, err = b.straddled(ctx, at, ours)
	case channelfile.Bill:
		c.reversed, err = b.reversedKeys(ctx, at)
	}
	if err != nil {
		return nil, nil, err
	}
	if err := c.join(ctx, theirs, mine); err != nil {
		return nil, nil, err
	}
	if err := c.settleMissing(ctx, ours); err != nil {
		return nil, nil, err
	}
	for i := range res.Findings {
		b.locate(m, files, &res.Findings[i])
	}
	r.Ours, r.Theirs, r.Matched, r.FromPool, r.ToPool = res.Ours, res.Theirs, res.Matched, res.FromPool, res.ToPool
	return r, res, nil
}

func (b *Book) sortOurs(ctx context.Context, ours Ours, r *Run, path string) error {
	s, err := newSorter(path)
	if err != nil {
		return err
	}
	if err := ours.Each(ctx, r.FromMS, r.ToMS, s.add); err != nil {
		s.abandon()
		return fmt.Errorf("read our side: %w", err)
	}
	return s.finish()
}

// commit writes down what a comparison came to, in one transaction: the day is compared then, and what is due is owed.
func (b *Book) commit(ctx context.Context, r *Run, res *Result) error {
	at := of{r.Channel, r.Kind, r.Day}
	return sqldb.InTx(ctx, b.DB, func(tx *sql.Tx) error {
		now := b.Now().UnixMilli()
		fresh, err := b.inserted(ctx, tx, "INTO recon_run (channel, kind, day, from_ms, to_ms, ours, theirs, matched, from_pool, to_pool, compared_ms) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
			r.Channel, string(r.Kind), r.Day, r.FromMS, r.ToMS, r.Ours, r.Theirs, r.Matched, r.FromPool, r.ToPool, now)
		if err != nil || !fresh {
			return err // another process has compared it meanwhile
		}
		for i := range res.Findings {
			if err := b.put(ctx, tx, &res.Findings[i], now); err != nil {
				return err
			}
		}
		for _, id := range res.leave {
			if _, err := tx.ExecContext(ctx, b.Dialect.Q("UPDATE recon_pool SET left_day = ? WHERE id = ?"), r.Day, id); err != nil {
				return err
			}
		}
		for i := range res.enter {
			if err := b.suspend(ctx, tx, at, &res.enter[i]); err != nil {
				return err
			}
		}
		return b.audit(ctx, tx, "lockstep recon", "compare", fmt.Sprintf("%s: %d ours, %d theirs, %d matched, %d findings", at, r.Ours, r.Theirs, r.Matched, len(res.Findings)))
	})
}

// NextDay is the day that is to be compared next: the one after the last, or the first that has a file; "" where there is
// neither.
func (b *Book) NextDay(ctx context.Context, m *channelfile.Mapping) (string, error) {
	var last, first sql.NullString
	if err := b.DB.QueryRowContext(ctx, b.Dialect.Q("SELECT (SELECT max(day) FROM recon_run WHERE channel = ? AND kind = ?), (SELECT min(day) FROM recon_file WHERE channel = ? AND kind = ?)"),
		m.Channel, string(m.Kind), m.Channel, string(m.Kind)).Scan(&last, &first); err != nil {
		return "", err
	}
	if last.Valid {
		return inDays(last.String, 1)
	}
	return first.String, nil
}
