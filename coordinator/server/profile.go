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

// labelledCalls labels branch calls by their mode and operation. A goroutine inherits the labels of who started it, so
// that the invoker needs to know nothing of them; a call that waited for its destination goes under the labels of the
// one before it.
type labelledCalls struct{ engine.Invoker }

// Start is engine.Invoker's.
func (l labelledCalls) Start(c *engine.Call, done func(engine.CallResult)) {
	telemetry.Labelled(context.Background(), c.Mode.String(), c.Op.String(), func() { l.Invoker.Start(c, done) })
}

// calls is the invoker as the engine gets it.
func (s *Server) calls() engine.Invoker {
	if s.cfg.PyroscopeUrl == "" {
		return s.invoker
	}
	return labelledCalls{s.invoker}
}
