// Package channelfile reads what a payment channel sends at the end of a day: CSV and fixed-width files that a small mapping
// file describes, checked by control totals and signature, fetched from a directory, over HTTP or over SFTP.
//
// The law it keeps: a file is taken whole or not at all. A line that cannot be read is given with its number and its text and
// never dropped; a file whose signature or totals are wrong gives nothing. Memory does not grow with the file.
//
// It is tested with files of each kind and each fault, with an SFTP server on the loopback, and by fuzzing the line reader.
package channelfile

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"time"
	_ "time/tzdata" // a channel's zone is known on a machine that has none

	"gopkg.in/yaml.v3"
)

// Kind of a reconciliation, as payment companies run them.
type Kind string

const (
	// Business compares state and amount order by order.
	Business Kind = "business"
	// Funds compares settled sums of a period; the file has no state.
	Funds Kind = "funds"
	// Bill compares an account's statement with the ledger's entries.
	Bill Kind = "bill"
)

// Mapping describes a channel's files of one kind.
type Mapping struct {
	Channel string `yaml:"channel"`
	Kind    Kind   `yaml:"kind"`
	// Format is csv or fixed; Comma separates the fields of a csv and defaults to a comma.
	Format string `yaml:"format"`
	Comma  string `yaml:"comma"`
	// Header and Trailer are lines at the file's ends that hold no order.
	Header  *Frame `yaml:"header"`
	Trailer *Frame `yaml:"trailer"`
	// Skip is how many lines the file begins with that say nothing, such as column titles.
	Skip   int              `yaml:"skip"`
	Fields map[string]Field `yaml:"fields"`
	// States translates the channel's words: to paid, failed or open.
	States map[string]string `yaml:"states"`
	// Amount is minor (an integer of minor units) or decimal (with a point and exactly Decimals digits after it).
	Amount   string `yaml:"amount"`
	Decimals *int   `yaml:"decimals"`
	// Currency stands for a file that has no such field.
	Currency string `yaml:"currency"`
	// Time is Go's layout of the time field, in Zone. Defaults to RFC 3339.
	Time string `yaml:"time"`
	Zone string `yaml:"zone"`
	// DayCut is when the channel's day ends, HH:MM in Zone; a header field named cut wins. A day cut of 22:00 closes the day
	// that it falls on. Straddle is how long before the cut the other side may still be in the next day's file. Defaults to 30m:
	// with none, an order whose two sides stand a second before the cut and a second behind it would be taken for long.
	DayCut   string        `yaml:"day_cut"`
	Straddle time.Duration `yaml:"straddle"`
	// Parts is how many files make a day. Defaults to 1.
	Parts int `yaml:"parts"`
	// Name is a regular expression that a file's name matches, with groups day (yyyymmdd) and, of several parts, part.
	Name string `yaml:"name"`
	// BadLinesMax is how many lines may be unreadable before the whole file is refused. Defaults to 1000.
	BadLinesMax int       `yaml:"bad_lines_max"`
	Signature   Signature `yaml:"signature"`
	Source      Source    `yaml:"source"`
	// Accounts are the ledger's accounts whose statements a bill holds, or whose entries come to the sums of funds.
	Accounts []string `yaml:"accounts"`

	zone *time.Location
	name *regexp.Regexp
	cut  time.Duration
}

// Field is where a value stands: the column of a csv, from 1, or the first byte, from 1, and the width of a fixed line.
type Field struct {
	Column int `yaml:"column"`
	From   int `yaml:"from"`
	Width  int `yaml:"width"`
}

// Frame is a header or trailer: the text that it begins with, and its fields: count, sum, day, cut, opening, closing.
type Frame struct {
	Begins string           `yaml:"begins"`
	Fields map[string]Field `yaml:"fields"`
}

// Signature says how a file is signed: a detached signature in a file of the same name and .sig, hexadecimal or base64.
type Signature struct {
	// Type is hmac-sha256, ed25519 or none.
	Type string `yaml:"type"`
	// KeyFile holds the shared secret, or the channel's public key (PEM, or 32 bytes in hexadecimal or base64).
	KeyFile string `yaml:"key_file"`
}

