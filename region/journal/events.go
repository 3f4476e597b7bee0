package journal

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"regexp"
	"strings"

	"github.com/lockstep-tx/lockstep/coordinator/engine"
	"github.com/lockstep-tx/lockstep/coordinator/record"
	"github.com/lockstep-tx/lockstep/coordinator/txn"
	"github.com/lockstep-tx/lockstep/region/slot"
)

// OnAppend tells f of everything that Append and AppendEvents of this Journal have made durable, in their goroutines; f
// must not wait, and keeps no reference to the slices. What other processes append is not told. One f at a time.
func (j *Journal) OnAppend(f func(rows []engine.Row, events []record.Event)) { j.appended.Store(&f) }

// AppendEvents is engine.Journal's.
func (j *Journal) AppendEvents(ctx context.Context, events []record.Event) error {
	for i := range events {
		if e := &events[i]; e.Kind != record.KindCarry && e.Kind != record.KindSeal {
			return fmt.Errorf("event %d of slot %d: a %s has its place in the transaction's row", e.Head.Seq, e.Slot, e.Kind)
		}
	}
	err := j.retry(ctx, func(int) error {
		return j.inTx(ctx, func(tx *sql.Tx) error { return j.putEvents(ctx, tx, events) })
	})
	if err != nil {
		return fmt.Errorf("append %d events to the journal at %s: %w", len(events), j.where, err)
	}
	if f := j.appended.Load(); f != nil {
		(*f)(nil, events)
	}
	return nil
}

// putEvents stores carries and seals; one that is there already stays as it is.
func (j *Journal) putEvents(ctx context.Context, tx *sql.Tx, events []record.Event) error {
	rows := make([][]any, len(events))
	for i := range events {
		e := &events[i]
		rows[i] = []any{e.Origin(), e.Slot, int64(e.Head.Seq), int64(e.Kind), int64(e.Epoch), e.Head.Chain[:], []byte(e.Gid), nonNil(e.Body)}
	}
	return j.put(ctx, tx, "lockstep_event (origin, slot, seq, kind, epoch, chain, gid, body)", "origin, slot, seq", "", rows)
}

// put inserts rows into a table. Where the key is there already, update says what to do, in terms of new(column); empty:
// nothing.
func (j *Journal) put(ctx context.Context, q querier, table, key, update string, rows [][]any) error {
	most := 500
	if j.d.single {
		most = 1
	}
	end := j.conflict(key, update)
	if tx, ok := q.(*sql.Tx); ok && j.d.single && len(rows) > 1 {
		return j.putEach(ctx, tx, "INSERT INTO "+table+" VALUES (?"+strings.Repeat(", ?", len(rows[0])-1)+")"+end, rows)
	}
	for len(rows) > 0 {
		n := min(most, len(rows))
		one := "(?" + strings.Repeat(", ?", len(rows[0])-1) + ")"
		args := make([]any, 0, n*len(rows[0]))
		for _, r := range rows[:n] {
			args = append(args, r...)
		}
		stmt := "INSERT INTO " + table + " VALUES " + one + strings.Repeat(", "+one, n-1) + end
		if _, err := q.ExecContext(ctx, j.d.bind(stmt), args...); err != nil {
			return err
		}
		rows = rows[n:]
	}
	return nil
}

// putEach is put for a database to which a statement costs more to read than a row to write.
func (j *Journal) putEach(ctx context.Context, tx *sql.Tx, stmt string, rows [][]any) error {
	quiet := context.WithoutCancel(ctx) // as sqliteRows
	one, err := tx.PrepareContext(quiet, j.d.bind(stmt))
	if err != nil {
		return err
	}
	for _, r := range rows {
		if err = ctx.Err(); err != nil {
			break
		}
		if _, err = one.ExecContext(quiet, r...); err != nil {
			break
		}
	}
	return errors.Join(err, one.Close())
}

// newValue stands for a column's value in the row that could not be inserted.
var newValue = regexp.MustCompile(`new\((\w+)\)`)

// conflict gives what follows an INSERT. MySQL assigns from left to right.
func (j *Journal) conflict(key, update string) string {
	if j.d.name == "mysql" {
		if update == "" {
			first, _, _ := strings.Cut(key, ",")
			update = first + " = " + first
		}
		return " ON DUPLICATE KEY UPDATE " + newValue.ReplaceAllString(update, "VALUES($1)")
	}
	if update == "" {
		return " ON CONFLICT (" + key + ") DO NOTHING"
	}
	return " ON CONFLICT (" + key + ") DO UPDATE SET " + newValue.ReplaceAllString(update, "excluded.$1")
}

func nonNil(b []byte) []byte {
	if b == nil {
		return []byte{}
	}
	return b
}

func (j *Journal) inTx(ctx context.Context, work func(*sql.Tx) error) error {
	tx, err := j.write.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer func() { _ = tx.Rollback() }() // after Commit it does nothing
	if err := work(tx); err != nil {
		return err
	}
	return tx.Commit()
}

// ErrTrimmed: an event's body is no longer kept.
var ErrTrimmed = errors.New("the event's body was trimmed")

