// Package dayend compares what a payment channel's files say of a day with our own books, and sees every difference through
// to its end.
//
// The law it keeps (G9): the channel's file is the authority for what left the house, and is taken whole or not at all, once.
// Ours only (long, 长款) is reversed automatically, once, the reversal's id first; theirs only (short, 短款) is a case that a
// person ends by booking the missing order; a differing amount or state is a case and an alarm. A lost answer (掉单) is asked
// for, never decided here. What straddles the day cut waits in the suspense pool for the next day's file. A bad line is a
// case of its own, and while one is open nothing of its channel is reversed: it may be the line that is missed. Every step
// can be killed and repeated.
//
// It is tested on SQLite, PostgreSQL and MariaDB: by random books and files with planted differences, all of which must be
// found and nothing else; by kills in the middle; and through the command.
package dayend

import (
	"context"
	"crypto/sha256"
	"database/sql"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/lockstep-tx/lockstep/participants/barrier"
	"github.com/lockstep-tx/lockstep/participants/sqldb"
	"github.com/lockstep-tx/lockstep/region/reconcile/channelfile"
)

// Book is where reconciliation keeps what it knows: its tables, and a directory for the channel's files and their sorted lines.
// Safe for concurrent use but for runs of the same day.
type Book struct {
	DB      *sql.DB
	Dialect sqldb.Dialect
	Dir     string
	// Now is time.Now but in tests.
	Now func() time.Time
}

// Open opens the database that address names, makes its tables, and the directory. The caller closes the database.
func Open(ctx context.Context, address, dir string) (*Book, error) {
	db, d, err := sqldb.Open(ctx, address)
	if err != nil {
		return nil, err
	}
	b := &Book{DB: db, Dialect: d, Dir: dir, Now: time.Now}
	for _, sub := range []string{"inbox", "files", "sorted", "work"} {
		err = errors.Join(err, os.MkdirAll(filepath.Join(dir, sub), 0o700))
	}
	if err == nil {
		err = b.migrate(ctx)
	}
	if err != nil {
		return nil, errors.Join(err, db.Close())
	}
	b.sweep()
	return b, nil
}

// sweep removes what processes that were killed have left half written. A day is more than any of them takes; what cannot be
// removed harms nobody.
func (b *Book) sweep() {
	for _, pattern := range []string{"*/.[fks]*-*", "work/*"} {
		left, _ := filepath.Glob(filepath.Join(b.Dir, pattern)) // the pattern is good
		for _, path := range left {
			if st, err := os.Stat(path); err == nil && b.Now().Sub(st.ModTime()) > 24*time.Hour {
				_ = os.Remove(path)
			}
		}
	}
}

// Inbox is where files are fetched to.
func (b *Book) Inbox() string { return filepath.Join(b.Dir, "inbox") }

func (b *Book) migrate(ctx context.Context) error {
	err := b.Dialect.Migrate(ctx, b.DB,
		`CREATE TABLE IF NOT EXISTS recon_file (
			digest varchar(64) PRIMARY KEY,
			channel varchar(32) NOT NULL,
			kind varchar(10) NOT NULL,
			day varchar(8) NOT NULL,
			part int NOT NULL,
			name varchar(255) NOT NULL,
			line_count bigint NOT NULL,
			bad_count bigint NOT NULL,
			amount_sum bigint NOT NULL,
			cut_ms bigint NOT NULL,
			loaded_ms bigint NOT NULL,
			UNIQUE (channel, kind, day, part))`,
		`CREATE TABLE IF NOT EXISTS recon_run (
			channel varchar(32) NOT NULL,
			kind varchar(10) NOT NULL,
			day varchar(8) NOT NULL,
			from_ms bigint NOT NULL,
			to_ms bigint NOT NULL,
			ours bigint NOT NULL,
			theirs bigint NOT NULL,
			matched bigint NOT NULL,
			from_pool bigint NOT NULL,
			to_pool bigint NOT NULL,
			compared_ms bigint NOT NULL,
			PRIMARY KEY (channel, kind, day))`,
		`CREATE TABLE IF NOT EXISTS recon_finding (
			id varchar(40) PRIMARY KEY,
			channel varchar(32) NOT NULL,
			kind varchar(10) NOT NULL,
			day varchar(8) NOT NULL,
			class varchar(20) NOT NULL,
			status varchar(10) NOT NULL CHECK (status IN ('due', 'open', 'ended')),
			body text NOT NULL,
			outcome varchar(1000) NOT NULL DEFAULT '',
			who varchar(200) NOT NULL DEFAULT '',
			attempts int NOT NULL DEFAULT 0,
			found_ms bigint NOT NULL,
			ended_ms bigint NOT NULL DEFAULT 0)`,
		"CREATE INDEX IF NOT EXISTS recon_finding_by_day ON recon_finding (channel, kind, day, id)",
		"CREATE INDEX IF NOT EXISTS recon_finding_by_status ON recon_finding (status, id)",
		// The suspense pool: what waits for the other side. left_day is the day on which the other side came, or on which it
		// became a finding; '' while it waits.
		`CREATE TABLE IF NOT EXISTS recon_pool (
			channel varchar(32) NOT NULL,
			kind varchar(10) NOT NULL,
			id varchar(40) NOT NULL,
			pool_key varchar(300) NOT NULL,
			side varchar(6) NOT NULL CHECK (side IN ('ours', 'theirs')),
			ahead int NOT NULL,
			amount bigint NOT NULL,
			currency varchar(3) NOT NULL,
			state int NOT NULL,
			at_ms bigint NOT NULL,
			line_no bigint NOT NULL,
			line_offset bigint NOT NULL,
			part int NOT NULL,
			day varchar(8) NOT NULL,
			left_day varchar(8) NOT NULL,
			PRIMARY KEY (id))`,
		"CREATE INDEX IF NOT EXISTS recon_pool_by_left ON recon_pool (channel, kind, left_day)",
		// Each reversal, written before it is made.
		`CREATE TABLE IF NOT EXISTS recon_reversal (
			id varchar(64) PRIMARY KEY,
			finding varchar(40) NOT NULL,
			state varchar(10) NOT NULL CHECK (state IN ('begun', 'done')),
			outcome varchar(1000) NOT NULL DEFAULT '',
			begun_ms bigint NOT NULL,
			done_ms bigint NOT NULL DEFAULT 0)`,
		// What persons and runs did; each line's hash is over the one before it.
		`CREATE TABLE IF NOT EXISTS recon_audit (
			seq bigint PRIMARY KEY,
			at_ms bigint NOT NULL,
			who varchar(200) NOT NULL,
			act varchar(40) NOT NULL,
			text varchar(2000) NOT NULL,
			prev varchar(64) NOT NULL,
			hash varchar(64) NOT NULL)`)
	if err != nil {
		return fmt.Errorf("migrate reconciliation: %w", err)
	}
	return nil
}

