package channelfile

import (
	"bufio"
	"bytes"
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"
)

// State is what a channel says of an order.
type State byte

// The states. None is that of files that have none.
const (
	None State = iota
	Paid
	Failed
	Open
)

func (s State) String() string { return [...]string{"none", "paid", "failed", "open"}[s] }

// Line is a line of a file.
type Line struct {
	Number int64
	Offset int64 // of its first byte in the file
	// Key fields, by the kind of the file.
	Payment, Merchant, OrderNo, Refund string
	Account, Transfer                  string
	Debit                              bool
	Amount                             int64 // minor units
	Currency                           string
	State                              State
	TimeMS                             int64
	Count                              int64
}

// Bad is a line that cannot be read.
type Bad struct {
	Number int64
	Why    string // begins with the field
	Text   string
}

// Totals are what was counted, and what the file says of itself.
type Totals struct {
	Lines, Bad int64
	Sum        int64 // of the good lines' amounts, credits less debits in a bill
	// Of header and trailer; "" and nil where the file says nothing.
	Day   string
	CutMS int64
}

const lineMax = 64 << 10

// ErrTotals says that a file does not hold what its control totals say.
var ErrTotals = errors.New("the control totals are wrong")

// Read gives every line of a file: good ones to each, others to bad. The error says why the file cannot be taken: it
// contradicts its control totals, is cut short, or has too many bad lines. What each was given before then is void.
func (m *Mapping) Read(r io.Reader, each func(*Line) error, bad func(Bad) error) (Totals, error) {
	rd := reader{m: m, each: each, bad: bad, said: map[string]int64{}}
	br := bufio.NewReaderSize(r, 1<<20)
	for {
		text, err := rd.next(br)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return rd.totals, fmt.Errorf("line %d: %w", rd.n, err)
		}
		if err := rd.take(text); err != nil {
			return rd.totals, err
		}
	}
	return rd.totals, rd.check()
}

type reader struct {
	m        *Mapping
	each     func(*Line) error
	bad      func(Bad) error
	n        int64
	at, end  int64 // where the line begins and ends
	totals   Totals
	said     map[string]int64 // by frame fields
	fields   [][]byte
	ended    bool
	buf      []byte
	last     [16]byte // the currency that was read last, so that it is not made anew for each line
	lastText string
}

// next reads a line without its end. A line that is too long is an error: the file is something else.
func (r *reader) next(br *bufio.Reader) ([]byte, error) {
	r.buf, r.at = r.buf[:0], r.end
	for {
		part, err := br.ReadSlice('\n')
		r.end += int64(len(part))
		if len(r.buf) == 0 && err == nil {
			r.n++
			return bytes.TrimRight(part, "\r\n"), nil
		}
		r.buf = append(r.buf, part...)
		switch {
		case len(r.buf) > lineMax:
			return nil, fmt.Errorf("it has more than %d bytes", lineMax)
		case errors.Is(err, bufio.ErrBufferFull):
			continue
		case errors.Is(err, io.EOF) && len(r.buf) == 0:
			return nil, io.EOF
		case err != nil && !errors.Is(err, io.EOF):
			return nil, err
		}
		r.n++
		return bytes.TrimRight(r.buf, "\r\n"), nil
	}
}

func (r *reader) take(text []byte) error {
	m := r.m
	if r.n == 1 {
		text = bytes.TrimPrefix(text, []byte("\ufeff"))
	}
	switch {
	case m.Header != nil && r.n == 1:
		return r.frame("header", m.Header, text)
	case r.n <= int64(m.Skip)+r.headers():
		return nil
	case m.Trailer != nil && !r.ended && bytes.HasPrefix(text, []byte(m.Trailer.Begins)):
		r.ended = true
		return r.frame("trailer", m.Trailer, text)
	case r.ended && len(text) > 0:
		return r.refuse(text, errors.New("trailer: a line follows it"))
	case len(text) == 0 && r.ended:
		return nil
	}
	r.totals.Lines++
	l := Line{Number: r.n, Offset: r.at}
	if err := r.line(text, &l); err != nil {
		return r.refuse(text, err)
	}
	if m.Kind == Bill && l.Debit {
		r.totals.Sum -= l.Amount
	} else {
		r.totals.Sum += l.Amount
	}
	return r.each(&l)
}

func (r *reader) headers() int64 {
	if r.m.Header != nil {
		return 1
	}
	return 0
}

