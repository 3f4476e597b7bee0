package seed

import (
	"bytes"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"math/rand/v2"

	"github.com/lockstep-tx/lockstep/participants/sqldb"
)

// The classes that are planted in a region's journal.
const (
	D14 Class = "D14" // the region whose transaction it is has lost its record
	D15 Class = "D15" // a record's status is flipped
	D16 Class = "D16" // an event is missing in a copy
	D18 Class = "D18" // two records of a slot have each other's events: one holds an older than it had
	D20 Class = "D20" // another body under the same number
)

// Record plants a drift in the journal's row of a transaction; other is a second transaction of the slot, for D18. The row
// before and after is read over another connection.
func Record(ctx context.Context, db *sql.DB, d sqldb.Dialect, class Class, gid, other string, rnd *rand.Rand) (Planted, error) {
	p := Planted{Class: class, Gid: gid, Other: other}
	var err error
	if p.Was, err = recordImage(ctx, db, d, gid); err != nil {
		return p, err
	}
	if p.Was == "" {
		return p, fmt.Errorf("the journal has no record of %s", gid)
	}
	err = sqldb.InTx(ctx, db, func(tx *sql.Tx) error {
		j := inJournal{ctx, tx, d, rnd}
		switch class {
		case D14, D16:
			return j.one("DELETE FROM lockstep_journal WHERE gid = ?", []byte(gid))
		case D15:
			return j.flip(gid)
		case D18:
			return j.swap(gid, other)
		case D20:
			return j.body(gid)
		}
		return fmt.Errorf("nothing plants %s in a journal", class)
	})
	if err != nil {
		return p, err
	}
	if p.Is, err = recordImage(ctx, db, d, gid); err == nil && p.Is == p.Was {
		err = errors.New("it is not there: the record is as it was")
	}
	return p, err
}

func recordImage(ctx context.Context, db *sql.DB, d sqldb.Dialect, gid string) (string, error) {
	var phase, decision, finish int64
	var closed, progress []byte
	err := db.QueryRowContext(ctx, d.Q("SELECT phase, decision_seq, finish_seq, closed, progress FROM lockstep_journal WHERE gid = ?"), []byte(gid)).Scan(&phase, &decision, &finish, &closed, &progress)
	if errors.Is(err, sql.ErrNoRows) {
		return "", nil
	}
	return fmt.Sprintf("phase %d, events %d and %d, %x %x", phase, decision, finish, closed, progress), err
}

type inJournal struct {
	ctx context.Context
	tx  *sql.Tx
	d   sqldb.Dialect
	rnd *rand.Rand
}

func (j inJournal) one(stmt string, args ...any) error {
	ok, err := j.d.Change(j.ctx, j.tx, stmt, args...)
	if err == nil && !ok {
		err = fmt.Errorf("nothing to change: %.60s", stmt)
	}
	return err
}

// flip gives a record the status of one that was decided otherwise.
func (j inJournal) flip(gid string) error {
	var phase int64
	if err := j.tx.QueryRowContext(j.ctx, j.d.Q("SELECT min(o.phase) FROM lockstep_journal o, lockstep_journal r WHERE r.gid = ? AND o.phase <> r.phase AND o.finish_seq IS NOT NULL"), []byte(gid)).Scan(&phase); err != nil {
		return err
	}
	return j.one("UPDATE lockstep_journal SET phase = ? WHERE gid = ?", phase, []byte(gid))
}

// body changes a byte of the decision's body or of the finish's.
func (j inJournal) body(gid string) error {
	part := []string{"closed", "progress"}[j.rnd.IntN(2)]
	var raw []byte
	if err := j.tx.QueryRowContext(j.ctx, j.d.Q("SELECT "+part+" FROM lockstep_journal WHERE gid = ?"), []byte(gid)).Scan(&raw); err != nil {
		return err
	}
	raw = bytes.Clone(raw)
	raw[j.rnd.IntN(len(raw))] ^= byte(1 + j.rnd.IntN(255))
	return j.one("UPDATE lockstep_journal SET "+part+" = ? WHERE gid = ?", raw, []byte(gid))
}

// events are the numbers and chains of a record.
type events struct {
	decision, decisionEpoch, finish, finishEpoch int64
	decisionChain, finishChain                   []byte
}

func (j inJournal) events(gid string) (e events, err error) {
	err = j.tx.QueryRowContext(j.ctx, j.d.Q("SELECT decision_seq, decision_epoch, decision_chain, finish_seq, finish_epoch, finish_chain FROM lockstep_journal WHERE gid = ?"), []byte(gid)).
		Scan(&e.decision, &e.decisionEpoch, &e.decisionChain, &e.finish, &e.finishEpoch, &e.finishChain)
	return e, err
}

