package dayend

import (
	"encoding/binary"
	"errors"

	"github.com/lockstep-tx/lockstep/region/reconcile/channelfile"
)

// Row is one side's record of a fact, as both sides have it: a payment, a refund, an entry, a sum.
type Row struct {
	Key      string
	Amount   int64 // minor units
	Currency string
	State    channelfile.State
	AtMS     int64
	// Line, Offset and Part say where it stands in the channel's files; 0 of our own rows.
	Line, Offset int64
	Part         int
}

var errRecord = errors.New("a sorted file holds what is no record; load the channel's file again")

// append writes a row behind buf: the key's length and the key first, so that what sorts need not read the rest.
func (r *Row) append(buf []byte) []byte {
	buf = binary.AppendUvarint(buf, uint64(len(r.Key)))
	buf = append(buf, r.Key...)
	buf = binary.AppendVarint(buf, r.Amount)
	buf = binary.AppendUvarint(buf, uint64(len(r.Currency)))
	buf = append(buf, r.Currency...)
	buf = append(buf, byte(r.State), byte(r.Part))
	buf = binary.AppendVarint(buf, r.AtMS)
	buf = binary.AppendUvarint(buf, uint64(r.Line))
	return binary.AppendUvarint(buf, uint64(r.Offset))
}

// record is a row as it was read: its key is good until the next one is read.
type record struct {
	key      []byte
	amount   int64
	currency [3]byte
	state    channelfile.State
	part     int
	at       int64
	line     int64
	offset   int64
	pooled   *pooled // where it came from the suspense pool
}

func keyOf(rec []byte) []byte {
	n, w := binary.Uvarint(rec)
	return rec[w : w+int(n)]
}

func (r *record) decode(b []byte) error {
	d := decoder{b: b}
	r.key = d.bytes(d.uvarint())
	r.amount = d.varint()
	copy(r.currency[:], d.bytes(d.uvarint()))
	tail := d.bytes(2)
	if d.bad {
		return errRecord
	}
	r.state, r.part = channelfile.State(tail[0]), int(tail[1])
	r.at = d.varint()
	r.line, r.offset = int64(d.uvarint()), int64(d.uvarint())
	if d.bad || len(d.b) != 0 {
		return errRecord
	}
	return nil
}

// row copies a record out.
func (r *record) row() Row {
	return Row{Key: string(r.key), Amount: r.amount, Currency: string(r.currency[:]), State: r.state, AtMS: r.at, Line: r.line, Offset: r.offset, Part: r.part}
}

func (r *record) of(row Row) {
	*r = record{key: []byte(row.Key), amount: row.Amount, state: row.State, part: row.Part, at: row.AtMS, line: row.Line, offset: row.Offset}
	copy(r.currency[:], row.Currency)
}

type decoder struct {
	b   []byte
	bad bool
}

func (d *decoder) uvarint() uint64 {
	n, w := binary.Uvarint(d.b)
	d.skip(w)
	return n
}

func (d *decoder) varint() int64 {
	n, w := binary.Varint(d.b)
	d.skip(w)
	return n
}

func (d *decoder) skip(w int) {
	if w <= 0 {
		d.bad, d.b = true, nil
		return
	}
	d.b = d.b[w:]
}

func (d *decoder) bytes(n uint64) []byte {
	if n > uint64(len(d.b)) {
		d.bad, d.b = true, nil
		return nil
	}
	out := d.b[:n]
	d.b = d.b[n:]
	return out
}