// refuse reports a bad line.
func (r *reader) refuse(text []byte, why error) error {
	r.totals.Bad++
	if r.totals.Bad > int64(r.m.BadLinesMax) {
		return fmt.Errorf("line %d: %w; it is bad line %d: the file is not what the mapping describes, nothing of it is taken", r.n, why, r.totals.Bad)
	}
	return r.bad(Bad{Number: r.n, Why: why.Error(), Text: strings.ToValidUTF8(string(text), "\ufffd")})
}

// split finds a line's fields. A csv line without quotes is cut at its commas; encoding/csv reads the others.
func (r *reader) split(text []byte) error {
	r.fields = r.fields[:0]
	if r.m.Format == "fixed" {
		r.fields = append(r.fields, text)
		return nil
	}
	if bytes.IndexByte(text, '"') < 0 {
		for {
			i := bytes.IndexByte(text, r.m.Comma[0])
			if i < 0 {
				r.fields = append(r.fields, text)
				return nil
			}
			r.fields = append(r.fields, text[:i])
			text = text[i+1:]
		}
	}
	cr := csv.NewReader(bytes.NewReader(text))
	cr.Comma = rune(r.m.Comma[0])
	rec, err := cr.Read()
	if err != nil {
		return fmt.Errorf("quotes: %w", err)
	}
	for _, f := range rec {
		r.fields = append(r.fields, []byte(f))
	}
	return nil
}

// field is a value's text without the spaces around it.
func (r *reader) field(f Field) ([]byte, error) {
	if r.m.Format == "fixed" {
		text := r.fields[0]
		if len(text) < f.From-1+f.Width {
			return nil, fmt.Errorf("the line has %d bytes, it stands in %d to %d", len(text), f.From, f.From+f.Width-1)
		}
		return bytes.TrimSpace(text[f.From-1 : f.From-1+f.Width]), nil
	}
	if len(r.fields) < f.Column {
		return nil, fmt.Errorf("the line has %d columns, it stands in column %d", len(r.fields), f.Column)
	}
	return bytes.TrimSpace(r.fields[f.Column-1]), nil
}

// frame reads a header or trailer; a wrong one voids the file.
func (r *reader) frame(name string, fr *Frame, text []byte) error {
	if !bytes.HasPrefix(text, []byte(fr.Begins)) {
		return fmt.Errorf("%s: line %d does not begin with %q", name, r.n, fr.Begins)
	}
	if err := r.split(text); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	for field, place := range fr.Fields {
		v, err := r.field(place)
		if err == nil {
			switch field {
			case "day":
				r.totals.Day = strings.ReplaceAll(string(v), "-", "")
			case "cut":
				var at time.Time
				at, err = time.ParseInLocation(r.m.Time, string(v), r.m.zone)
				r.totals.CutMS = at.UnixMilli()
			case "count":
				r.said[field], err = strconv.ParseInt(string(v), 10, 64)
			default:
				r.said[field], err = r.m.minor(v)
			}
		}
		if err != nil {
			return fmt.Errorf("%s.%s: %w", name, field, err)
		}
	}
	return nil
}

// check holds what was counted against what the file says. The sum of a file with bad lines cannot be checked: what they hold
// is not known, and a person looks at them anyway.
func (r *reader) check() error {
	if r.m.Trailer != nil && !r.ended {
		return fmt.Errorf("%w: trailer: the file ends without the line that begins with %q; it was cut short", ErrTotals, r.m.Trailer.Begins)
	}
	if n, ok := r.said["count"]; ok && n != r.totals.Lines {
		return fmt.Errorf("%w: count: the file says %d lines and has %d", ErrTotals, n, r.totals.Lines)
	} else if !ok {
		return fmt.Errorf("%w: count: the file does not say it", ErrTotals)
	}
	if n := r.said["sum"]; r.totals.Bad == 0 && n != r.totals.Sum {
		return fmt.Errorf("%w: sum: the file says %d minor units, its lines come to %d", ErrTotals, n, r.totals.Sum)
	}
	opening, ok := r.said["opening"]
	closing, both := r.said["closing"]
	if ok && both && r.totals.Bad == 0 && opening+r.totals.Sum != closing {
		return fmt.Errorf("%w: closing: the file says %d, its opening %d and its lines come to %d", ErrTotals, closing, opening, opening+r.totals.Sum)
	}
	return nil
}

// LineAt reads the one line of a file that begins at an offset, as it stands there and as the mapping reads it.
func (m *Mapping) LineAt(f io.ReaderAt, offset int64) (l Line, raw string, err error) {
	r := reader{m: m}
	text, err := r.next(bufio.NewReader(io.NewSectionReader(f, offset, lineMax)))
	if err != nil {
		return l, "", err
	}
	raw = strings.ToValidUTF8(string(text), "\ufffd")
	l.Offset = offset
	return l, raw, r.line(text, &l)
}
