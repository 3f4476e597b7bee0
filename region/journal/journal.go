// Package journal keeps a region's SQL record of every decided and finished transaction: engine.Journal on SQLite
// (beside an embedded etcd), PostgreSQL and MariaDB or MySQL (shared by the region's coordinators).
//
// The law it keeps: what Append acknowledged is durable, a finish is never undone, and a batch is there as a whole or
// not at all. It has one row per transaction, unique by gid; the row's ascending id is the order of listings. gids are
// compared byte by byte on every server.
//
// The hot path is Append, and it is bound by CPU. One row costs about 12 us on SQLite: single-row statements, prepared
// once, in one SQL transaction (the driver finds a statement's n parameters in n² steps, so that statements of many
// rows are slower), and a write-ahead log of 64 MB, in which a page that is written often goes to the file once.
//
// It is tested by journaltest on all three, by kills in the middle of batches, and by its own tests of trimming,
// listing and errors.
package journal

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/lockstep-tx/lockstep/coordinator/engine"
	"github.com/lockstep-tx/lockstep/coordinator/record"
	"github.com/lockstep-tx/lockstep/coordinator/txn"
	"github.com/lockstep-tx/lockstep/region/slot"
)

// Journal is an engine.Journal in an SQL database. Make one with Open. Safe for concurrent use.
type Journal struct {
	where string
	d     *dialect
	// write and read are one pool on a server. On SQLite write has one connection, so that writers of this process
	// queue in order instead of polling the file's lock.
	write, read *sql.DB
	insert      *sql.Stmt // SQLite's
	// sortUntil is the time (unix ms) until which Append goes through its rows by gid.
	sortUntil atomic.Int64
	// own is the index of the journal's region, as an Applier was told; 0 before.
	own      atomic.Int64
	appended atomic.Pointer[func([]engine.Row, []record.Event)]
}

var _ engine.Journal = (*Journal)(nil)

// Open connects to a journal and makes or upgrades its tables; several coordinators may do so at once. The address is
//
//	sqlite:/path/file.db
//	postgres://user:password@host:port/database?…
//	mysql://user:password@host:port/database?…   (mariadb:// is the same)
//
// SQLite's path is taken as it stands, and its directory is made if it is missing. PostgreSQL takes libpq's options.
// For TLS both servers take sslmode (disable, prefer, require, verify-ca, verify-full; default prefer, and verify-full
// on MySQL where sslrootcert is given), sslrootcert, sslcert and sslkey (PEM files). MySQL also takes socket=/path.
//
// A server that acknowledges before it has synced (fsync off, innodb_flush_log_at_trx_commit 0 or 2) is refused, for
// the coordinator forgets what the journal has acknowledged; durability=server in the URL accepts it. PostgreSQL's
// synchronous_commit=off is switched on for the journal's own connections.
//
// No error shows the password.
func Open(ctx context.Context, url string) (*Journal, error) {
	a, err := parseAddress(url)
	if err != nil {
		return nil, err
	}
	j := &Journal{where: a.where}
	switch {
	case a.postgres != nil:
		err = j.openPostgres(ctx, a)
	case a.mysql != nil:
		err = j.openMySQL(ctx, a)
	default:
		err = j.openSQLite(ctx, a)
	}
	if err == nil {
		err = j.migrate(ctx)
	}
	if err == nil {
		err = j.probe(ctx)
	}
	if err == nil && a.file != "" {
		if j.insert, err = j.write.PrepareContext(ctx, sqliteInsert); err != nil {
			err = fmt.Errorf("journal at %s: %w", j.where, err)
		}
	}
	if err != nil {
		_ = j.Close()
		return nil, err
	}
	return j, nil
}

// Close ends all connections. On SQLite it takes the write-ahead log into the file.
func (j *Journal) Close() error {
	var errs []error
	if j.insert != nil {
		errs = append(errs, j.insert.Close())
	}
	if j.read != nil && j.read != j.write {
		errs = append(errs, j.read.Close())
	}
	if j.write != nil {
		errs = append(errs, j.write.Close()) // the last connection of a SQLite file checkpoints it
	}
	return errors.Join(errs...)
}

