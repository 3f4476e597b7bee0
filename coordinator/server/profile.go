package server

import (
	"context"

	"github.com/lockstep-tx/lockstep/coordinator/engine"
	"github.com/lockstep-tx/lockstep/coordinator/telemetry"
)

// anyMode labels work that is done for transactions of any mode together.
const anyMode = "any"

// labelled runs f under the labels that profiles are read by; without --pyroscope-url it just runs f.
func (s *Server) labelled(mode, phase string, f func()) {
	if s.cfg.PyroscopeUrl == "" {
		f()
		return
	}
	telemetry.Labelled(context.Background(), mode, phase, f)
}

// aroundCall labels a branch call by its mode and operation; nil without --pyroscope-url.
func (s *Server) aroundCall() func(c *engine.Call, f func()) {
	if s.cfg.PyroscopeUrl == "" {
		return nil
	}
	return func(c *engine.Call, f func()) {
		telemetry.Labelled(context.Background(), c.Mode.String(), c.Op.String(), f)
	}
}
