package conform

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/lockstep-tx/lockstep/coordinator/txn"
)

// written is a transition as the engine writes it.
func written(t *testing.T, s txn.State, ev txn.Event) (txn.State, string) {
	t.Helper()
	raw := func(v any) json.RawMessage {
		b, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	l := line{Before: raw(&s), Kind: fmt.Sprintf("%T", ev), Event: raw(ev)}
	next, effects, err := txn.Step(s, ev)
	if l.Error = message(err); err == nil {
		l.After = raw(&next)
	}
	for _, e := range effects {
		l.Effects = append(l.Effects, fmt.Sprintf("%T %s", e, raw(e)))
	}
	return next, string(raw(l)) + "\n"
}

// TestATraceIsReplayed: what the core does conforms, a refusal too; a state or an effect that is another does not; a line that a
// kill has cut off is no fault, and a trace of nothing proves nothing.
func TestATraceIsReplayed(t *testing.T) {
	digest := "\xff\xfe no text"
	s, first := written(t, txn.State{Gid: "g", Epoch: 101}, txn.Prepare{At: 5, Epoch: 101, Spec: txn.Spec{Mode: txn.ModeTCC, Digest: digest}})
	if s.Phase == txn.PhaseNone {
		t.Fatalf("nothing was prepared: %+v", s)
	}
	_, second := written(t, s, txn.Abort{At: 6, Epoch: 101})
	_, refused := written(t, s, txn.Register{At: 6, Epoch: 999})
	for _, c := range []struct {
		name, text string
		differs    bool
		fails      bool
		n, cut     int
	}{
		{"whole", first + second + refused, false, false, 3, 0},
		{"cut off", first + second[:20], false, false, 1, 1},
		{"another state", first + strings.Replace(second, `"UpdatedAt":6`, `"UpdatedAt":7`, 1), true, true, 1, 0},
		{"an effect less", strings.Replace(first, `"Effects":["`, `"Effects":["x","`, 1), true, true, 0, 0},
		{"another refusal", refused[:len(refused)-2] + "x\"}\n", true, true, 0, 0},
		{"nothing", "", false, true, 0, 0},
	} {
		if c.name == "another refusal" {
			c.text = strings.Replace(refused, `"Error":"`, `"Error":"x`, 1)
		}
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, "trace-1.jsonl"), []byte(c.text), 0o600); err != nil {
			t.Fatal(err)
		}
		r, err := Dir(dir)
		if (err != nil) != c.fails || errors.Is(err, ErrDiffers) != c.differs || r.Transitions != c.n || r.CutOff != c.cut {
			t.Errorf("%s: %+v, %v", c.name, r, err)
		}
	}
	if _, err := Dir(t.TempDir()); err == nil {
		t.Error("a directory without a trace conforms")
	}
}
