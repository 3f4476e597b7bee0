package channelfile

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"time"
)

// line reads a line's fields. The error begins with the field's name.
func (r *reader) line(text []byte, l *Line) error {
	if err := r.split(text); err != nil {
		return err
	}
	for _, name := range fieldsOf[r.m.Kind] {
		name, _ = strings.CutSuffix(name, "!")
		place, ok := r.m.Fields[name]
		if !ok {
			continue
		}
		v, err := r.field(place)
		if err == nil {
			err = r.value(name, v, l)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	if l.Currency == "" {
		l.Currency = r.m.Currency
	}
	return r.complete(l)
}

// complete refuses a line that names nothing.
func (r *reader) complete(l *Line) error {
	switch {
	case r.m.Kind == Business && l.Payment == "" && (l.Merchant == "" || l.OrderNo == ""):
		return errors.New("order_no: the line names no order")
	case r.m.Kind != Funds && l.Amount <= 0:
		return fmt.Errorf("amount: %d; it is positive, what it is says another field", l.Amount)
	case r.m.Kind == Bill && (l.Account == "" || l.Transfer == ""):
		return errors.New("transfer: the line names no entry")
	}
	return nil
}

const textMax = 128

func (r *reader) value(name string, v []byte, l *Line) (err error) {
	switch name {
	case "payment":
		l.Payment, err = text(v)
	case "merchant":
		l.Merchant, err = text(v)
	case "order_no":
		l.OrderNo, err = text(v)
	case "refund":
		l.Refund, err = text(v)
	case "account":
		l.Account, err = text(v)
	case "transfer":
		l.Transfer, err = text(v)
	case "currency":
		l.Currency, err = r.currency(v)
	case "amount":
		l.Amount, err = r.m.minor(v)
	case "count":
		l.Count, err = integer(v)
	case "state":
		l.State, err = r.m.state(v)
	case "direction":
		l.Debit, err = direction(v)
	case "time":
		l.TimeMS, err = r.m.time(v)
	}
	return err
}

func text(v []byte) (string, error) {
	if len(v) > textMax {
		return "", fmt.Errorf("%d bytes; at most %d are possible", len(v), textMax)
	}
	for _, c := range v {
		if c < 0x20 || c == 0x7f {
			return "", fmt.Errorf("it holds the byte %#02x, which no id has", c)
		}
	}
	return string(v), nil
}

func (r *reader) currency(v []byte) (string, error) {
	if r.lastText != "" && bytes.Equal(r.last[:len(r.lastText)], v) {
		return r.lastText, nil
	}
	if len(v) != 3 || bytes.ContainsFunc(v, func(c rune) bool { return c < 'A' || c > 'Z' }) {
		return "", fmt.Errorf("%q: three capital letters belong here", v)
	}
	r.lastText = string(v)
	copy(r.last[:], v)
	return r.lastText, nil
}

func integer(v []byte) (n int64, err error) {
	if len(v) == 0 || len(v) > 18 {
		return 0, fmt.Errorf("%q: a number of at most 18 digits belongs here", v)
	}
	for _, c := range v {
		if c < '0' || c > '9' {
			return 0, fmt.Errorf("%q: a number belongs here", v)
		}
		n = n*10 + int64(c-'0')
	}
	return n, nil
}

// minor reads an amount. A decimal has exactly as many digits after its point as the mapping says: 1.5 for 1.50 is refused,
// not guessed.
func (m *Mapping) minor(v []byte) (int64, error) {
	digits, negative := bytes.CutPrefix(v, []byte("-"))
	if m.Amount == "decimal" && *m.Decimals > 0 {
		whole, part, ok := bytes.Cut(digits, []byte("."))
		if !ok || len(whole) == 0 || len(part) != *m.Decimals {
			return 0, fmt.Errorf("%q: an amount with %d digits after the point belongs here", v, *m.Decimals)
		}
		digits = append(append(make([]byte, 0, 24), whole...), part...)
	}
	n, err := integer(digits)
	if err != nil {
		return 0, fmt.Errorf("%q: an amount of at most 18 digits belongs here", v)
	}
	if negative {
		n = -n
	}
	return n, nil
}

func (m *Mapping) state(v []byte) (State, error) {
	switch m.States[string(v)] {
	case "paid":
		return Paid, nil
	case "failed":
		return Failed, nil
	case "open":
		return Open, nil
	}
	return None, fmt.Errorf("%q: the mapping's states do not have it", v)
}

func direction(v []byte) (debit bool, err error) {
	switch string(v) {
	case "debit", "D", "DR", "-":
		return true, nil
	case "credit", "C", "CR", "+":
		return false, nil
	}
	return false, fmt.Errorf("%q: debit or credit belongs here", v)
}

func (m *Mapping) time(v []byte) (int64, error) {
	at, err := time.ParseInLocation(m.Time, string(v), m.zone)
	if err != nil {
		return 0, fmt.Errorf("%q: a time such as %s belongs here", v, m.Time)
	}
	return at.UnixMilli(), nil
}
