//go:build chaos

package engine

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"

	"github.com/lockstep-tx/lockstep/coordinator/txn"
)

// TraceVariable names the directory for traces: a line of JSON for each transition, which lockstep-chaos conform replays.
const TraceVariable = "LOCKSTEP_TRACE"

var traceFile = sync.OnceValue(func() *os.File {
	dir := os.Getenv(TraceVariable)
	if dir == "" {
		return nil
	}
	f, err := os.OpenFile(filepath.Join(dir, fmt.Sprintf("trace-%d.jsonl", os.Getpid())), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		slog.Error("no trace is written", "err", err)
		return nil
	}
	return f
})

var traceLock sync.Mutex

// traced is a transition that is being written down: its beginning, as it was before anybody could change it.
type traced struct {
	Before json.RawMessage
	Kind   string
	Event  json.RawMessage
	After  json.RawMessage `json:",omitempty"`
	// Effects with their types.
	Effects []string
	Error   string `json:",omitempty"`
}

func trace(s *txn.State, ev txn.Event) (t traced) {
	if traceFile() == nil {
		return t
	}
	t.Kind = fmt.Sprintf("%T", ev)
	t.Before, t.Event = raw(s), raw(ev)
	return t
}

func raw(v any) json.RawMessage {
	b, err := json.Marshal(v)
	if err != nil {
		panic(fmt.Sprintf("trace: %v", err)) // our own types: a bug
	}
	return b
}

func (t traced) end(s *txn.State, effects []txn.Effect, err error) {
	if traceFile() == nil {
		return
	}
	if err != nil {
		t.Error = err.Error()
	} else {
		t.After = raw(s)
	}
	for _, e := range effects {
		t.Effects = append(t.Effects, fmt.Sprintf("%T %s", e, raw(e)))
	}
	traceLock.Lock()
	defer traceLock.Unlock()
	if _, err := traceFile().Write(append(raw(t), '\n')); err != nil {
		slog.Error("a transition is not in the trace", "err", err)
	}
}
