package journal

import (
	"context"
	"crypto/sha256"
	"database/sql"
	"encoding/binary"
	"errors"
	"fmt"
	"math/bits"
	"runtime"
	"strings"
	"sync"

	"github.com/lockstep-tx/lockstep/coordinator/engine"
	"github.com/lockstep-tx/lockstep/coordinator/record"
	"github.com/lockstep-tx/lockstep/coordinator/txn"
	"github.com/lockstep-tx/lockstep/region/slot"
)

// Print is the fingerprint of one transaction's row: the first 16 bytes of SHA-256 over everything that is kept of it.
type Print [16]byte

// Sum is a sum of fingerprints modulo 2^128, with their number: two sets that differ in one row have different sums but for
// one chance in 2^128. An exclusive or would not do: pairs cancel.
type Sum struct {
	Count uint64
	hi    uint64
	lo    uint64
}

// Add adds a fingerprint.
func (s *Sum) Add(p Print) {
	var carry uint64
	s.lo, carry = bits.Add64(s.lo, binary.BigEndian.Uint64(p[8:]), 0)
	s.hi, _ = bits.Add64(s.hi, binary.BigEndian.Uint64(p[:8]), carry)
	s.Count++
}

// Join adds another sum.
func (s *Sum) Join(o Sum) {
	var carry uint64
	s.lo, carry = bits.Add64(s.lo, o.lo, 0)
	s.hi, _ = bits.Add64(s.hi, o.hi, carry)
	s.Count += o.Count
}

// SumBytes is the length of a sum on the wire.
const SumBytes = 20

// Bytes gives a sum's SumBytes: the count modulo 2^32 and the sum.
func (s Sum) Bytes() []byte {
	b := make([]byte, SumBytes)
	binary.BigEndian.PutUint32(b, uint32(s.Count))
	binary.BigEndian.PutUint64(b[4:], s.hi)
	binary.BigEndian.PutUint64(b[12:], s.lo)
	return b
}

// SumOf reads what Bytes gave.
func SumOf(b []byte) Sum {
	return Sum{Count: uint64(binary.BigEndian.Uint32(b)), hi: binary.BigEndian.Uint64(b[4:]), lo: binary.BigEndian.Uint64(b[12:])}
}

// printOf is the fingerprint of a row as it is stored. Trimmed bodies are left out on both sides by the window: it is young.
func printOf(r *engine.Row) Print {
	h := sha256.New()
	var fixed [8]byte
	num := func(v uint64) {
		binary.BigEndian.PutUint64(fixed[:], v)
		h.Write(fixed[:])
	}
	text := func(b []byte) {
		num(uint64(len(b)))
		h.Write(b)
	}
	text([]byte(r.Gid))
	for _, v := range []uint64{uint64(r.Slot), uint64(r.Mode), uint64(r.Phase), uint64(r.BegunAt), uint64(r.DecidedAt), uint64(r.FinishedAt),
		r.Decision.Seq, r.DecisionEpoch, r.Finish.Seq, r.FinishEpoch} {
		num(v)
	}
	h.Write(r.Decision.Chain[:])
	h.Write(r.Finish.Chain[:])
	text(r.Closed)
	text(r.Progress)
	var p Print
	copy(p[:], h.Sum(nil))
	return p
}

const selectWindow = "SELECT id, gid, slot, mode, phase, begun_at, decided_at, finished_at, decision_seq, decision_epoch, decision_chain, " +
	"finish_seq, finish_epoch, finish_chain, body, closed, progress FROM lockstep_journal "

// Sums gives, by slot, the sum over the transactions that finished in [from, to) (unix ms, by the clock of whoever finished
// them). It reads the rows themselves, so that it sees what was changed behind the journal's back.
func (j *Journal) Sums(ctx context.Context, from, to int64) (*[slot.Count]Sum, error) {
	out := &[slot.Count]Sum{}
	err := j.window(ctx, from, to, -1, func(r *engine.Row, p Print) { out[r.Slot].Add(p) })
	if err != nil {
		return nil, fmt.Errorf("fingerprints of the journal at %s: %w", j.where, err)
	}
	return out, nil
}

