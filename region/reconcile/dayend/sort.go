package dayend

import (
	"bufio"
	"bytes"
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
)

// A sorted file is what a sorter leaves: runs, each in the order of its keys, one behind the other; then where each begins,
// how many there are, and a mark, so that a file that was cut short is not taken for one that is short. The runs are merged
// when they are read, which saves writing everything once more.

const (
	arenaBytes  = 24 << 20 // of records that are sorted at once
	sortedMark  = "lksrt01\n"
	readBuffer  = 256 << 10
	writeBuffer = 1 << 20
)

// sorter sorts more rows than memory holds. While one arena is filled the other is sorted and written.
type sorter struct {
	f       *os.File
	path    string
	now     *arena
	spare   chan *arena
	done    chan error
	arenas  chan *arena
	written int64
	begins  []int64
}

// arena holds records and where they are.
type arena struct {
	data   []byte
	index  []place
	common int // bytes that all keys begin with
}

type place struct {
	prefix uint64 // the key's next bytes behind the common ones
	at, n  uint32
}

// newSorter makes path when finish is called; until then it has another name.
func newSorter(path string) (*sorter, error) {
	f, err := os.CreateTemp(filepath.Dir(path), ".sorting-*")
	if err != nil {
		return nil, err
	}
	s := &sorter{f: f, path: path, spare: make(chan *arena, 2), done: make(chan error, 1), arenas: make(chan *arena, 1)}
	for range 2 {
		s.spare <- &arena{data: make([]byte, 0, arenaBytes+(1<<10)), index: make([]place, 0, arenaBytes/48)}
	}
	s.now = <-s.spare
	go func() { s.done <- s.write() }()
	return s, nil
}

// add takes a row.
func (s *sorter) add(r *Row) error {
	a := s.now
	at := len(a.data)
	a.data = r.append(a.data)
	a.index = append(a.index, place{at: uint32(at), n: uint32(len(a.data) - at)})
	if at == 0 {
		a.common = len(r.Key)
	} else if a.common > 0 {
		a.common = commonPrefix(keyOf(a.data), r.Key, a.common)
	}
	if len(a.data) < arenaBytes {
		return nil
	}
	s.arenas <- a
	s.now = <-s.spare
	return nil
}

func commonPrefix(a []byte, b string, most int) int {
	n := min(len(a), len(b), most)
	for i := range n {
		if a[i] != b[i] {
			return i
		}
	}
	return n
}

func (a *arena) sort() {
	for i := range a.index {
		p := &a.index[i]
		var head [8]byte
		copy(head[:], keyOf(a.data[p.at:])[a.common:])
		p.prefix = binary.BigEndian.Uint64(head[:])
	}
	slices.SortFunc(a.index, func(x, y place) int {
		if c := cmp.Compare(x.prefix, y.prefix); c != 0 {
			return c
		}
		if c := bytes.Compare(keyOf(a.data[x.at:]), keyOf(a.data[y.at:])); c != 0 {
			return c
		}
		return cmp.Compare(x.at, y.at)
	})
}

// write sorts and writes the arenas that come; it takes them all, also after an error.
func (s *sorter) write() error {
	w := bufio.NewWriterSize(s.f, writeBuffer)
	var failed error
	var head [binary.MaxVarintLen64]byte
	for a := range s.arenas {
		a.sort()
		s.begins = append(s.begins, s.written)
		for _, p := range a.index {
			if failed != nil {
				break
			}
			h := binary.PutUvarint(head[:], uint64(p.n))
			_, err := w.Write(head[:h])
			if err == nil {
				_, err = w.Write(a.data[p.at : p.at+p.n])
			}
			failed = err
			s.written += int64(h) + int64(p.n)
		}
		a.data, a.index, a.common = a.data[:0], a.index[:0], 0
		s.spare <- a
	}
	return errors.Join(failed, w.Flush())
}

// finish makes the file appear under its name; durable on nil.
func (s *sorter) finish() error {
	if len(s.now.data) > 0 {
		s.arenas <- s.now
	}
	close(s.arenas)
	err := <-s.done
	s.now, s.spare = nil, nil // the arenas are free
	var foot []byte
	for _, at := range append(s.begins, s.written) {
		foot = binary.BigEndian.AppendUint64(foot, uint64(at))
	}
	foot = binary.BigEndian.AppendUint32(foot, uint32(len(s.begins)))
	foot = append(foot, sortedMark...)
	if err == nil {
		_, err = s.f.Write(foot)
	}
	if err = errors.Join(err, s.f.Sync(), s.f.Close()); err == nil {
		err = os.Rename(s.f.Name(), s.path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(s.f.Name()))
	}
	return nil
}

