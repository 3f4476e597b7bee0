package journal

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/lockstep-tx/lockstep/coordinator/record"
	"github.com/lockstep-tx/lockstep/coordinator/txn"
	"github.com/lockstep-tx/lockstep/region/slot"
)

// Divergence is an event that could not be applied, or that was taken out, and why. It stays for ever; Settled says that
// somebody has dealt with it.
type Divergence struct {
	ID           int64
	Origin, Slot int
	Seq          uint64
	// Epoch and Gid are the event's; zero where the bytes are no event.
	Epoch uint64
	Gid   txn.Gid
	// Sealed is the epoch of the forced seal that the event is past; 0: it contradicts the chain, and stopped it.
	Sealed slot.Epoch
	At     int64 // unix milliseconds
	Reason string
	Event  []byte // record.EncodeEvent's, or what was there instead
	// Settled says who settled it and how, SettledAt when (unix milliseconds); empty and 0 while nobody has.
	Settled   string
	SettledAt int64
}

const selectDivergence = "SELECT id, origin, slot, seq, epoch, gid, seal, at, reason, event, settled, settled_at FROM lockstep_divergence "

// Divergences lists the latest that nobody has settled, newest first.
func (j *Journal) Divergences(ctx context.Context, limit int) ([]Divergence, error) {
	return j.DivergencesBefore(ctx, 0, false, limit)
}

// DivergencesBefore lists at most limit with ids below before (0: all ids), newest first: those that nobody has settled, or, where
// settled is set, all. The last one's id is the next page's before.
func (j *Journal) DivergencesBefore(ctx context.Context, before int64, settled bool, limit int) ([]Divergence, error) {
	if before == 0 {
		before = math.MaxInt64
	}
	where := "WHERE id < ? "
	if !settled {
		where += "AND settled_at = 0 "
	}
	out, err := j.divergences(ctx, j.read, where+"ORDER BY id DESC LIMIT ?", before, limit)
	if err != nil {
		return nil, fmt.Errorf("read the divergences in the journal at %s: %w", j.where, err)
	}
	return out, nil
}

// Diverged lists all divergences of the chain of (origin, n), the settled ones too, by number and epoch.
func (j *Journal) Diverged(ctx context.Context, origin, n int) ([]Divergence, error) {
	out, err := j.divergences(ctx, j.read, "WHERE origin = ? AND slot = ? ORDER BY seq, epoch, id", origin, n)
	if err != nil {
		return nil, fmt.Errorf("read the divergences of slot %d, origin %d, in the journal at %s: %w", n, origin, j.where, err)
	}
	return out, nil
}

// ErrNoDivergence: there is no divergence with that id.
var ErrNoDivergence = errors.New("no such divergence")

// SettleBytesMax bounds the text of SettleDivergence.
const SettleBytesMax = reasonMax