func (j inJournal) write(gid string, e events) error {
	return j.one("UPDATE lockstep_journal SET decision_seq = ?, decision_epoch = ?, decision_chain = ?, finish_seq = ?, finish_epoch = ?, finish_chain = ? WHERE gid = ?",
		e.decision, e.decisionEpoch, e.decisionChain, e.finish, e.finishEpoch, e.finishChain, []byte(gid))
}

// swap exchanges the events of two records.
func (j inJournal) swap(a, b string) error {
	one, err := j.events(a)
	if err != nil {
		return err
	}
	two, err := j.events(b)
	if err != nil {
		return err
	}
	away := one
	away.decision, away.finish = one.decision+1_000_000_000, one.finish+1_000_000_000
	return all(func() error { return j.write(a, away) }, func() error { return j.write(b, one) }, func() error { return j.write(a, two) })
}

// Freeze stops the chain of an origin's slot in another region's journal (D19), as a poisoned event would, and gives the number
// at which it stands.
func Freeze(ctx context.Context, db *sql.DB, d sqldb.Dialect, origin, slot int) (seq int64, err error) {
	err = sqldb.InTx(ctx, db, func(tx *sql.Tx) error {
		ok, err := d.Change(ctx, tx, "UPDATE lockstep_watermark SET stopped = ? WHERE origin = ? AND slot = ? AND stopped = ''", "planted", origin, slot)
		if err == nil && !ok {
			err = fmt.Errorf("the journal has no chain of origin %d in slot %d that goes on", origin, slot)
		}
		return err
	})
	if err != nil {
		return 0, err
	}
	var stopped string
	err = db.QueryRowContext(ctx, d.Q("SELECT seq, stopped FROM lockstep_watermark WHERE origin = ? AND slot = ?"), origin, slot).Scan(&seq, &stopped)
	if err == nil && stopped == "" {
		err = errors.New("it is not there: the chain goes on")
	}
	return seq, err
}

// RewindJournal sets a region's journal back by its last n rows (D21), with the note of what it has published: it gives the
// transactions that it does not know any more.
func RewindJournal(ctx context.Context, db *sql.DB, d sqldb.Dialect, n int) (gids []string, err error) {
	err = sqldb.InTx(ctx, db, func(tx *sql.Tx) error {
		gids = nil
		rows, err := tx.QueryContext(ctx, d.Q("SELECT gid, slot FROM lockstep_journal ORDER BY id DESC LIMIT ?"), n)
		if err != nil {
			return err
		}
		slots := map[int]bool{}
		for rows.Next() {
			var gid []byte
			var slot int
			if err := rows.Scan(&gid, &slot); err != nil {
				return errors.Join(err, rows.Close())
			}
			gids, slots[slot] = append(gids, string(gid)), true
		}
		if err := errors.Join(rows.Err(), rows.Close()); err != nil {
			return err
		}
		j := inJournal{ctx: ctx, tx: tx, d: d}
		for _, gid := range gids {
			if err := j.one("DELETE FROM lockstep_journal WHERE gid = ?", []byte(gid)); err != nil {
				return err
			}
		}
		for slot := range slots {
			if err := j.note(slot); err != nil {
				return err
			}
		}
		return nil
	})
	if err == nil && len(gids) != n {
		err = fmt.Errorf("the journal has %d rows, not %d", len(gids), n)
	}
	if err != nil {
		return nil, err
	}
	for _, gid := range gids {
		if is, err := recordImage(ctx, db, d, gid); err != nil || is != "" {
			return nil, errors.Join(fmt.Errorf("%s still stands in the journal", gid), err)
		}
	}
	return gids, nil
}

// note sets the note of what is published of a slot back to the last event that is there.
func (j inJournal) note(slot int) error {
	var seq int64
	var chain []byte
	err := j.tx.QueryRowContext(j.ctx, j.d.Q("SELECT finish_seq, finish_chain FROM lockstep_journal WHERE slot = ? AND finish_seq IS NOT NULL ORDER BY finish_seq DESC LIMIT 1"), slot).Scan(&seq, &chain)
	if errors.Is(err, sql.ErrNoRows) {
		return j.one("DELETE FROM lockstep_published WHERE slot = ?", slot)
	}
	if err != nil {
		return err
	}
	return j.one("UPDATE lockstep_published SET seq = ?, chain = ? WHERE slot = ?", seq, chain, slot)
}
