package journal

import (
	"context"
	"database/sql"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/lockstep-tx/lockstep/coordinator/record"
	"github.com/lockstep-tx/lockstep/region/slot"
)

// Mark says how far this journal has the chain of (origin, slot).
type Mark struct {
	Origin, Slot int
	// Epoch is that of the last event; zero before the first.
	Epoch uint64
	Head  record.Head
	// Stopped is why nothing more is applied; empty while it is.
	Stopped string
	// UpdatedAt is when it last changed, unix milliseconds.
	UpdatedAt int64
	// Frozen is the epoch up to which nothing is applied before a seal is known, as Freeze said; 0: none.
	Frozen uint64
	// Bounded is the epoch of the latest forced seal at which the chain ends here, as far as that epoch goes; 0: none. Only
	// where it grows may Head go back.
	Bounded uint64

	sealed bool // the last event is the seal of its epoch
}

// Marks gives how far the chains of other regions' origins are applied here, by origin and slot.
func (j *Journal) Marks(ctx context.Context) ([]Mark, error) {
	out, err := j.marks(ctx, j.read, "SELECT origin, slot, epoch, seq, chain, stopped, updated_at, frozen, bounded, 0 FROM lockstep_watermark ORDER BY origin, slot")
	if err != nil {
		return nil, fmt.Errorf("read the watermarks of the journal at %s: %w", j.where, err)
	}
	// An own chain has one while it is had back from other regions, and it says nothing of what was appended since.
	own := int(j.own.Load())
	return slices.DeleteFunc(out, func(m Mark) bool { return m.Origin == own }), nil
}

// Published gives how far the chains of an origin were published, as SetPublished said.
func (j *Journal) Published(ctx context.Context, origin int) ([]Mark, error) {
	out, err := j.marks(ctx, j.read, "SELECT origin, slot, 0, seq, chain, '', 0, 0, 0, 0 FROM lockstep_published WHERE origin = ? ORDER BY slot", origin)
	if err != nil {
		return nil, fmt.Errorf("read what the journal at %s has published: %w", j.where, err)
	}
	return out, nil
}

// SetPublished notes how far chains were published; a position never goes back, but where the chain was cut: a position that
// is past the cut and not in the journal is that of what was taken out.
func (j *Journal) SetPublished(ctx context.Context, marks []Mark) error {
	rows := make([][]any, len(marks))
	for i, m := range marks {
		rows[i] = []any{m.Origin, m.Slot, int64(m.Head.Seq), m.Head.Chain[:]}
	}
	const further = "CASE WHEN lockstep_published.seq < new(seq) THEN "
	return j.noteAnd(ctx, "lockstep_published (origin, slot, seq, chain)", "origin, slot",
		"chain = "+further+"new(chain) ELSE lockstep_published.chain END, seq = "+further+"new(seq) ELSE lockstep_published.seq END", rows,
		func(tx *sql.Tx) error { return j.mendPublished(ctx, tx, marks) })
}

// mendPublished looks for positions of what Cut took out, which a process that did not know of the cut has noted after it.
// The rows are locked by then, so that a cut is seen or comes later, and mends them itself.
func (j *Journal) mendPublished(ctx context.Context, tx *sql.Tx, marks []Mark) error {
	cuts := map[int]map[int]slot.Seal{}
	for i := range marks {
		m := &marks[i]
		if cuts[m.Origin] == nil {
			var err error
			if cuts[m.Origin], err = j.cutsIn(ctx, tx, m.Origin); err != nil {
				return err
			}
		}
		s, ok := cuts[m.Origin][m.Slot]
		if !ok || m.Head.Seq <= s.Seq {
			continue
		}
		there, _, err := j.chainIn(ctx, tx, m.Origin, m.Slot, m.Head.Seq-1, m.Head.Seq)
		if err != nil {
			return err
		}
		if len(there) == 1 && there[0].Head == m.Head {
			continue
		}
		to, err := headOf(&s)
		if err != nil {
			return err
		}
		if _, err := tx.ExecContext(ctx, j.d.bind("UPDATE lockstep_published SET seq = ?, chain = ? WHERE origin = ? AND slot = ? AND seq = ? AND chain = ?"),
			int64(to.Seq), to.Chain[:], m.Origin, m.Slot, int64(m.Head.Seq), m.Head.Chain[:]); err != nil {
			return err
		}
	}
	return nil
}

// Acknowledge notes how far a peer's journal has this region's chains: seqs by slot. From the first time on Trim keeps
// whole what the peer does not have yet; it never goes back.
func (j *Journal) Acknowledge(ctx context.Context, origin, peer int, seqs map[int]uint64) error {
	rows := make([][]any, 0, len(seqs))
	for n, seq := range seqs {
		rows = append(rows, []any{n, origin, peer, int64(seq)})
	}
	return j.note(ctx, "lockstep_ack (slot, origin, peer, seq)", "slot, origin, peer",
		"seq = CASE WHEN lockstep_ack.seq < new(seq) THEN new(seq) ELSE lockstep_ack.seq END", rows)
}

// Acknowledged gives what Acknowledge noted of an origin, by peer and slot.
func (j *Journal) Acknowledged(ctx context.Context, origin int) (map[int]map[int]uint64, error) {
	out, err := func() (map[int]map[int]uint64, error) {
		rows, err := j.read.QueryContext(ctx, j.d.bind("SELECT peer, slot, seq FROM lockstep_ack WHERE origin = ?"), origin)
		if err != nil {
			return nil, err
		}
		defer rows.Close()
		out := map[int]map[int]uint64{}
		for rows.Next() {
			var peer, n int
			var seq int64
			if err := rows.Scan(&peer, &n, &seq); err != nil {
				return nil, err
			}
			if out[peer] == nil {
				out[peer] = map[int]uint64{}
			}
			out[peer][n] = uint64(seq)
		}
		return out, rows.Err()
	}()
	if err != nil {
		return nil, fmt.Errorf("read the acknowledgements in the journal at %s: %w", j.where, err)
	}
	return out, nil
}

