package branch

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"

	"github.com/lockstep-tx/lockstep/participants/barrier"
)

// Serve answers DTM-style calls of one branch operation over HTTP by f, which has a barrier of its own: for kinds of
// stores that this package does not know, such as package redisbranch. f's error decides the answer as a Func's does.
// A call of another op is invalid.
func Serve(op string, f func(ctx context.Context, call *barrier.Call, payload []byte) error, log *slog.Logger) http.Handler {
	return handler(log, func(ctx context.Context, call *barrier.Call, payload []byte) error {
		if call.Op != op {
			return fmt.Errorf("%w: this address serves op %s, the call has %s", barrier.ErrInvalid, op, call.Op)
		}
		return f(ctx, call, payload)
	})
}
