package dayend

import (
	"context"
	"crypto/sha256"
	"database/sql"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/lockstep-tx/lockstep/participants/payment"
	"github.com/lockstep-tx/lockstep/participants/sqldb"
	"github.com/lockstep-tx/lockstep/region/reconcile/channelfile"
)

// File is a channel's file that was loaded.
type File struct {
	Digest  string
	Channel string
	Kind    channelfile.Kind
	Day     string
	Part    int
	Name    string
	Lines   int64
	Bad     int64
	Sum     int64 // minor units
	CutMS   int64
	// Again says that this very file was loaded before: nothing was changed.
	Again bool
}

// RefusedError says what is wrong with a file: nothing of it was taken, and the same file is refused again.
type RefusedError struct{ err error }

func (e *RefusedError) Error() string { return e.err.Error() }
func (e *RefusedError) Unwrap() error { return e.err }

// refused is err as one of the file, unless it is of the machine: a file that could not be read to its end may be right.
func refused(ctx context.Context, err error) error {
	if of := (*fs.PathError)(nil); err == nil || ctx.Err() != nil || errors.As(err, &of) {
		return err
	}
	return &RefusedError{err}
}

const refusedSuffix = ".refused"

// SetAside gives a refused file of the inbox, and its signature, names under which they are not found again, so that Fetch
// brings what the channel puts in its place. It gives the file's new path.
func (b *Book) SetAside(path string) (string, error) {
	to := path + refusedSuffix
	err := os.Rename(path, to)
	if serr := os.Rename(path+channelfile.SignatureSuffix, path+channelfile.SignatureSuffix+refusedSuffix); !errors.Is(serr, fs.ErrNotExist) {
		err = errors.Join(err, serr)
	}
	return to, err
}

// IsAside says that a file of the inbox was set aside.
func IsAside(path string) bool { return strings.HasSuffix(path, refusedSuffix) }

