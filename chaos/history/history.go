// Package history records what logical clients asked for and what they were told, as JSON lines.
//
// Its law: an operation ends as ok, fail (it definitely did not happen) or unknown (it may happen at any later time). A
// timeout is never fail. A client that saw unknown is retired: what it would ask next could come before what is still on
// its way, and no checker could order the two. Times are of one monotonic clock, in nanoseconds since the run began.
package history

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"sync"
	"time"
)

// Outcome of an operation.
type Outcome string

// The three outcomes.
const (
	OK      Outcome = "ok"
	Fail    Outcome = "fail"
	Unknown Outcome = "unknown"
)

// Kind of an operation.
type Kind string

const (
	// Execute runs a transaction in one call.
	Execute Kind = "execute"
	// Commit and Abort end one whose tries the client has made itself.
	Commit Kind = "commit"
	Abort  Kind = "abort"
	// Abandon begins and tries, and never comes back.
	Abandon Kind = "abandon"
	// Read asks for a transaction's phase.
	Read Kind = "read"
	// Again asks once more for what was asked for, under the same gid; Other asks under it for something else.
	Again Kind = "again"
	Other Kind = "other"
)

// Value is what a transaction was said to be.
type Value string

// The values: a decision is one of the last two.
const (
	None      Value = ""
	Open      Value = "open"
	Committed Value = "committed"
	Aborted   Value = "aborted"
)

// Op is one operation.
type Op struct {
	Client  int     `json:"client"`
	Kind    Kind    `json:"kind"`
	Gid     string  `json:"gid"`
	Region  string  `json:"region"` // whose coordinator was asked
	From    string  `json:"from,omitempty"`
	To      string  `json:"to,omitempty"`
	Amount  int64   `json:"amount,omitempty"`
	Over    bool    `json:"over,omitempty"` // more than the account has
	Start   int64   `json:"start"`
	End     int64   `json:"end"`
	Outcome Outcome `json:"outcome"`
	Value   Value   `json:"value,omitempty"`
	Error   string  `json:"error,omitempty"`
}

// Log is a history that grows. Safe for concurrent use.
type Log struct {
	began time.Time

	mu      sync.Mutex
	clients int
	flying  map[*Op]struct{}
	done    []Op
	next    []watch
}

// watch waits for an operation to begin.
type watch struct {
	match func(*Op) bool
	begun chan Op
}

// Next gives the next operation that is begun and matches, just before it is asked for. Who does not want it any more just
// leaves.
func (l *Log) Next(match func(*Op) bool) <-chan Op {
	w := watch{match, make(chan Op, 1)}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.next = append(l.next, w)
	return w.begun
}

// New begins a history.
func New() *Log { return &Log{began: time.Now(), flying: map[*Op]struct{}{}} }

// Now is the time on the history's clock.
func (l *Log) Now() int64 { return time.Since(l.began).Nanoseconds() }

// Client gives the number of a new logical client.
func (l *Log) Client() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.clients++
	return l.clients
}

// Begin enters an operation that is under way from now on.
func (l *Log) Begin(op Op) *Op {
	op.Start = l.Now()
	l.mu.Lock()
	defer l.mu.Unlock()
	l.flying[&op] = struct{}{}
	l.next = slices.DeleteFunc(l.next, func(w watch) bool {
		if !w.match(&op) {
			return false
		}
		w.begun <- op
		return true
	})
	return &op
}

// End enters how it ended. The caller fills in the rest of op before, and does not touch it afterwards.
func (l *Log) End(op *Op, o Outcome, v Value, err error) {
	op.End, op.Outcome, op.Value = l.Now(), o, v
	if err != nil {
		op.Error = err.Error()
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.flying, op)
	l.done = append(l.done, *op)
}

// Flying are the operations under way that are no reads.
func (l *Log) Flying() (out []Op) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for op := range l.flying {
		if op.Kind != Read {
			out = append(out, Op{Client: op.Client, Kind: op.Kind, Gid: op.Gid, Region: op.Region, Start: op.Start})
		}
	}
	return out
}

// Ops are those that have ended.
func (l *Log) Ops() []Op {
	l.mu.Lock()
	defer l.mu.Unlock()
	return append([]Op(nil), l.done...)
}

// Rate is how many transactions a second were decided, as clients were told, between two times.
func Rate(ops []Op, from, to int64) float64 {
	n := 0
	for _, op := range ops {
		if op.Kind != Read && op.Kind != Abandon && op.Outcome == OK && op.End >= from && op.End < to {
			n++
		}
	}
	return float64(n) / (float64(max(to-from, 1)) / 1e9)
}

// Save writes things as JSON lines.
func Save[T any](file string, all []T) (err error) {
	f, err := os.Create(file)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	w := bufio.NewWriter(f)
	enc := json.NewEncoder(w)
	for i := range all {
		if err := enc.Encode(&all[i]); err != nil {
			return err
		}
	}
	return w.Flush()
}

// Load reads what Save wrote.
func Load[T any](file string) (all []T, err error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	for dec := json.NewDecoder(bufio.NewReader(f)); ; {
		var t T
		if err := dec.Decode(&t); errors.Is(err, io.EOF) {
			return all, nil
		} else if err != nil {
			return nil, fmt.Errorf("%s: %w", file, err)
		}
		all = append(all, t)
	}
}
