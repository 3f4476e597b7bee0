package branch

import (
	"fmt"
	"net/http"
	"strings"

	"github.com/lockstep-tx/lockstep/participants/barrier"
)

// This file says what branches do to accounts without doing it: who settles by hand what two regions decided differently, or
// compares books with payloads, reads it from here.

// Effect is one line of a question to POST /lockstep/effects: a branch by the path of one of its calls behind the
// participant's base, and its payload.
type Effect struct {
	Path    string `json:"path"`
	Payload []byte `json:"payload"`
}

// Effects are what the confirm of one payload does, by account; none where the branch does not say (Known is false) or the
// payload is none of its own (Error).
type Effects struct {
	Known bool   `json:"known"`
	Legs  []Held `json:"legs,omitempty"`
	Error string `json:"error,omitempty"`
}

// branchOf gives the name of the branch that a call's path belongs to.
func branchOf(path string) string {
	path, _, _ = strings.Cut(path, "?")
	at := strings.LastIndexByte(path, '/')
	return strings.TrimPrefix(path[:max(at, 0)], "/")
}

func (p *Participant) effectsOf(ask []Effect) ([]Effects, error) {
	if len(ask) > inspectMax {
		return nil, fmt.Errorf("%w: %d payloads; at most %d are answered", barrier.ErrInvalid, len(ask), inspectMax)
	}
	out := make([]Effects, len(ask))
	for i, a := range ask {
		f, ok := p.effects[branchOf(a.Path)]
		if !ok {
			continue
		}
		legs, err := f(a.Payload)
		if err != nil {
			out[i].Error = err.Error()
			continue
		}
		out[i] = Effects{Known: true, Legs: legs}
	}
	return out, nil
}

func (p *Participant) mountEffects(mux *http.ServeMux) {
	mux.HandleFunc("POST /lockstep/effects", func(w http.ResponseWriter, r *http.Request) {
		var ask []Effect
		err := readJSON(w, r, &ask)
		var out []Effects
		if err == nil {
			out, err = p.effectsOf(ask)
		}
		p.answer(w, "effects", out, err)
	})
}