// Load takes a file whole, once: its signature and control totals are right, its lines are sorted on disk, its bad lines are
// cases; all that or nothing. The same file again changes nothing. Another file for the same day and part is a *Conflict; a *RefusedError
// says what is wrong with a file.
func (b *Book) Load(ctx context.Context, m *channelfile.Mapping, path string) (*File, error) {
	f := &File{Channel: m.Channel, Kind: m.Kind, Name: filepath.Base(path)}
	var err error
	if f.Day, f.Part, err = m.DayOf(f.Name); err != nil {
		return nil, &RefusedError{err}
	}
	if f.Digest, err = m.Verify(path); err != nil {
		return nil, refused(ctx, err)
	}
	has, err := b.loaded(ctx, f)
	if err != nil {
		return nil, err
	}
	if has != nil && exists(b.sortedPath(f.Digest)) && exists(b.filePath(f.Digest)) {
		return has, nil
	}
	bad, err := b.sorted(ctx, m, path, f)
	if err != nil {
		return nil, refused(ctx, err)
	}
	if has != nil { // its sorted lines were lost; they are what they were
		return has, nil
	}
	return f, b.enter(ctx, f, bad)
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

func (b *Book) sortedPath(digest string) string { return filepath.Join(b.Dir, "sorted", digest) }
func (b *Book) filePath(digest string) string   { return filepath.Join(b.Dir, "files", digest) }

const fileColumns = "digest, channel, kind, day, part, name, line_count, bad_count, amount_sum, cut_ms"

func (f *File) scan(row interface{ Scan(...any) error }) error {
	return row.Scan(&f.Digest, &f.Channel, &f.Kind, &f.Day, &f.Part, &f.Name, &f.Lines, &f.Bad, &f.Sum, &f.CutMS)
}

// loaded gives the file if it was loaded, or a *Conflict if another one stands in its place.
func (b *Book) loaded(ctx context.Context, f *File) (*File, error) {
	has := &File{Again: true}
	err := has.scan(b.DB.QueryRowContext(ctx, b.Dialect.Q("SELECT "+fileColumns+" FROM recon_file WHERE channel = ? AND kind = ? AND day = ? AND part = ?"), f.Channel, string(f.Kind), f.Day, f.Part))
	if err == nil && (has.Digest == f.Digest || has.Digest == f.ofItsDay()) {
		f.Digest = has.Digest
		return has, nil
	}
	if err == nil {
		return nil, &Conflict{"name", fmt.Sprintf("%s: part %d of %s %s of day %s is loaded already, as %s with the digest %.12s; this file has %.12s. Nothing was changed: ask the channel which of the two holds",
			f.Name, f.Part, f.Channel, f.Kind, f.Day, has.Name, has.Digest, f.Digest)}
	}
	if !errors.Is(err, sql.ErrNoRows) {
		return nil, err
	}
	err = has.scan(b.DB.QueryRowContext(ctx, b.Dialect.Q("SELECT "+fileColumns+" FROM recon_file WHERE digest = ?"), f.Digest))
	if err == nil && has.Lines == 0 && has.Bad == 0 {
		f.Digest = f.ofItsDay()
		return nil, nil
	}
	if err == nil {
		return nil, &Conflict{"name", fmt.Sprintf("%s: the very same file was loaded as %s, for part %d of %s %s of day %s; the channel sent a day twice", f.Name, has.Name, has.Part, has.Channel, has.Kind, has.Day)}
	}
	if errors.Is(err, sql.ErrNoRows) {
		err = nil
	}
	return nil, err
}

// ofItsDay is the identity of a file without a line: where its frame does not name the day, every such day's is the same to the byte.
func (f *File) ofItsDay() string {
	sum := sha256.Sum256(fmt.Appendf(nil, "%s %s %s %s %d", f.Digest, f.Channel, f.Kind, f.Day, f.Part))
	return hex.EncodeToString(sum[:])
}

// sorted reads the file, sorts its lines on disk, and keeps the file for its lines to be shown.
func (b *Book) sorted(ctx context.Context, m *channelfile.Mapping, path string, f *File) (bad []channelfile.Bad, err error) {
	in, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer in.Close()
	s, err := newSorter(b.sortedPath(f.Digest))
	if err != nil {
		return nil, err
	}
	row := Row{Part: f.Part}
	totals, err := m.Read(in, func(l *channelfile.Line) error {
		if l.Number%65536 == 0 && ctx.Err() != nil {
			return ctx.Err()
		}
		rowOf(m.Kind, l, &row)
		return s.add(&row)
	}, func(x channelfile.Bad) error { bad = append(bad, x); return nil })
	if err == nil && totals.Day != "" && totals.Day != f.Day {
		err = fmt.Errorf("day: the file says %s and its name %s", totals.Day, f.Day)
	}
	cut, cerr := m.CutOf(f.Day)
	if err = errors.Join(err, cerr); err != nil {
		s.abandon()
		return nil, fmt.Errorf("%s: %w", f.Name, err)
	}
	f.Lines, f.Bad, f.Sum, f.CutMS = totals.Lines, totals.Bad, totals.Sum, cut.UnixMilli()
	if totals.CutMS != 0 {
		if d := time.UnixMilli(totals.CutMS).Sub(cut).Abs(); d > 24*time.Hour {
			s.abandon()
			return nil, fmt.Errorf("%s: cut: the file says %s, %s from the mapping's day_cut; it is another day's", f.Name, time.UnixMilli(totals.CutMS).UTC().Format(time.RFC3339), d)
		}
		f.CutMS = totals.CutMS
	}
	if err := keep(path, b.filePath(f.Digest)); err != nil {
		s.abandon()
		return nil, err
	}
	return bad, s.finish()
}

// rowOf is a line as it is compared.
func rowOf(kind channelfile.Kind, l *channelfile.Line, r *Row) {
	r.Amount, r.Currency, r.State, r.AtMS, r.Line, r.Offset = l.Amount, l.Currency, l.State, l.TimeMS, l.Number, l.Offset
	switch kind {
	case channelfile.Business:
		if r.Key = l.Payment; r.Key == "" {
			r.Key = payment.PaymentID(l.Merchant, l.OrderNo)
		}
		if l.Refund != "" {
			r.Key += "/" + l.Refund
		}
	case channelfile.Funds:
		r.Key, r.State = SumKey(l.Currency, l.Merchant), channelfile.Paid
	case channelfile.Bill:
		r.Key, r.State = EntryKey(l.Account, l.Transfer, l.Debit), channelfile.Paid
	}
}

// keep copies a file, or links it, which costs nothing.
func keep(from, to string) error {
	if exists(to) || os.Link(from, to) == nil {
		return nil
	}
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.CreateTemp(filepath.Dir(to), ".keeping-*")
	if err != nil {
		return err
	}
	defer os.Remove(out.Name())
	_, err = io.Copy(out, in)
	if err = errors.Join(err, out.Sync(), out.Close()); err != nil {
		return err
	}
	return os.Rename(out.Name(), to)
}

// enter writes the file and its bad lines down, in one transaction: from here on it is loaded.
func (b *Book) enter(ctx context.Context, f *File, bad []channelfile.Bad) error {
	return sqldb.InTx(ctx, b.DB, func(tx *sql.Tx) error {
		now := b.Now().UnixMilli()
		if _, err := tx.ExecContext(ctx, b.Dialect.Q("INSERT INTO recon_file ("+fileColumns+", loaded_ms) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"),
			f.Digest, f.Channel, string(f.Kind), f.Day, f.Part, clip(f.Name, 255), f.Lines, f.Bad, f.Sum, f.CutMS, now); err != nil {
			return err
		}
		for _, x := range bad {
			fd := Finding{Class: BadLine, Status: StatusOpen, Line: x.Number, Raw: clip(x.Text, 2000), File: f.Name, Text: x.Why, Part: f.Part}
			fd.identify(of{f.Channel, f.Kind, f.Day}, fmt.Sprint(f.Part, ":", x.Number))
			if err := b.put(ctx, tx, &fd, now); err != nil {
				return err
			}
		}
		return b.audit(ctx, tx, "lockstep recon", "load", fmt.Sprintf("%s: %s, %d lines, %d bad, digest %s", of{f.Channel, f.Kind, f.Day}, f.Name, f.Lines, f.Bad, f.Digest))
	})
}

// Files are the loaded files of a day, by part.
func (b *Book) Files(ctx context.Context, channel string, kind channelfile.Kind, day string) ([]File, error) {
	rows, err := b.DB.QueryContext(ctx, b.Dialect.Q("SELECT "+fileColumns+" FROM recon_file WHERE channel = ? AND kind = ? AND day = ? ORDER BY part"), channel, string(kind), day)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var out []File
	for rows.Next() {
		var f File
		if err := f.scan(rows); err != nil {
			return nil, err
		}
		out = append(out, f)
	}
	return out, rows.Err()
}

// IsLoaded says whether a file of this name was loaded.
func (b *Book) IsLoaded(ctx context.Context, m *channelfile.Mapping, name string) (bool, error) {
	var n int
	err := b.DB.QueryRowContext(ctx, b.Dialect.Q("SELECT count(*) FROM recon_file WHERE channel = ? AND kind = ? AND name = ?"), m.Channel, string(m.Kind), name).Scan(&n)
	return n > 0, err
}