// probe finds missing rights now and not at the first transaction: statements that touch no row still need theirs.
func (j *Journal) probe(ctx context.Context) error {
	for _, p := range []struct{ right, stmt string }{
		{"read", "SELECT count(*) FROM lockstep_journal WHERE id = -1"},
		{"insert into", "INSERT INTO lockstep_journal (" + columns + ") SELECT " + columns + " FROM lockstep_journal WHERE id = -1"},
		{"update", "UPDATE lockstep_journal SET slot = slot WHERE id = -1"},
		{"delete from", "DELETE FROM lockstep_journal WHERE id = -1"},
	} {
		if _, err := j.write.ExecContext(ctx, p.stmt); err != nil {
			return fmt.Errorf("journal at %s: cannot %s the table lockstep_journal; the coordinator needs SELECT, INSERT, UPDATE and DELETE on it: %w", j.where, p.right, err)
		}
	}
	return nil
}

// columns that Append writes, in the order of every statement's parameters.
const columns = "gid, slot, mode, phase, begun_at, decided_at, finished_at, decision_seq, decision_epoch, decision_chain, " +
	"finish_seq, finish_epoch, finish_chain, closed, progress"

// columnNames without the gid, which never changes.
var columnNames = strings.Split(columns, ", ")[1:]

// Append is engine.Journal's. Deadlocks and serialization errors are retried, since it is idempotent: eight times,
// after 2 ms, 4 ms, 8 ms … 250 ms, each ±50 %.
func (j *Journal) Append(ctx context.Context, rows []engine.Row) error {
	batch, err := distinct(rows)
	if err != nil || len(batch) == 0 {
		return err
	}
	err = j.retry(ctx, func(attempt int) error {
		// Two coordinators that go through the same gids in one order do not wait for each other in a circle. That
		// costs the order of arrival, which is that of listings, and happens only when slots move: so it is done once a
		// deadlock showed the need, and for as long as such a move lasts. PostgreSQL takes a second to see a deadlock.
		if attempt == 1 {
			j.sortUntil.Store(time.Now().Add(time.Minute).UnixMilli())
		}
		if attempt == 1 || attempt == 0 && j.sortUntil.Load() > time.Now().UnixMilli() {
			slices.SortFunc(batch, func(a, b *engine.Row) int { return strings.Compare(string(a.Gid), string(b.Gid)) })
		}
		return j.d.insert(ctx, j, batch)
	})
	if err != nil {
		return fmt.Errorf("append %d rows to the journal at %s: %w", len(rows), j.where, err)
	}
	if f := j.appended.Load(); f != nil {
		(*f)(rows, nil)
	}
	return nil
}

// distinct checks rows and leaves one for each gid, the first or the first with a finish: a statement may not touch a
// row twice on PostgreSQL.
func distinct(rows []engine.Row) ([]*engine.Row, error) {
	out := make([]*engine.Row, 0, len(rows))
	at := make(map[txn.Gid]int, len(rows))
	for i := range rows {
		row := &rows[i]
		switch {
		case row.Gid == "" || len(row.Gid) > txn.GidBytesMax:
			return nil, fmt.Errorf("journal: gid %q has %d bytes, not 1 to %d", string(row.Gid), len(row.Gid), txn.GidBytesMax)
		case row.Slot < 0 || row.Slot >= slot.Count:
			return nil, fmt.Errorf("journal: transaction %q is in slot %d of %d", string(row.Gid), row.Slot, slot.Count)
		case len(row.Closed) == 0:
			return nil, fmt.Errorf("journal: transaction %q has no closed part", string(row.Gid))
		case (row.Finish.Seq != 0) != (len(row.Progress) != 0):
			return nil, fmt.Errorf("journal: transaction %q has a finish number %d and a progress part of %d bytes", string(row.Gid), row.Finish.Seq, len(row.Progress))
		}
		n, ok := at[row.Gid]
		switch {
		case !ok:
			at[row.Gid] = len(out)
			out = append(out, row)
		case out[n].Finish.Seq == 0 && row.Finish.Seq != 0:
			out[n] = row
		}
	}
	return out, nil
}

// values of a row in the order of columns. Numbers above the signed range keep their bits.
func values(args []any, r *engine.Row) []any {
	args = append(args, []byte(r.Gid), int64(r.Slot), int64(r.Mode), int64(r.Phase), r.BegunAt, r.DecidedAt)
	finished := r.Finish.Seq != 0
	if finished {
		args = append(args, r.FinishedAt)
	} else {
		args = append(args, nil)
	}
	args = append(args, int64(r.Decision.Seq), int64(r.DecisionEpoch), chainOf(&r.Decision))
	if finished {
		args = append(args, int64(r.Finish.Seq), int64(r.FinishEpoch), chainOf(&r.Finish))
	} else {
		args = append(args, nil, nil, nil)
	}
	return append(args, r.Closed, r.Progress)
}