// idOf names a fact: the same fact found again has the same id.
func idOf(parts ...string) string {
	h := sha256.New()
	for _, p := range parts {
		fmt.Fprintf(h, "%d:%s", len(p), p)
	}
	return hex.EncodeToString(h.Sum(nil)[:12])
}

// inserted writes a row unless it is there.
func (b *Book) inserted(ctx context.Context, tx *sql.Tx, into string, args ...any) (bool, error) {
	r, err := tx.ExecContext(ctx, b.Dialect.InsertNew(into), args...)
	if err != nil {
		return false, err
	}
	n, err := r.RowsAffected()
	return n == 1, err
}

// Conflict says that something stands already and is something else. Field names what.
type Conflict struct{ Field, Text string }

func (c *Conflict) Error() string { return c.Field + ": " + c.Text }

func clip(s string, n int) string {
	if r := []rune(s); len(r) > n {
		return string(r[:n-1]) + "…"
	}
	return s
}

// Entry is a line of the audit.
type Entry struct {
	Seq                        int64
	AtMS                       int64
	Who, Act, Text, Prev, Hash string
}

func (e Entry) sum() string {
	h := sha256.New()
	for _, s := range []string{fmt.Sprint(e.Seq), fmt.Sprint(e.AtMS), e.Who, e.Act, e.Text, e.Prev} {
		fmt.Fprintf(h, "%d:%s", len(s), s)
	}
	return hex.EncodeToString(h.Sum(nil))
}

// audit appends a line in the transaction of the act itself: neither is there without the other.
func (b *Book) audit(ctx context.Context, tx *sql.Tx, who, act, text string) error {
	lock := " FOR UPDATE"
	if b.Dialect.Dialect == barrier.SQLite {
		lock = ""
	}
	e := Entry{AtMS: b.Now().UnixMilli(), Who: clip(who, 200), Act: act, Text: clip(text, 2000)}
	err := tx.QueryRowContext(ctx, b.Dialect.Q("SELECT seq, hash FROM recon_audit ORDER BY seq DESC LIMIT 1"+lock)).Scan(&e.Seq, &e.Prev)
	if err != nil && !errors.Is(err, sql.ErrNoRows) {
		return err
	}
	e.Seq++
	e.Hash = e.sum()
	_, err = tx.ExecContext(ctx, b.Dialect.Q("INSERT INTO recon_audit (seq, at_ms, who, act, text, prev, hash) VALUES (?, ?, ?, ?, ?, ?, ?)"), e.Seq, e.AtMS, e.Who, e.Act, e.Text, e.Prev, e.Hash)
	return err
}

// Audit reads the audit, and says at which line its chain is broken: 0 where it is whole.
func (b *Book) Audit(ctx context.Context) (lines []Entry, broken int64, err error) {
	rows, err := b.DB.QueryContext(ctx, "SELECT seq, at_ms, who, act, text, prev, hash FROM recon_audit ORDER BY seq")
	if err != nil {
		return nil, 0, err
	}
	defer rows.Close()
	prev := ""
	for rows.Next() {
		var e Entry
		if err := rows.Scan(&e.Seq, &e.AtMS, &e.Who, &e.Act, &e.Text, &e.Prev, &e.Hash); err != nil {
			return nil, 0, err
		}
		if broken == 0 && (e.Prev != prev || e.Hash != e.sum() || e.Seq != int64(len(lines)+1)) {
			broken = e.Seq
		}
		prev = e.Hash
		lines = append(lines, e)
	}
	return lines, broken, rows.Err()
}

// of is what every table names a day by.
type of struct {
	channel string
	kind    channelfile.Kind
	day     string
}

func (o of) String() string { return fmt.Sprintf("%s %s %s", o.channel, o.kind, o.day) }