// abandon leaves nothing.
func (s *sorter) abandon() {
	close(s.arenas)
	<-s.done
	s.f.Close()
	os.Remove(s.f.Name())
}

// source gives records in the order of their keys.
type source interface {
	// next reads the next record into r; io.EOF after the last one.
	next(r *record) error
}

// run is one run of a sorted file.
type run struct {
	r   *bufio.Reader
	buf []byte
}

func (s *run) next(r *record) error {
	n, err := binary.ReadUvarint(s.r)
	if err != nil {
		return err
	}
	if n > 1<<20 {
		return errRecord
	}
	if cap(s.buf) < int(n) {
		s.buf = make([]byte, n)
	}
	s.buf = s.buf[:n]
	if _, err := io.ReadFull(s.r, s.buf); err != nil {
		return fmt.Errorf("%w: %w", errRecord, err)
	}
	return r.decode(s.buf)
}

// openSorted gives a sorted file's runs. The caller closes the file.
func openSorted(path string) (f *os.File, runs []source, err error) {
	if f, err = os.Open(path); err != nil {
		return nil, nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("%s: %w", path, err), f.Close())
		}
	}()
	st, err := f.Stat()
	if err != nil {
		return f, nil, err
	}
	tail := make([]byte, 4+len(sortedMark))
	if st.Size() < int64(len(tail)) {
		return f, nil, errRecord
	}
	if _, err := f.ReadAt(tail, st.Size()-int64(len(tail))); err != nil {
		return f, nil, err
	}
	n := int64(binary.BigEndian.Uint32(tail))
	at := st.Size() - int64(len(tail)) - 8*(n+1)
	if string(tail[4:]) != sortedMark || at < 0 {
		return f, nil, errRecord
	}
	foot := make([]byte, 8*(n+1))
	if _, err := f.ReadAt(foot, at); err != nil {
		return f, nil, err
	}
	for i := range n {
		from, to := int64(binary.BigEndian.Uint64(foot[8*i:])), int64(binary.BigEndian.Uint64(foot[8*i+8:]))
		runs = append(runs, &run{r: bufio.NewReaderSize(io.NewSectionReader(f, from, to-from), readBuffer)})
	}
	return f, runs, nil
}

// merge is several sources as one.
type merge struct {
	heads []head // a heap by key
}

type head struct {
	record
	from source
}

func newMerge(sources ...source) (*merge, error) {
	m := &merge{}
	for _, s := range sources {
		h := head{from: s}
		switch err := s.next(&h.record); {
		case errors.Is(err, io.EOF):
			continue
		case err != nil:
			return nil, err
		}
		m.heads = append(m.heads, h)
	}
	for i := len(m.heads)/2 - 1; i >= 0; i-- {
		m.down(i)
	}
	return m, nil
}

// peek is the record with the smallest key, nil at the end. It is good until take.
func (m *merge) peek() *record {
	if len(m.heads) == 0 {
		return nil
	}
	return &m.heads[0].record
}

// take goes on to the next record.
func (m *merge) take() error {
	h := &m.heads[0]
	err := h.from.next(&h.record)
	if errors.Is(err, io.EOF) {
		n := len(m.heads) - 1
		m.heads[0] = m.heads[n]
		m.heads = m.heads[:n]
		err = nil
	}
	if err == nil && len(m.heads) > 0 {
		m.down(0)
	}
	return err
}

func (m *merge) less(i, j int) bool {
	a, b := &m.heads[i].record, &m.heads[j].record
	if c := bytes.Compare(a.key, b.key); c != 0 {
		return c < 0
	}
	if (a.pooled != nil) != (b.pooled != nil) {
		return a.pooled != nil
	}
	if a.part != b.part {
		return a.part < b.part
	}
	return a.line < b.line
}

func (m *merge) down(i int) {
	for {
		least := i
		for j := 2*i + 1; j <= 2*i+2 && j < len(m.heads); j++ {
			if m.less(j, least) {
				least = j
			}
		}
		if least == i {
			return
		}
		m.heads[i], m.heads[least] = m.heads[least], m.heads[i]
		i = least
	}
}