// ForgetPeer drops what a peer acknowledged: Trim no longer waits for it. For a region that is taken out for good.
func (j *Journal) ForgetPeer(ctx context.Context, peer int) error {
	if _, err := j.write.ExecContext(ctx, j.d.bind("DELETE FROM lockstep_ack WHERE peer = ?"), peer); err != nil {
		return fmt.Errorf("forget peer %d in the journal at %s: %w", peer, j.where, err)
	}
	return nil
}

func (j *Journal) note(ctx context.Context, table, key, update string, rows [][]any) error {
	return j.noteAnd(ctx, table, key, update, rows, func(*sql.Tx) error { return nil })
}

// noteAnd is note, and then what else belongs to it in the SQL transaction.
func (j *Journal) noteAnd(ctx context.Context, table, key, update string, rows [][]any, then func(*sql.Tx) error) error {
	err := j.retry(ctx, func(int) error {
		return j.inTx(ctx, func(tx *sql.Tx) error {
			if err := j.put(ctx, tx, table, key, update, rows); err != nil {
				return err
			}
			return then(tx)
		})
	})
	if err != nil {
		name, _, _ := strings.Cut(table, " ")
		return fmt.Errorf("write %s in the journal at %s: %w", name, j.where, err)
	}
	return nil
}

// Offsets gives where to go on reading in the partitions of an origin's Kafka.
func (j *Journal) Offsets(ctx context.Context, origin int) (map[int]int64, error) {
	rows, err := j.read.QueryContext(ctx, j.d.bind("SELECT part, next_offset FROM lockstep_offset WHERE origin = ?"), origin)
	if err != nil {
		return nil, fmt.Errorf("read the offsets in the journal at %s: %w", j.where, err)
	}
	defer rows.Close()
	out := map[int]int64{}
	for rows.Next() {
		var part int
		var next int64
		if err := rows.Scan(&part, &next); err != nil {
			return nil, fmt.Errorf("read the offsets in the journal at %s: %w", j.where, err)
		}
		out[part] = next
	}
	return out, rows.Err()
}

// Unread finds the slots of which the own chain goes on after what is noted as published: work of other processes of the
// region. Slots never published are found too.
func (j *Journal) Unread(ctx context.Context, origin int) ([]int, error) {
	rows, err := j.read.QueryContext(ctx, j.d.bind(`SELECT p.slot FROM lockstep_published p WHERE p.origin = ? AND (
		EXISTS (SELECT 1 FROM lockstep_journal d WHERE d.slot = p.slot AND d.decision_seq = p.seq + 1 AND d.decision_epoch % 100 = p.origin)
		OR EXISTS (SELECT 1 FROM lockstep_journal f WHERE f.slot = p.slot AND f.finish_seq = p.seq + 1 AND f.finish_epoch % 100 = p.origin)
		OR EXISTS (SELECT 1 FROM lockstep_event e WHERE e.origin = p.origin AND e.slot = p.slot AND e.seq = p.seq + 1))`), origin)
	if err != nil {
		return nil, fmt.Errorf("look for unpublished events in the journal at %s: %w", j.where, err)
	}
	defer rows.Close()
	var out []int
	for rows.Next() {
		var n int
		if err := rows.Scan(&n); err != nil {
			return nil, fmt.Errorf("look for unpublished events in the journal at %s: %w", j.where, err)
		}
		out = append(out, n)
	}
	return out, rows.Err()
}

// Unstop lets the chain of (origin, slot) go on after what stopped it was repaired. Nothing of it is skipped: the next
// event is again the one after the watermark. It says whether it was stopped.
func (j *Journal) Unstop(ctx context.Context, origin, n int) (bool, error) {
	touched, err := affected(j.write.ExecContext(ctx, j.d.bind("UPDATE lockstep_watermark SET stopped = '', updated_at = ? WHERE origin = ? AND slot = ? AND stopped <> ''"),
		time.Now().UnixMilli(), origin, n))
	if err != nil {
		return false, fmt.Errorf("let slot %d of origin %d go on in the journal at %s: %w", n, origin, j.where, err)
	}
	return touched > 0, nil
}

type querierRows interface {
	QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error)
}

func (j *Journal) marks(ctx context.Context, q querierRows, stmt string, args ...any) ([]Mark, error) {
	rows, err := q.QueryContext(ctx, j.d.bind(stmt), args...)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var out []Mark
	for rows.Next() {
		var m Mark
		var epoch, seq, frozen, bounded int64
		var sealed int
		var chain []byte
		if err := rows.Scan(&m.Origin, &m.Slot, &epoch, &seq, &chain, &m.Stopped, &m.UpdatedAt, &frozen, &bounded, &sealed); err != nil {
			return nil, err
		}
		m.Epoch, m.Head.Seq, m.sealed = uint64(epoch), uint64(seq), sealed != 0
		m.Frozen, m.Bounded = uint64(frozen), uint64(bounded)
		if len(chain) != len(m.Head.Chain) {
			return nil, fmt.Errorf("origin %d, slot %d: %w: its chain has %d bytes", m.Origin, m.Slot, record.ErrCorrupt, len(chain))
		}
		copy(m.Head.Chain[:], chain)
		out = append(out, m)
	}
	return out, rows.Err()
}