// Source is where files are fetched from.
type Source struct {
	// URL is a directory, https://… with {day} for yyyymmdd and {part}, or sftp://user@host:port/directory.
	URL string `yaml:"url"`
	// KeyFile is the private key of an sftp user; KnownHosts holds the host's key, which is always checked.
	KeyFile    string `yaml:"key_file"`
	KnownHosts string `yaml:"known_hosts"`
	// TokenFile holds the bearer token of an http source.
	TokenFile string `yaml:"token_file"`
}

// fieldsOf are the fields that a kind has; those with a ! must be mapped.
var fieldsOf = map[Kind][]string{
	Business: {"payment", "merchant", "order_no", "refund", "state!", "amount!", "currency", "time!"},
	Funds:    {"merchant", "amount!", "currency", "count"},
	Bill:     {"account!", "transfer!", "direction!", "amount!", "currency", "time!"},
}

// LoadMapping reads a mapping file. An error names the field and what belongs there.
func LoadMapping(path string) (*Mapping, error) {
	raw, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	m := &Mapping{}
	dec := yaml.NewDecoder(bytes.NewReader(raw))
	dec.KnownFields(true)
	if err := dec.Decode(m); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	if err := m.Check(); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return m, nil
}

var channelName = regexp.MustCompile(`^[a-z0-9][a-z0-9_-]{0,31}$`)

// Check completes a mapping with its defaults; every fault is named.
func (m *Mapping) Check() error {
	var faults []error
	fault := func(field, format string, args ...any) {
		faults = append(faults, fmt.Errorf("%s: "+format, append([]any{field}, args...)...))
	}
	if !channelName.MatchString(m.Channel) {
		fault("channel", "%q: a name of small letters, digits, - and _ belongs here", m.Channel)
	}
	if fieldsOf[m.Kind] == nil {
		fault("kind", "%q: business, funds or bill belongs here", m.Kind)
	}
	m.defaults()
	if m.Format != "csv" && m.Format != "fixed" {
		fault("format", "%q: csv or fixed belongs here", m.Format)
	}
	if len(m.Comma) != 1 || strings.ContainsAny(m.Comma, "\"\r\n") {
		fault("comma", "%q: one character belongs here", m.Comma)
	}
	if m.Amount != "minor" && m.Amount != "decimal" {
		fault("amount", "%q: minor or decimal belongs here", m.Amount)
	}
	if *m.Decimals < 0 || *m.Decimals > 4 {
		fault("decimals", "%d: 0 to 4 are possible", *m.Decimals)
	}
	var err error
	if m.zone, err = time.LoadLocation(m.Zone); err != nil {
		fault("zone", "%w: a name such as Asia/Shanghai belongs here", err)
	}
	if at, err := time.Parse("15:04", m.DayCut); err != nil {
		fault("day_cut", "%q: a time such as 22:00 belongs here", m.DayCut)
	} else {
		m.cut = time.Duration(at.Hour())*time.Hour + time.Duration(at.Minute())*time.Minute
	}
	if m.Straddle < time.Second || m.Straddle > 12*time.Hour {
		fault("straddle", "%s: 1s to 12h are possible", m.Straddle)
	}
	if m.name, err = regexp.Compile(m.Name); err != nil || m.name.SubexpIndex("day") < 0 || m.Parts > 1 && m.name.SubexpIndex("part") < 0 {
		fault("name", "%q: an expression with a group (?P<day>\\d{8}) belongs here, and of several parts (?P<part>\\d+)", m.Name)
	}
	if !slices.Contains([]string{"none", "hmac-sha256", "ed25519"}, m.Signature.Type) {
		fault("signature.type", "%q: hmac-sha256, ed25519 or none belongs here", m.Signature.Type)
	} else if m.Signature.Type != "none" && m.Signature.KeyFile == "" {
		fault("signature.key_file", "it is empty: the file with the channel's key belongs here")
	}
	if m.Kind != Business && len(m.Accounts) == 0 && m.Kind != "" {
		fault("accounts", "none: the ledger's accounts that the file is about belong here")
	}
	m.checkFields(fault)
	return errors.Join(faults...)
}