// Printed is one transaction's fingerprint.
type Printed struct {
	Gid   txn.Gid
	Print Print
}

// Prints lists the fingerprints of one slot's transactions that finished in [from, to), by gid.
func (j *Journal) Prints(ctx context.Context, n int, from, to int64) ([]Printed, error) {
	var out []Printed
	err := j.window(ctx, from, to, n, func(r *engine.Row, p Print) { out = append(out, Printed{r.Gid, p}) })
	if err != nil {
		return nil, fmt.Errorf("fingerprints of slot %d in the journal at %s: %w", n, j.where, err)
	}
	return out, nil
}

// window calls each for every row that finished in [from, to), of one slot or (-1) of all, from one goroutine; hashing is
// spread over the cores.
func (j *Journal) window(ctx context.Context, from, to int64, n int, each func(*engine.Row, Print)) error {
	where, args := "WHERE body = 1 AND finished_at >= ? AND finished_at < ?", []any{from, to}
	if n >= 0 {
		where, args = where+" AND slot = ?", append(args, n)
	}
	rows, err := j.read.QueryContext(ctx, j.d.bind(selectWindow+where), args...)
	if err != nil {
		return err
	}
	defer rows.Close()
	h := newHashing(each)
	for rows.Next() {
		s := &stored{}
		if err = s.scan(rows.Scan); err != nil {
			break
		}
		h.put(&s.row)
	}
	h.end()
	return errors.Join(err, rows.Err())
}

// hashing hands rows in blocks to the cores.
type hashing struct {
	each  func(*engine.Row, Print)
	block []*engine.Row
	work  chan []*engine.Row
	wg    sync.WaitGroup
	mu    sync.Mutex
}

const hashBlock = 512

func newHashing(each func(*engine.Row, Print)) *hashing {
	h := &hashing{each: each, work: make(chan []*engine.Row, 4)}
	for range runtime.GOMAXPROCS(0) {
		h.wg.Go(func() {
			for block := range h.work {
				prints := make([]Print, len(block))
				for i, r := range block {
					prints[i] = printOf(r)
				}
				h.mu.Lock()
				for i, r := range block {
					h.each(r, prints[i])
				}
				h.mu.Unlock()
			}
		})
	}
	return h
}

func (h *hashing) put(r *engine.Row) {
	if h.block = append(h.block, r); len(h.block) == hashBlock {
		h.work <- h.block
		h.block = nil
	}
}

func (h *hashing) end() {
	if len(h.block) > 0 {
		h.work <- h.block
	}
	close(h.work)
	h.wg.Wait()
}

// Row reads one transaction's row as it is stored; nil when there is none.
func (j *Journal) Row(ctx context.Context, gid txn.Gid) (*engine.Row, error) {
	var s stored
	err := s.scan(j.read.QueryRowContext(ctx, j.d.bind(selectRow+"WHERE gid = ?"), []byte(gid)).Scan)
	if errors.Is(err, sql.ErrNoRows) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read %q in the journal at %s: %w", string(gid), j.where, err)
	}
	return &s.row, nil
}

// Sound says whether both events of a row continue this journal's chains: the number before each hashes on to what the row
// says, and whether the row's own columns are what its bodies say. The event before one is in the journal, or is the row's
// other event. Where it is neither (its body was trimmed, or it is missing too) nothing is known: false.
func (j *Journal) Sound(ctx context.Context, r *engine.Row) (bool, error) {
	events := eventsOfRow(r)
	for i := range events {
		prev, known, err := j.before(ctx, &events[i], events)
		if err != nil || !known || !events[i].Follows(prev) {
			return false, err
		}
	}
	tx, err := (&stored{row: *r, body: 1}).tx()
	if err != nil || tx.State.BegunAt != r.BegunAt || tx.State.DecidedAt != r.DecidedAt || tx.State.FinishedAt != r.FinishedAt {
		return false, nil // the chain hashes the bodies alone
	}
	return len(events) > 0, nil
}

