package dayend

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"os"

	"github.com/lockstep-tx/lockstep/participants/sqldb"
	"github.com/lockstep-tx/lockstep/region/reconcile/channelfile"
)

// Class of a difference.
type Class string

// The classes.
const (
	// LostAnswer (掉单): ours is not decided, theirs is paid. It is asked for.
	LostAnswer Class = "lost-answer"
	// Long (长款): ours only. It is reversed.
	Long Class = "long"
	// Short (短款): theirs only. A person books the missing order.
	Short Class = "short"
	// AmountDiffers is an alarm.
	AmountDiffers Class = "amount"
	// StateDiffers: one side paid, the other one refused, or undecided for longer than a day.
	StateDiffers Class = "state"
	// Duplicate: a second line for what was matched.
	Duplicate Class = "duplicate"
	// LateOriginal: the channel brings what we have reversed. It is not booked.
	LateOriginal Class = "late-original"
	// BadLine cannot be read.
	BadLine Class = "bad-line"
)

// Status of a finding.
type Status string

// The statuses. Due waits for an act of ours, open for a person.
const (
	StatusDue   Status = "due"
	StatusOpen  Status = "open"
	StatusEnded Status = "ended"
)

// Finding is one difference. One that waits for a person is a case.
type Finding struct {
	ID      string           `json:"id"`
	Channel string           `json:"channel"`
	Kind    channelfile.Kind `json:"kind"`
	Day     string           `json:"day"`
	Class   Class            `json:"class"`
	Status  Status           `json:"status"`
	Key     string           `json:"key,omitempty"`
	Text    string           `json:"text"`
	Ours    *Row             `json:"ours,omitempty"`
	Theirs  *Row             `json:"theirs,omitempty"`
	// File, Part, Line and Raw are where it stands in the channel's file.
	File string `json:"file,omitempty"`
	Part int    `json:"part,omitempty"`
	Line int64  `json:"line,omitempty"`
	Raw  string `json:"raw,omitempty"`
	// Merchant and OrderNo are the line's, for the order to be booked.
	Merchant string `json:"merchant,omitempty"`
	OrderNo  string `json:"order_no,omitempty"`

	Outcome  string `json:"outcome,omitempty"`
	Who      string `json:"who,omitempty"`
	Attempts int    `json:"attempts,omitempty"`
	FoundMS  int64  `json:"found_ms"`
	EndedMS  int64  `json:"ended_ms,omitempty"`
}

func (f *Finding) of() of { return of{f.Channel, f.Kind, f.Day} }

// identify gives a finding the id of its fact.
func (f *Finding) identify(o of, fact string) {
	f.Channel, f.Kind, f.Day = o.channel, o.kind, o.day
	f.ID = idOf(o.channel, string(o.kind), o.day, string(f.Class), fact)
}

func (b *Book) put(ctx context.Context, tx *sql.Tx, f *Finding, now int64) error {
	f.FoundMS = now
	raw, err := json.Marshal(f)
	if err != nil {
		return err
	}
	_, err = b.inserted(ctx, tx, "INTO recon_finding (id, channel, kind, day, class, status, body, outcome, found_ms) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
		f.ID, f.Channel, string(f.Kind), f.Day, string(f.Class), string(f.Status), string(raw), clip(f.Outcome, 1000), now)
	return err
}

// Filter of Findings; empty fields take all.
type Filter struct {
	Channel  string
	Kind     channelfile.Kind
	Day      string
	Standing bool // those that are not ended
}

// Each gives findings in the order of their ids.
func (b *Book) Each(ctx context.Context, f Filter, each func(Finding) error) error {
	const page = 1000
	for after := ""; ; {
		where, args := "id > ?", []any{after}
		for _, c := range []struct{ column, value string }{{"channel", f.Channel}, {"kind", string(f.Kind)}, {"day", f.Day}} {
			if c.value != "" {
				where, args = where+" AND "+c.column+" = ?", append(args, c.value)
			}
		}
		if f.Standing {
			where += " AND status IN ('due', 'open')"
		}
		list, err := b.findings(ctx, where+" ORDER BY id LIMIT ?", append(args, page)...)
		if err != nil {
			return err
		}
		for _, x := range list {
			if err := each(x); err != nil {
				return err
			}
			after = x.ID
		}
		if len(list) < page {
			return nil
		}
	}
}