// defaults fills what was left out. Signature has none: that a file comes unsigned is to be said.
func (m *Mapping) defaults() {
	set := func(s *string, v string) {
		if *s == "" {
			*s = v
		}
	}
	set(&m.Comma, ",")
	set(&m.Amount, "minor")
	set(&m.Time, time.RFC3339)
	set(&m.Zone, "UTC")
	set(&m.DayCut, "22:00")
	if m.Decimals == nil {
		two := 2
		m.Decimals = &two
	}
	if m.Straddle == 0 {
		m.Straddle = 30 * time.Minute
	}
	if m.Parts == 0 {
		m.Parts = 1
	}
	if m.BadLinesMax == 0 {
		m.BadLinesMax = 1000
	}
}

func (m *Mapping) checkFields(fault func(field, format string, args ...any)) {
	place := func(name string, f Field) {
		if m.Format == "csv" && (f.Column < 1 || f.Column > 500) {
			fault(name, "column: a number from 1 belongs here")
		}
		if m.Format == "fixed" && (f.From < 1 || f.Width < 1 || f.From+f.Width > lineMax) {
			fault(name, "from and width: the first byte, from 1, and the number of bytes belong here")
		}
	}
	known := map[string]bool{}
	for _, name := range fieldsOf[m.Kind] {
		name, must := strings.CutSuffix(name, "!")
		known[name] = true
		f, ok := m.Fields[name]
		if ok {
			place("fields."+name, f)
		} else if must {
			fault("fields."+name, "it is not mapped")
		}
	}
	for name := range m.Fields {
		if !known[name] && known["amount"] {
			fault("fields."+name, "a file of the kind %s has no such field; it has %s", m.Kind, strings.ReplaceAll(strings.Join(fieldsOf[m.Kind], ", "), "!", ""))
		}
	}
	if _, ok := m.Fields["payment"]; m.Kind == Business && !ok && (m.Fields["merchant"] == Field{} || m.Fields["order_no"] == Field{}) {
		fault("fields.payment", "the payment's id, or merchant and order_no, must be mapped: nothing else names the order")
	}
	if _, ok := m.Fields["currency"]; !ok && m.Currency == "" {
		fault("currency", "neither the file nor the mapping says it")
	}
	for word, state := range m.States {
		if state != "paid" && state != "failed" && state != "open" {
			fault("states."+word, "%q: paid, failed or open belongs here", state)
		}
	}
	if m.Kind == Business && len(m.States) == 0 {
		fault("states", "none: the channel's words belong here, each with paid, failed or open")
	}
	totals := 0
	for where, fr := range map[string]*Frame{"header": m.Header, "trailer": m.Trailer} {
		if fr == nil {
			continue
		}
		for name, f := range fr.Fields {
			if !slices.Contains([]string{"count", "sum", "day", "cut", "opening", "closing"}, name) {
				fault(where+".fields."+name, "count, sum, day, cut, opening and closing are possible")
			}
			if name == "count" || name == "sum" {
				totals++
			}
			place(where+".fields."+name, f)
		}
	}
	if totals < 2 {
		fault("trailer", "header and trailer together must hold the control totals count and sum: without them a file that was cut short would pass")
	}
}

// DayOf gives the day and the part that a file's name says.
func (m *Mapping) DayOf(name string) (day string, part int, err error) {
	g := m.name.FindStringSubmatch(name)
	if g == nil {
		return "", 0, fmt.Errorf("name: %q does not match %q", name, m.Name)
	}
	day = g[m.name.SubexpIndex("day")]
	if _, err := time.Parse("20060102", day); err != nil {
		return "", 0, fmt.Errorf("name: %q: %q is no day", name, day)
	}
	part = 1
	if i := m.name.SubexpIndex("part"); i >= 0 {
		if _, err := fmt.Sscanf(g[i], "%d", &part); err != nil || part < 1 || part > m.Parts {
			return "", 0, fmt.Errorf("name: %q: part %q of %d", name, g[i], m.Parts)
		}
	}
	return day, part, nil
}

// CutOf is when a day (yyyymmdd) ends, unless its file says otherwise.
func (m *Mapping) CutOf(day string) (time.Time, error) {
	d, err := time.ParseInLocation("20060102", day, m.zone)
	if err != nil {
		return d, fmt.Errorf("day %q: yyyymmdd belongs here", day)
	}
	cut := m.cut
	if cut == 0 { // midnight ends the day, it does not begin it
		d = d.AddDate(0, 0, 1)
	}
	return time.Date(d.Year(), d.Month(), d.Day(), int(cut.Hours()), int(cut.Minutes())%60, 0, 0, m.zone), nil
}
