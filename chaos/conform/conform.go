// Package conform replays the transitions that coordinators of a chaos build have made against the core, txn.Step.
//
// Its law: from the state before and the event, Step gives the state after, the effects and the error that were written
// down, to the byte; the first line that differs is told. What is not in a trace is not proven: a file without a transition is an error,
// and only the last line of a file, which a kill may have cut off, may be unreadable.
package conform

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"

	"github.com/lockstep-tx/lockstep/coordinator/txn"
)

// line is one transition as the engine writes it.
type line struct {
	Before  json.RawMessage
	Kind    string
	Event   json.RawMessage
	After   json.RawMessage
	Effects []string
	Error   string
}

// ErrDiffers: a transition is not the core's.
var ErrDiffers = errors.New("a transition is not the core's")

// Result is how much was replayed.
type Result struct {
	Files, Transitions, CutOff int
	Kinds                      map[string]int // by type of event
}

// Dir replays every trace-*.jsonl under a directory. The first difference is an ErrDiffers that names file and line.
func Dir(dir string) (r Result, err error) {
	r.Kinds = map[string]int{}
	var files []string
	for _, pattern := range []string{"trace-*.jsonl", "*/trace-*.jsonl"} {
		more, err := filepath.Glob(filepath.Join(dir, pattern))
		if err != nil {
			return r, err
		}
		files = append(files, more...)
	}
	if len(files) == 0 {
		return r, fmt.Errorf("%s: there is no trace: it takes coordinators of a build with the tag chaos", dir)
	}
	for _, f := range files {
		if err := r.file(f); err != nil {
			return r, err
		}
	}
	return r, nil
}

func (r *Result) file(name string) error {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	r.Files++
	in := bufio.NewReader(f)
	for n := 1; ; n++ {
		b, err := in.ReadBytes('\n')
		switch {
		case errors.Is(err, io.EOF) && n == 1:
			return fmt.Errorf("%s: no transition is in it", name)
		case errors.Is(err, io.EOF):
			if len(b) > 0 {
				r.CutOff++
			}
			return nil
		case err != nil:
			return err
		}
		var l line
		if err := json.Unmarshal(b, &l); err != nil {
			return fmt.Errorf("%s:%d: %w", name, n, err)
		}
		if err := l.replay(); err != nil {
			return fmt.Errorf("%s:%d: %w", name, n, err)
		}
		r.Transitions++
		r.Kinds[l.Kind]++
	}
}

// replay makes the transition once more.
func (l *line) replay() error {
	var before txn.State
	if err := json.Unmarshal(l.Before, &before); err != nil {
		return err
	}
	ev, err := event(l.Kind, l.Event)
	if err != nil {
		return err
	}
	after, effects, serr := txn.Step(before, ev)
	if text := message(serr); text != l.Error {
		return fmt.Errorf("%w: %s of %s: the error was %q, the core says %q", ErrDiffers, l.Kind, before.Gid, l.Error, text)
	}
	if serr == nil {
		b, err := json.Marshal(&after)
		if err != nil {
			return err
		}
		if !bytes.Equal(b, plain(l.After)) {
			return fmt.Errorf("%w: %s of %s: the state after it was\n%s\nthe core says\n%s", ErrDiffers, l.Kind, before.Gid, l.After, b)
		}
	}
	var said []string
	for _, e := range effects {
		b, err := json.Marshal(e)
		if err != nil {
			return err
		}
		said = append(said, fmt.Sprintf("%T %s", e, b))
	}
	for i := range l.Effects {
		l.Effects[i] = string(plain([]byte(l.Effects[i])))
	}
	if !slices.Equal(said, l.Effects) {
		return fmt.Errorf("%w: %s of %s: the effects were %v, the core says %v", ErrDiffers, l.Kind, before.Gid, l.Effects, said)
	}
	return nil
}

// plain writes the sign for bytes that are no text, which a digest has, as it is written after it was read: all of them are one sign in a
// trace, on both sides alike.
func plain(b []byte) []byte { return bytes.ReplaceAll(b, []byte(`\ufffd`), []byte("\ufffd")) }

func message(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

// event reads an event by its type's name.
func event(kind string, raw json.RawMessage) (txn.Event, error) {
	switch kind {
	case "txn.Prepare":
		return as[txn.Prepare](raw)
	case "txn.Register":
		return as[txn.Register](raw)
	case "txn.RegisterStep":
		return as[txn.RegisterStep](raw)
	case "txn.Submit":
		return as[txn.Submit](raw)
	case "txn.Execute":
		return as[txn.Execute](raw)
	case "txn.EndWorkflow":
		return as[txn.EndWorkflow](raw)
	case "txn.Abort":
		return as[txn.Abort](raw)
	case "txn.Resolve":
		return as[txn.Resolve](raw)
	case "txn.Stop":
		return as[txn.Stop](raw)
	case "txn.Retry":
		return as[txn.Retry](raw)
	case "txn.Reply":
		return as[txn.Reply](raw)
	case "txn.Tick":
		return as[txn.Tick](raw)
	}
	return nil, fmt.Errorf("an event of type %s is not known", kind)
}

func as[E txn.Event](raw json.RawMessage) (txn.Event, error) {
	var e E
	err := json.Unmarshal(raw, &e)
	return e, err
}