// before gives the head of the event before e.
func (j *Journal) before(ctx context.Context, e *record.Event, own []record.Event) (record.Head, bool, error) {
	seq := e.Head.Seq - 1
	if seq == 0 {
		return record.Head{}, true, nil
	}
	for i := range own {
		if own[i].Head.Seq == seq && own[i].Origin() == e.Origin() {
			return own[i].Head, true, nil
		}
	}
	found, _, err := j.chain(ctx, e.Origin(), e.Slot, seq-1, seq)
	if err != nil || len(found) == 0 {
		return record.Head{}, false, err
	}
	for i := range found { // two rows that claim one number say the same of it, or nothing
		if found[i].Head != found[0].Head {
			return record.Head{}, false, nil
		}
	}
	return found[0].Head, true, nil
}

// Restore replaces a transaction's row by one that is sound here (Sound), or inserts it where it is missing. Durable on nil.
// One that is there already stays. An error when it is not sound: nothing was written.
func (j *Journal) Restore(ctx context.Context, r *engine.Row) error {
	if is, err := j.Row(ctx, r.Gid); err != nil || is != nil && printOf(is) == printOf(r) {
		return err
	}
	ok, err := j.Sound(ctx, r)
	if err != nil {
		return err
	}
	if !ok {
		return fmt.Errorf("transaction %q: the row does not continue the chains of the journal at %s; nothing was written", string(r.Gid), j.where)
	}
	return j.retry(ctx, func(int) error {
		return j.inTx(ctx, func(tx *sql.Tx) error {
			if _, err := tx.ExecContext(ctx, j.d.bind("DELETE FROM lockstep_journal WHERE gid = ?"), []byte(r.Gid)); err != nil {
				return err
			}
			args := values(nil, r)
			stmt := "INSERT INTO lockstep_journal (" + columns + ") VALUES (?" + strings.Repeat(", ?", len(args)-1) + ")"
			_, err := tx.ExecContext(ctx, j.d.bind(stmt), args...)
			return err
		})
	})
}

// eventsOfRow gives the events that a row holds.
func eventsOfRow(r *engine.Row) []record.Event {
	var out []record.Event
	if r.Decision.Seq != 0 {
		out = append(out, record.Event{Slot: r.Slot, Kind: record.KindDecision, Gid: r.Gid, Epoch: r.DecisionEpoch, Head: r.Decision, Body: r.Closed})
	}
	if r.Finish.Seq != 0 {
		out = append(out, record.Event{Slot: r.Slot, Kind: record.KindFinish, Gid: r.Gid, Epoch: r.FinishEpoch, Head: r.Finish, Body: r.Progress})
	}
	return out
}

// FinishedBetween calls each for transactions that finished in [from, to), the oldest first, with their slots. It reads at most
// limit rows, and says how many it has read and when the last of them finished (unix ms): limit of them are not the end. One
// that cannot be read is left out here: its fingerprint finds it.
func (j *Journal) FinishedBetween(ctx context.Context, from, to int64, limit int, each func(tx *record.Tx, slot int)) (read int, last int64, err error) {
	rows, err := j.read.QueryContext(ctx, j.d.bind(selectWindow+"WHERE body = 1 AND finished_at >= ? AND finished_at < ? ORDER BY finished_at LIMIT ?"), from, to, limit)
	if err != nil {
		return 0, 0, fmt.Errorf("finished transactions of the journal at %s: %w", j.where, err)
	}
	defer rows.Close()
	for ; rows.Next(); read++ {
		s := &stored{}
		if err := s.scan(rows.Scan); err != nil {
			return read, last, err
		}
		last = s.row.FinishedAt
		if tx, err := s.tx(); err == nil {
			each(tx, s.row.Slot)
		}
	}
	return read, last, rows.Err()
}
