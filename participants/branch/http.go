// Package branch serves a participant's branch functions to coordinators.
//
// Its law: a function runs inside its barrier or not at all, and its error decides the answer in one place: Refused is
// 409 FAILURE, Ongoing 425 ONGOING, Stale 412, an invalid call 400, anything else 500, which the coordinator repeats.
// An answer goes out only after the local transaction has ended.
//
// It is tested over real HTTP against a SQLite database, one test per answer.
package branch

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"

	"github.com/lockstep-tx/lockstep/participants/barrier"
)

// PayloadBytesMax is the largest body a branch call may have.
const PayloadBytesMax = 1 << 20

// Serve answers DTM-style calls of one branch operation over HTTP by f, which has a barrier of its own, and whose error
// decides the answer: see Status. Any method will do, since coordinators send GET where there is no payload. A call of
// another op is ErrInvalid, so that a mistyped URL cannot run a cancel as a confirm. log nil discards.
func Serve(op string, f func(ctx context.Context, call *barrier.Call, payload []byte) error, log *slog.Logger) http.Handler {
	return handler(log, func(ctx context.Context, call *barrier.Call, payload []byte) error {
		if err := isFor(op, call); err != nil {
			return err
		}
		return f(ctx, call, payload)
	})
}

// isFor refuses a call that came to the address of another operation.
func isFor(op string, call *barrier.Call) error {
	if call.Op != op {
		return fmt.Errorf("%w: this address serves op %s, the call has %s", barrier.ErrInvalid, op, call.Op)
	}
	return nil
}

// QueryPrepared serves the check-back of messages whose local part goes through b.
func QueryPrepared(b *barrier.Barrier, log *slog.Logger) http.Handler {
	return handler(log, func(ctx context.Context, call *barrier.Call, _ []byte) error { return b.QueryPrepared(ctx, call) })
}

func handler(log *slog.Logger, f func(context.Context, *barrier.Call, []byte) error) http.Handler {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		call, err := barrier.FromHTTP(r)
		var payload []byte
		if err == nil {
			payload, err = io.ReadAll(http.MaxBytesReader(w, r.Body, PayloadBytesMax))
			var tooLarge *http.MaxBytesError
			if errors.As(err, &tooLarge) {
				err = fmt.Errorf("%w: the payload is over %d bytes", barrier.ErrInvalid, tooLarge.Limit)
			}
		}
		if err == nil {
			err = f(r.Context(), call, payload)
		}
		status := Status(err)
		if status == http.StatusInternalServerError {
			log.Error("branch call", "gid", call.Gid, "branch", call.BranchID, "op", call.Op, "err", err)
		}
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(status)
		_ = json.NewEncoder(w).Encode(answer(status, err))
	})
}

// Status returns the HTTP status that answers err.
func Status(err error) int {
	switch {
	case err == nil:
		return http.StatusOK
	case errors.Is(err, barrier.ErrStale):
		return http.StatusPreconditionFailed
	case errors.Is(err, barrier.ErrMoved):
		return http.StatusMisdirectedRequest
	case errors.Is(err, barrier.ErrOngoing):
		return http.StatusTooEarly
	case errors.Is(err, barrier.ErrRefused), errors.Is(err, barrier.ErrDuplicate):
		return http.StatusConflict
	case errors.Is(err, barrier.ErrInvalid):
		return http.StatusBadRequest
	case errors.Is(err, barrier.ErrNotTried):
		return http.StatusUnprocessableEntity
	case errors.Is(err, errNoSettler):
		return http.StatusNotImplemented
	case errors.Is(err, errBusy), errors.Is(err, errClosed):
		return http.StatusServiceUnavailable
	}
	return http.StatusInternalServerError
}

type body struct {
	Result  string `json:"dtm_result"`
	Message string `json:"message,omitempty"`
}

func answer(status int, err error) body {
	b := body{Result: "SUCCESS"}
	if err != nil {
		b.Result, b.Message = "ERROR", err.Error()
	}
	switch status {
	case http.StatusConflict:
		b.Result = "FAILURE"
	case http.StatusTooEarly:
		b.Result = "ONGOING"
	case http.StatusPreconditionFailed:
		b.Result = "STALE"
	case http.StatusMisdirectedRequest:
		b.Result = "MOVED"
	case http.StatusUnprocessableEntity:
		b.Result = "NOT_TRIED"
	}
	return b
}
