package main

import (
	"testing"

	"github.com/lockstep-tx/lockstep/region/registry"
)

// What a participant could do and says that it cannot is named: it is written with --force alone.
func TestWhatAParticipantCannotDoAnyMoreIsNamed(t *testing.T) {
	all := registry.Capabilities{Fenced: true, Batch: true, Apply: true, Movable: true}
	for _, c := range []struct {
		had  *registry.Capabilities
		can  registry.Capabilities
		want string
	}{
		{nil, registry.Capabilities{}, ""},
		{&all, all, ""},
		{&registry.Capabilities{}, all, ""},
		{&all, registry.Capabilities{Fenced: true, Movable: true}, "keep copies (apply)"},
		{&all, registry.Capabilities{}, "keep copies (apply), move accounts, refuse old epochs (fenced)"},
	} {
		if got := lostBy(c.had, &c.can); got != c.want {
			t.Errorf("%+v to %+v: %q, want %q", c.had, c.can, got, c.want)
		}
	}
}