func chainOf(h *record.Head) []byte {
	if h.Seq == 0 {
		return nil
	}
	return h.Chain[:]
}

const attemptsMax = 9

// retry repeats work that another writer's work stopped.
func (j *Journal) retry(ctx context.Context, work func(attempt int) error) error {
	for attempt := 0; ; attempt++ {
		err := work(attempt)
		if err != nil && ctx.Err() != nil {
			return fmt.Errorf("%w (%w)", context.Cause(ctx), err)
		}
		if err == nil || attempt == attemptsMax-1 || !j.d.transient(err) {
			return err
		}
		pause := min(2*time.Millisecond<<attempt, 250*time.Millisecond)
		select {
		case <-time.After(pause/2 + rand.N(pause)):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

const selectRow = "SELECT id, gid, slot, mode, phase, begun_at, decided_at, finished_at, decision_seq, decision_epoch, decision_chain, " +
	"finish_seq, finish_epoch, finish_chain, body, closed, progress FROM lockstep_journal "

// stored is a row as it was read.
type stored struct {
	id         int64
	row        engine.Row
	body       int
	gid        []byte
	mode       uint8
	phase      uint8
	chains     [2][]byte
	seqs       [2]sql.NullInt64
	epochs     [2]sql.NullInt64
	finishedAt sql.NullInt64
}

func (s *stored) scan(scan func(...any) error) error {
	r := &s.row
	err := scan(&s.id, &s.gid, &r.Slot, &s.mode, &s.phase, &r.BegunAt, &r.DecidedAt, &s.finishedAt,
		&s.seqs[0], &s.epochs[0], &s.chains[0], &s.seqs[1], &s.epochs[1], &s.chains[1], &s.body, &r.Closed, &r.Progress)
	if err != nil {
		return err
	}
	r.Gid, r.Mode, r.Phase, r.FinishedAt = txn.Gid(s.gid), txn.Mode(s.mode), txn.Phase(s.phase), s.finishedAt.Int64
	for i, h := range []*record.Head{&r.Decision, &r.Finish} {
		h.Seq = uint64(s.seqs[i].Int64)
		if len(s.chains[i]) != 0 && len(s.chains[i]) != len(h.Chain) {
			return fmt.Errorf("transaction %q: %w: a chain has %d bytes", string(r.Gid), record.ErrCorrupt, len(s.chains[i]))
		}
		copy(h.Chain[:], s.chains[i])
	}
	r.DecisionEpoch, r.FinishEpoch = uint64(s.epochs[0].Int64), uint64(s.epochs[1].Int64)
	return nil
}

// tx makes the transaction; without bodies, what the row itself says of it.
func (s *stored) tx() (*record.Tx, error) {
	r := &s.row
	if s.body == 0 {
		if !r.Phase.Finished() || r.Mode < txn.ModeTCC || r.Mode > txn.ModeWorkflow {
			return nil, fmt.Errorf("transaction %q: %w: its bodies were trimmed in phase %s, mode %s", string(r.Gid), record.ErrCorrupt, r.Phase, r.Mode)
		}
		return &record.Tx{
			State: txn.State{
				Gid: r.Gid, Mode: r.Mode, Phase: r.Phase, BegunAt: r.BegunAt, DecidedAt: r.DecidedAt,
				FinishedAt: r.FinishedAt, UpdatedAt: r.FinishedAt,
			},
			Decision: r.Decision, Finish: r.Finish, DecisionEpoch: r.DecisionEpoch, FinishEpoch: r.FinishEpoch, Trimmed: true,
		}, nil
	}
	tx, err := record.FromParts(r.Closed, r.Progress, r.Decision, r.Finish, r.DecisionEpoch, r.FinishEpoch)
	switch {
	case err != nil:
		return nil, fmt.Errorf("transaction %q: %w", string(r.Gid), err)
	case tx.State.Gid != r.Gid:
		return nil, fmt.Errorf("transaction %q: %w: its row holds %q", string(r.Gid), record.ErrCorrupt, string(tx.State.Gid))
	case tx.State.Phase != r.Phase || tx.State.Mode != r.Mode:
		return nil, fmt.Errorf("transaction %q: %w: the row says %s %s, its bodies %s %s", string(r.Gid), record.ErrCorrupt,
			r.Mode, r.Phase, tx.State.Mode, tx.State.Phase)
	}
	return tx, nil
}

// Get is engine.Journal's. Bytes that are no transaction are an error that names the gid and is record.ErrCorrupt.
func (j *Journal) Get(ctx context.Context, gid txn.Gid) (*record.Tx, error) {
	var s stored
	err := s.scan(j.read.QueryRowContext(ctx, j.d.bind(selectRow+"WHERE gid = ?"), []byte(gid)).Scan)
	if errors.Is(err, sql.ErrNoRows) {
		return nil, nil
	}
	var tx *record.Tx
	if err == nil {
		tx, err = s.tx()
	}
	if err != nil {
		return nil, fmt.Errorf("read %q in the journal at %s: %w", string(gid), j.where, err)
	}
	return tx, nil
}

// Gids is engine.Journal's. It sees at least all that was acknowledged before it was called. It reads as it goes: a slow
// each keeps a connection, and on SQLite the write-ahead log grows until it ends.
func (j *Journal) Gids(ctx context.Context, each func(txn.Gid)) error {
	err := func() error {
		rows, err := j.read.QueryContext(ctx, "SELECT gid FROM lockstep_journal")
		if err != nil {
			return err
		}
		defer rows.Close()
		var gid sql.RawBytes
		for rows.Next() {
			if err := rows.Scan(&gid); err != nil {
				return err
			}
			each(txn.Gid(gid))
		}
		return rows.Err()
	}()
	if err != nil {
		return fmt.Errorf("read the gids of the journal at %s: %w", j.where, err)
	}
	return nil
}

// trimChunk is how many rows Trim touches in one SQL transaction: an Append never waits for more.
const trimChunk = 500

// keepUnread leaves a row with its bodies while a peer's journal has not acknowledged its events (see Acknowledge), and while
// its finish is not applied to the copies here (see SetApplied).
const keepUnread = " AND NOT EXISTS (SELECT 1 FROM lockstep_ack a WHERE a.slot = lockstep_journal.slot AND" +
	" (decision_epoch % 100 = a.origin AND decision_seq > a.seq OR finish_epoch % 100 = a.origin AND finish_seq > a.seq))" +
	" AND NOT EXISTS (SELECT 1 FROM lockstep_applied c WHERE c.slot = lockstep_journal.slot AND c.origin = finish_epoch % 100 AND c.seq < finish_seq)"

// Trim is engine.Journal's. What a peer has not acknowledged stays whole, however old it is. It finds its rows by an index, so that it costs nothing where there is nothing to do, and
// goes in small SQL transactions: on an error the count says what was done before. Coordinators may trim at once.
//
// The space of what was trimmed is used again for new rows; SQLite's file does not shrink.
func (j *Journal) Trim(ctx context.Context, bodies, rows int64, limit int) (int, error) {
	drop := func(body, limit int) (int, error) {
		return j.trim(ctx, limit, func(chunk int) (int64, error) {
			return affected(j.write.ExecContext(ctx, j.d.deleteRows, body, rows, chunk))
		})
	}
	deleted, err := drop(0, limit)
	if err == nil && deleted < limit {
		var n int
		n, err = drop(1, limit-deleted)
		deleted += n
	}
	emptied := 0
	if err == nil {
		emptied, err = j.trim(ctx, limit, func(chunk int) (int64, error) { return j.d.empty(ctx, j, 1, bodies, chunk) })
	}
	if err != nil {
		err = fmt.Errorf("trim the journal at %s: %w", j.where, err)
	}
	return deleted + emptied, err
}

// trim repeats work, which touches at most chunk rows, until none is left or limit is reached.
func (j *Journal) trim(ctx context.Context, limit int, work func(chunk int) (int64, error)) (int, error) {
	done := 0
	for done < limit {
		chunk := min(trimChunk, limit-done)
		var n int64
		err := j.retry(ctx, func(int) (err error) {
			n, err = work(chunk)
			return err
		})
		done += int(n)
		if err != nil || n < int64(chunk) {
			return done, err
		}
	}
	return done, nil
}