// selectChain reads the events of (origin, slot) with numbers above one and up to another, from the three places where
// they are. %s stands for what is read of a body.
const selectChain = `SELECT decision_seq AS seq, 1 AS kind, decision_epoch, decision_chain, gid, body, closed AS bytes FROM lockstep_journal
		WHERE slot = ? AND decision_seq > ? AND decision_seq <= ? AND decision_epoch % 100 = ?
	UNION ALL SELECT finish_seq, 2, finish_epoch, finish_chain, gid, body, progress FROM lockstep_journal
		WHERE slot = ? AND finish_seq > ? AND finish_seq <= ? AND finish_epoch % 100 = ?
	UNION ALL SELECT seq, kind, epoch, chain, gid, 1, body FROM lockstep_event
		WHERE slot = ? AND seq > ? AND seq <= ? AND origin = ?
	ORDER BY seq`

// EventsAfter gives the events of the chain of (origin, slot) that follow the number after, without a gap: it ends before
// the first that is not here, and after limit. ErrTrimmed: the next one's body is no longer kept.
//
// It sees what was acknowledged before it was called.
func (j *Journal) EventsAfter(ctx context.Context, origin, n int, after uint64, limit int) ([]record.Event, error) {
	out, trimmed, err := j.chain(ctx, origin, n, after, after+uint64(limit))
	if err != nil {
		return nil, fmt.Errorf("read events of slot %d in the journal at %s: %w", n, j.where, err)
	}
	for i := range out {
		if out[i].Head.Seq != after+1+uint64(i) {
			return out[:i], nil
		}
		if trimmed[i] {
			if i == 0 {
				return nil, fmt.Errorf("event %d of slot %d, origin %d, %q: %w", out[i].Head.Seq, n, origin, string(out[i].Gid), ErrTrimmed)
			}
			return out[:i], nil
		}
	}
	return out, nil
}

// chain reads what there is of a chain from after+1 to last, in order.
func (j *Journal) chain(ctx context.Context, origin, n int, after, last uint64) (out []record.Event, trimmed []bool, err error) {
	return j.chainIn(ctx, j.read, origin, n, after, last)
}

func (j *Journal) chainIn(ctx context.Context, q querierRows, origin, n int, after, last uint64) (out []record.Event, trimmed []bool, err error) {
	at := []any{n, int64(after), int64(last), origin}
	rows, err := q.QueryContext(ctx, j.d.bind(selectChain), append(append(append([]any{}, at...), at...), at...)...)
	if err != nil {
		return nil, nil, err
	}
	defer rows.Close()
	for rows.Next() {
		var seq, kind, epoch int64
		var body int
		var chain, gid []byte
		e := record.Event{Slot: n}
		if err := rows.Scan(&seq, &kind, &epoch, &chain, &gid, &body, &e.Body); err != nil {
			return nil, nil, err
		}
		if len(chain) != len(e.Head.Chain) {
			return nil, nil, fmt.Errorf("event %d: %w: its chain has %d bytes", seq, record.ErrCorrupt, len(chain))
		}
		e.Kind, e.Epoch, e.Gid, e.Head.Seq = record.Kind(kind), uint64(epoch), txn.Gid(gid), uint64(seq)
		copy(e.Head.Chain[:], chain)
		out, trimmed = append(out, e), append(trimmed, body == 0)
	}
	return out, trimmed, rows.Err()
}

// Reached says whether this journal has the chain of the seal's origin up to the seal. A chain here that contradicts the
// seal is ErrContradicts.
func (j *Journal) Reached(ctx context.Context, n int, seal *slot.Seal) (bool, error) {
	if seal == nil || seal.Forced && seal.Seq == 0 {
		return true, nil
	}
	if seal.Seq == 0 {
		return false, nil
	}
	events, _, err := j.chain(ctx, seal.Epoch.Region(), n, seal.Seq-1, seal.Seq)
	if err != nil {
		return false, fmt.Errorf("read the seal of slot %d in the journal at %s: %w", n, j.where, err)
	}
	if len(events) == 0 {
		return false, nil
	}
	e := &events[0]
	same := slot.SealOf(seal.Epoch, e.Head.Seq, e.Head.Chain[:]).Chain == seal.Chain
	if !same || !seal.Forced && (e.Kind != record.KindSeal || e.Epoch != uint64(seal.Epoch)) {
		return false, fmt.Errorf("the journal at %s has a %s of epoch %d where slot %d's seal of epoch %d is: %w", j.where, e.Kind, e.Epoch, n, seal.Epoch, ErrContradicts)
	}
	return true, nil
}

// Carried gives the live records that left slot n with an epoch, as they were: of each transaction the latest, and none
// that is finished here. It is the whole only where Reached says so of the epoch's seal.
func (j *Journal) Carried(ctx context.Context, n int, epoch slot.Epoch) ([][]byte, error) {
	out, err := func() ([][]byte, error) {
		rows, err := j.read.QueryContext(ctx, j.d.bind(`SELECT e.gid, e.body FROM lockstep_event e WHERE e.origin = ? AND e.slot = ? AND e.epoch = ? AND e.kind = 3
			AND NOT EXISTS (SELECT 1 FROM lockstep_journal t WHERE t.gid = e.gid AND t.finish_seq IS NOT NULL) ORDER BY e.seq`),
			epoch.Region(), n, int64(epoch))
		if err != nil {
			return nil, err
		}
		defer rows.Close()
		at := map[string]int{}
		var out [][]byte
		for rows.Next() {
			var gid, body []byte
			if err := rows.Scan(&gid, &body); err != nil {
				return nil, err
			}
			if i, ok := at[string(gid)]; ok {
				out[i] = body
				continue
			}
			at[string(gid)] = len(out)
			out = append(out, body)
		}
		return out, rows.Err()
	}()
	if err != nil {
		return nil, fmt.Errorf("read what slot %d carried in the journal at %s: %w", n, j.where, err)
	}
	return out, nil
}
