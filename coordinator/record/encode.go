package record

import (
	"fmt"
	"maps"
	"slices"
	"unicode/utf8"

	"google.golang.org/protobuf/encoding/protowire"

	"github.com/lockstep-tx/lockstep/coordinator/txn"
)

// Every write of a transaction encodes it, so this is one of the hottest places of the coordinator: the bytes are
// appended straight from the State instead of through the generated messages (a third of the work). The field numbers
// are those of recordpb/record.proto; a property test holds the bytes equal to what the generated code gives, and the
// generated code reads them.

type encoder struct {
	b   []byte
	err error
}

func (e *encoder) tag(field protowire.Number, t protowire.Type) {
	e.b = protowire.AppendTag(e.b, field, t)
}

func (e *encoder) uint(field protowire.Number, v uint64) {
	if v != 0 {
		e.tag(field, protowire.VarintType)
		e.b = protowire.AppendVarint(e.b, v)
	}
}

func (e *encoder) bool(field protowire.Number, v bool) {
	if v {
		e.tag(field, protowire.VarintType)
		e.b = append(e.b, 1)
	}
}

func (e *encoder) text(field protowire.Number, v string) {
	if v != "" {
		e.string(field, v)
	}
}

// string writes v even when it is empty. Bytes that are no UTF-8 would be refused by whoever reads them.
func (e *encoder) string(field protowire.Number, v string) {
	if !utf8.ValidString(v) && e.err == nil {
		e.err = fmt.Errorf("field %d is not UTF-8: %q", field, v)
	}
	e.tag(field, protowire.BytesType)
	e.b = protowire.AppendString(e.b, v)
}

func (e *encoder) data(field protowire.Number, v []byte) {
	if len(v) > 0 {
		e.tag(field, protowire.BytesType)
		e.b = protowire.AppendBytes(e.b, v)
	}
}

// open starts a message field whose length is not known yet; shut, given what open gave, writes the length.
func (e *encoder) open(field protowire.Number) (at int) {
	e.tag(field, protowire.BytesType)
	e.b = append(e.b, 0)
	return len(e.b)
}

func (e *encoder) shut(at int) {
	n := len(e.b) - at
	if n < 0x80 { // as almost every message: its length fits the byte that was kept for it
		e.b[at-1] = byte(n)
		return
	}
	var length [10]byte
	size := protowire.AppendVarint(length[:0], uint64(n))
	e.b = append(e.b, size[1:]...)
	copy(e.b[at-1+len(size):], e.b[at:at+n])
	copy(e.b[at-1:], size)
}

// sizeHint is near the encoded size of a state, so that the bytes are allocated once.
func sizeHint(s *txn.State) int {
	n := 160 + len(s.Gid) + len(s.QueryURL) + len(s.Custom) + len(s.Reason) + len(s.Result) + len(s.Digest) + len(s.Tenant)
	for i := range s.Branches {
		b := &s.Branches[i]
		n += 24 + len(b.ID) + len(b.Try) + len(b.Confirm) + len(b.Cancel) + len(b.Payload) + len(b.Account)
	}
	for i := range s.Steps {
		n += 32 + len(s.Steps[i].Data)
	}
	return n
}

func encodeClosed(s *txn.State) ([]byte, error) {
	phase := s.Phase
	if phase.Finished() {
		// The closed part belongs to the decision: what followed is the progress part's business.
		phase = txn.PhaseAborting
		if s.Phase.Commit() {
			phase = txn.PhaseCommitting
		}
	}
	e := encoder{b: make([]byte, 0, sizeHint(s))}
	e.text(1, string(s.Gid))
	e.uint(2, uint64(s.Mode))
	e.uint(3, uint64(phase))
	e.uint(4, s.Epoch)
	e.uint(5, uint64(s.BegunAt))
	e.uint(6, uint64(s.DecidedAt))
	at := e.open(7)
	e.options(&s.Opt)
	e.shut(at)
	for i := range s.Branches {
		at := e.open(8)
		e.branch(&s.Branches[i])
		e.shut(at)
	}
	for i := range s.Steps {
		st := &s.Steps[i]
		at := e.open(9)
		e.text(1, string(st.Branch))
		e.text(2, st.Op)
		e.bool(3, st.Failed)
		e.data(4, st.Data)
		e.uint(5, uint64(st.At))
		e.shut(at)
	}
	e.text(10, s.QueryURL)
	e.text(11, s.Custom)
	e.text(12, s.Reason)
	e.text(13, s.Result)
	e.data(14, []byte(s.Digest))
	e.text(15, s.Tenant)
	return e.b, e.err
}