func (b *Book) findings(ctx context.Context, where string, args ...any) ([]Finding, error) {
	rows, err := b.DB.QueryContext(ctx, b.Dialect.Q("SELECT body, status, outcome, who, attempts, ended_ms FROM recon_finding WHERE "+where), args...)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var out []Finding
	for rows.Next() {
		var f Finding
		var body []byte
		var status Status
		var outcome, who string
		var attempts int
		var ended int64
		if err := rows.Scan(&body, &status, &outcome, &who, &attempts, &ended); err != nil {
			return nil, err
		}
		if err := json.Unmarshal(body, &f); err != nil {
			return nil, fmt.Errorf("finding: %w", err)
		}
		f.Status, f.Outcome, f.Who, f.Attempts, f.EndedMS = status, outcome, who, attempts, ended
		out = append(out, f)
	}
	return out, rows.Err()
}

// ErrNoFinding says that there is no such finding.
var ErrNoFinding = errors.New("there is no such case")

// Finding reads one.
func (b *Book) Finding(ctx context.Context, id string) (*Finding, error) {
	list, err := b.findings(ctx, "id = ?", id)
	if err == nil && len(list) == 0 {
		err = fmt.Errorf("%w: %q", ErrNoFinding, id)
	}
	if err != nil {
		return nil, err
	}
	return &list[0], nil
}

// moved says what a finding has come to. It goes on from the status that it was read with, so that two who work on one do
// not overwrite each other; alongside is done with it, all or nothing.
func (b *Book) moved(ctx context.Context, f *Finding, to Status, who, outcome string, alongside func(*sql.Tx) error) error {
	now := b.Now().UnixMilli()
	ended := int64(0)
	if to == StatusEnded {
		ended = now
	}
	err := sqldb.InTx(ctx, b.DB, func(tx *sql.Tx) error {
		ok, err := b.Dialect.Change(ctx, tx, "UPDATE recon_finding SET status = ?, who = ?, outcome = ?, attempts = attempts + 1, ended_ms = ? WHERE id = ? AND status = ? AND attempts = ?",
			string(to), clip(who, 200), clip(outcome, 1000), ended, f.ID, string(f.Status), f.Attempts)
		if err == nil && !ok {
			err = &Conflict{"case", fmt.Sprintf("%s was changed by somebody else meanwhile; look at it again", f.ID)}
		}
		if err == nil && alongside != nil {
			err = alongside(tx)
		}
		if err != nil {
			return err
		}
		return b.audit(ctx, tx, who, string(f.Class)+" "+string(to), fmt.Sprintf("%s %s: %s", f.of(), f.ID, outcome))
	})
	if err == nil {
		f.Status, f.Who, f.Outcome, f.EndedMS = to, who, outcome, ended
		f.Attempts++
	}
	return err
}

// locate completes a finding from the channel's file: the line as it stands there, and the order that it names.
func (b *Book) locate(m *channelfile.Mapping, files []File, f *Finding) {
	if f.Theirs == nil || f.Theirs.Line == 0 {
		return
	}
	for _, file := range files {
		if file.Part != f.Theirs.Part {
			continue
		}
		f.File, f.Part, f.Line = file.Name, file.Part, f.Theirs.Line
		in, err := os.Open(b.filePath(file.Digest))
		if err != nil {
			return // the sorted line is enough to go on
		}
		defer in.Close()
		if l, raw, err := m.LineAt(in, f.Theirs.Offset); err == nil {
			f.Raw, f.Merchant, f.OrderNo = clip(raw, 2000), l.Merchant, l.OrderNo
		}
	}
}