// SettleDivergence notes who settled a divergence and how; it is no longer listed by default. Of two the first stays.
// Durable on nil. The text has 1 to SettleBytesMax bytes.
func (j *Journal) SettleDivergence(ctx context.Context, id int64, text string) error {
	if text == "" || len(text) > reasonMax {
		return fmt.Errorf("settle divergence %d: the text has %d bytes, not 1 to %d", id, len(text), reasonMax)
	}
	err := j.retry(ctx, func(int) error {
		n, err := affected(j.write.ExecContext(ctx, j.d.bind("UPDATE lockstep_divergence SET settled = ?, settled_at = ? WHERE id = ? AND settled_at = 0"),
			text, time.Now().UnixMilli(), id))
		if err != nil || n > 0 {
			return err
		}
		var there int
		if err := j.write.QueryRowContext(ctx, j.d.bind("SELECT count(*) FROM lockstep_divergence WHERE id = ?"), id).Scan(&there); err != nil {
			return err
		}
		if there == 0 {
			return ErrNoDivergence
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("settle divergence %d in the journal at %s: %w", id, j.where, err)
	}
	return nil
}

func (j *Journal) divergences(ctx context.Context, q querierRows, where string, args ...any) ([]Divergence, error) {
	rows, err := q.QueryContext(ctx, j.d.bind(selectDivergence+where), args...)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var out []Divergence
	for rows.Next() {
		var d Divergence
		var seq, epoch, sealed int64
		var gid []byte
		if err := rows.Scan(&d.ID, &d.Origin, &d.Slot, &seq, &epoch, &gid, &sealed, &d.At, &d.Reason, &d.Event, &d.Settled, &d.SettledAt); err != nil {
			return nil, err
		}
		d.Seq, d.Epoch, d.Gid, d.Sealed = uint64(seq), uint64(epoch), txn.Gid(gid), slot.Epoch(sealed)
		d.name()
		out = append(out, d)
	}
	return out, rows.Err()
}

// name fills the epoch and the gid from the event: of rows that were written before there were columns for them.
func (d *Divergence) name() {
	if d.Epoch != 0 {
		return
	}
	if e, err := record.DecodeEvent(d.Event); err == nil {
		d.Epoch, d.Gid = e.Epoch, e.Gid
	}
}

// park writes divergences.
func (j *Journal) park(ctx context.Context, tx *sql.Tx, list []Divergence) error {
	rows := make([][]any, len(list))
	for i, d := range list {
		d.name()
		gid := []byte(d.Gid)
		rows[i] = []any{d.Origin, d.Slot, int64(d.Seq), d.At, d.Reason, nonNil(d.Event), int64(d.Epoch), nonNil(gid), int64(d.Sealed)}
	}
	return j.put(ctx, tx, "lockstep_divergence (origin, slot, seq, at, reason, event, epoch, gid, seal)", "id", "", rows)
}

// parkPast writes events that are past a forced seal, each once however often it comes: the caller holds the lock of the
// chain.
func (j *Journal) parkPast(ctx context.Context, tx *sql.Tx, origin, n int, why string, seal *slot.Seal, events []record.Event) error {
	if len(events) == 0 {
		return nil
	}
	low, high := events[0].Head.Seq, events[0].Head.Seq
	for i := range events {
		low, high = min(low, events[i].Head.Seq), max(high, events[i].Head.Seq)
	}
	there, err := j.divergences(ctx, tx, "WHERE origin = ? AND slot = ? AND seq >= ? AND seq <= ? AND seal > 0", origin, n, int64(low), int64(high))
	if err != nil {
		return err
	}
	type key struct {
		head  record.Head
		epoch uint64
	}
	have := map[key]bool{}
	for i := range there {
		if e, err := record.DecodeEvent(there[i].Event); err == nil {
			have[key{e.Head, e.Epoch}] = true
		}
	}
	var list []Divergence
	now := time.Now().UnixMilli()
	for i := range events {
		e := &events[i]
		if k := (key{e.Head, e.Epoch}); !have[k] {
			have[k] = true
			list = append(list, Divergence{Origin: origin, Slot: n, Seq: e.Head.Seq, Epoch: e.Epoch, Gid: e.Gid, Sealed: seal.Epoch, At: now, Event: encoded(e),
				Reason: fmt.Sprintf("%s after the forced seal of epoch %d, which is event %d", why, seal.Epoch, seal.Seq)})
		}
	}
	return j.park(ctx, tx, list)
}

// pastEvents reads back what is past a forced seal, by number and epoch.
func (j *Journal) pastEvents(ctx context.Context, origin, n int, seal *slot.Seal) ([]record.Event, error) {
	list, err := j.divergences(ctx, j.read, "WHERE origin = ? AND slot = ? AND seal = ? ORDER BY seq, epoch, id", origin, n, int64(seal.Epoch))
	if err != nil {
		return nil, err
	}
	out := make([]record.Event, 0, len(list))
	for i := range list {
		e, err := record.DecodeEvent(list[i].Event)
		if err != nil {
			return nil, fmt.Errorf("divergence %d: %w", list[i].ID, err)
		}
		out = append(out, *e)
	}
	return slices.Clip(out), nil
}

func encoded(e *record.Event) []byte {
	b, err := record.EncodeEvent(e)
	if err != nil {
		return []byte(e.Gid)
	}
	return b
}

// reasonMax bounds a reason: MySQL's column has 1000 characters.
const reasonMax = 900

func bounded(reason string) string {
	if len(reason) > reasonMax {
		return strings.ToValidUTF8(reason[:reasonMax], "")
	}
	return reason
}
