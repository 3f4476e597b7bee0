package conduct

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/lockstep-tx/lockstep/region/arbiter"
)

// Entry is one line of the audit. Hash is over the line before it and everything else of this one.
type Entry struct {
	At   string `json:"at"`
	Who  string `json:"who"`
	Act  string `json:"act"`
	Text string `json:"text,omitempty"`
	Op   string `json:"op,omitempty"`
	Prev string `json:"prev"`
	Hash string `json:"hash"`
}

func (e Entry) sum() string {
	h := sha256.New()
	for _, s := range []string{e.At, e.Who, e.Act, e.Text, e.Op, e.Prev} {
		fmt.Fprintf(h, "%d:%s", len(s), s)
	}
	return hex.EncodeToString(h.Sum(nil))
}

// line is a line of the audit that is not chained yet.
func (c *Conductor) line(act, text, op string, at time.Time) *Entry {
	return &Entry{At: at.UTC().Format(time.RFC3339Nano), Who: c.Who, Act: act, Text: text, Op: op}
}

// Audit appends a line to the chain; durable on nil.
func (c *Conductor) Audit(ctx context.Context, act, text, op string, at time.Time) error {
	_, err := c.record(ctx, c.line(act, text, op, at))
	return err
}

// record appends a line to the audit (nil for none) and writes rows, all or nothing. arbiter.ErrChanged when a row stands
// otherwise; where only somebody else has appended to the audit, the line is chained to theirs.
func (c *Conductor) record(ctx context.Context, line *Entry, rows ...arbiter.In) (rev int64, err error) {
	if line == nil {
		return c.Arbiter.PutAll(ctx, rows...)
	}
	for {
		audit, err := c.chained(ctx, line)
		if err != nil {
			return 0, err
		}
		rev, err = c.Arbiter.PutAll(ctx, append(slices.Clone(rows), audit)...)
		if err == nil {
			c.last = line
			c.lines++
			return rev, nil
		}
		if !errors.Is(err, arbiter.ErrChanged) {
			return 0, err
		}
		c.last = nil
		for _, row := range rows {
			stands, gerr := c.Arbiter.Get(ctx, row.Table, row.Key)
			if gerr != nil || stands.Rev != row.Rev {
				return 0, errors.Join(gerr, err)
			}
		}
	}
}

// chained gives the audit's next row.
func (c *Conductor) chained(ctx context.Context, line *Entry) (arbiter.In, error) {
	if c.last == nil {
		if err := c.readLast(ctx); err != nil {
			return arbiter.In{}, err
		}
	}
	line.Prev = c.last.Hash
	line.Hash = line.sum()
	value, err := json.Marshal(line)
	return arbiter.In{Table: auditTable, Row: arbiter.Row{Key: fmt.Sprintf("%012d", c.lines+1), Value: value}}, err
}

// readLast reads the audit's last line.
func (c *Conductor) readLast(ctx context.Context) error {
	row, err := c.Arbiter.Last(ctx, auditTable)
	if err != nil {
		return err
	}
	last, lines := &Entry{}, 0
	if row.Rev != 0 {
		if err := json.Unmarshal(row.Value, last); err != nil {
			return fmt.Errorf("the audit's last line: %w", err)
		}
		if lines, err = strconv.Atoi(row.Key); err != nil {
			return fmt.Errorf("the audit's last line: %w", err)
		}
	}
	c.last, c.lines = last, lines
	return nil
}

// History reads the audit and checks its chain: an error names the first line that does not fit.
func (c *Conductor) History(ctx context.Context) ([]Entry, error) {
	rows, err := c.Arbiter.List(ctx, auditTable, "")
	if err != nil {
		return nil, err
	}
	out := make([]Entry, len(rows))
	prev := ""
	for i, row := range rows {
		if err := json.Unmarshal(row.Value, &out[i]); err != nil {
			return out[:i], fmt.Errorf("audit line %s: %w", row.Key, err)
		}
		if out[i].Prev != prev || out[i].Hash != out[i].sum() || strings.TrimLeft(row.Key, "0") != fmt.Sprint(i+1) {
			return out, fmt.Errorf("audit line %s does not follow the one before it: somebody has changed the audit", row.Key)
		}
		prev = out[i].Hash
	}
	return out, nil
}