func (e *encoder) options(o *txn.Options) {
	e.uint(1, uint64(o.Protocol))
	e.bool(2, o.WaitResult)
	e.bool(3, o.Concurrent)
	e.uint(4, uint64(o.Timeout.Milliseconds()))
	e.uint(5, uint64(o.RequestTimeout.Milliseconds()))
	e.uint(6, uint64(o.RetryInterval.Milliseconds()))
	e.uint(7, uint64(int64(int32(o.RetryLimit)))) // an int32 below zero is ten bytes, as protobuf has it
	e.uint(8, uint64(o.Delay.Milliseconds()))
	defer e.uint(10, uint64(o.Durability))
	if len(o.Headers) == 0 {
		return
	}
	for _, k := range slices.Sorted(maps.Keys(o.Headers)) {
		at := e.open(9)
		// A map's entry has both fields, empty ones too.
		e.string(1, k)
		e.string(2, o.Headers[k])
		e.shut(at)
	}
}

func (e *encoder) branch(br *txn.Branch) {
	e.text(1, string(br.ID))
	e.text(2, br.Try)
	e.text(3, br.Confirm)
	e.text(4, br.Cancel)
	e.data(5, br.Payload)
	if len(br.After) > 0 {
		at := e.open(6) // packed
		for _, j := range br.After {
			e.b = protowire.AppendVarint(e.b, uint64(uint32(j)))
		}
		e.shut(at)
	}
	e.bool(7, br.Message)
	e.bool(8, br.UseResults)
	e.text(9, br.Account)
}

func encodeProgress(s *txn.State, tl *Timeline) ([]byte, error) {
	e := encoder{b: make([]byte, 0, 64+24*len(s.Branches)+32*len(tl.Attempts))}
	e.uint(1, uint64(s.Phase))
	e.bool(2, s.Stopped)
	e.uint(3, uint64(s.UpdatedAt))
	e.uint(4, uint64(s.FinishedAt))
	e.uint(5, uint64(s.Retries))
	e.op(6, &s.Query)
	for i := range s.Branches {
		br := &s.Branches[i]
		at := e.open(7)
		e.op(1, &br.One)
		e.op(2, &br.Two)
		e.data(3, br.Result)
		e.shut(at)
	}
	for i := range tl.Attempts {
		a := &tl.Attempts[i]
		at := e.open(8)
		e.text(1, string(a.Branch))
		e.uint(2, uint64(a.Op))
		e.uint(3, uint64(uint32(a.Number)))
		e.uint(4, uint64(a.StartedAt))
		e.uint(5, uint64(uint32(min(a.Took.Microseconds(), 1<<32-1))))
		e.uint(6, uint64(a.Outcome))
		e.text(7, a.Text)
		e.shut(at)
	}
	e.uint(9, uint64(tl.Dropped))
	for _, t := range tl.Takeovers {
		at := e.open(10)
		e.uint(1, uint64(t.At))
		e.text(2, t.Holder)
		e.shut(at)
	}
	e.bool(11, s.InDoubt)
	return e.b, e.err
}

// op writes nothing for a call that was never made nor owed: most of them.
func (e *encoder) op(field protowire.Number, o *txn.OpState) {
	if o.Status == txn.OpPending && o.Attempts == 0 && o.Fails == 0 && o.LastError == "" {
		return
	}
	at := e.open(field)
	e.uint(1, uint64(o.Status))
	e.uint(2, uint64(uint32(o.Attempts)))
	e.uint(3, uint64(uint32(o.Fails)))
	e.uint(4, uint64(o.DoneAt))
	e.text(5, o.LastError)
	e.shut(at)
}

func (e *encoder) header(field protowire.Number, h Head, epoch uint64) {
	if h.Seq == 0 {
		return
	}
	at := e.open(field)
	e.uint(1, h.Seq)
	e.uint(2, epoch)
	e.data(3, h.Chain[:])
	e.shut(at)
}
