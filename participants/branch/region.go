package branch

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"

	"github.com/lockstep-tx/lockstep/participants/barrier"
)

// OpApply is the op of a call that posts a committed effect of another home to the copy here. It shares its barrier row with
// the confirm (ADR 8).
const OpApply = "apply"

// OpHold is the op of a call that rebuilds at a copy what a try holds whose home was lost with its region (ADR 9): the try's
// function behind the try's barrier row, without epochs, and before the copy becomes the home.
const OpHold = "hold"

// Movable is a participant's accounts, of which those of a slot can be handed over to another region's database. Both
// methods run in a local transaction under the slot's exclusive lock.
type Movable interface {
	// Take writes down what the accounts of the slot have. rows are the barrier rows of the branches that touched them.
	Take(ctx context.Context, tx *sql.Tx, slot int, rows []barrier.Row) (json.RawMessage, error)
	// Give takes over what Take wrote down elsewhere. all are the barrier rows that came with it, fresh those that were not
	// here: what they stand for has not happened here yet.
	Give(ctx context.Context, tx *sql.Tx, slot int, data json.RawMessage, all, fresh []barrier.Row) error
}

// Move makes the participant's accounts movable. Call it before serving.
func (p *Participant) Move(m Movable) {
	p.movable = m
	if named, ok := m.(Named); ok {
		p.exec.account = named.AccountOf
	}
}

// Named is a Movable that finds the account in a payload: DTM's clients make their tries themselves and know no homes.
type Named interface {
	// AccountOf gives the account that a payload names; "" where it names none.
	AccountOf(payload []byte) string
}

// Probe is what GET /lockstep/probe answers.
type Probe struct {
	Fenced  bool `json:"fenced"`
	Batch   bool `json:"batch"`
	Apply   bool `json:"apply"`
	Movable bool `json:"movable"`
	// Tries: it lists what was tried, raises fences, adopts without a release and lifts what it adopted so.
	Tries bool `json:"tries"`
	// Settle: it ends a try by its name.
	Settle bool `json:"settle"`
	// Hold: it rebuilds at a copy what a try holds whose home was lost.
	Hold bool `json:"hold"`
}

// snapshotBytesMax bounds what an adoption may bring.
const snapshotBytesMax = 256 << 20

// RegionPaths are what RegionHandler serves.
var RegionPaths = []string{"/lockstep/probe", "/lockstep/state", "/lockstep/homes", "/lockstep/release", "/lockstep/released", "/lockstep/adopt", "/lockstep/refuse",
	"/lockstep/inspect", "/lockstep/check", "/lockstep/mend", "/lockstep/tries", "/lockstep/fence", "/lockstep/risk", "/lockstep/settle", "/lockstep/effects",
	"/lockstep/restore", "/lockstep/holds"}

// RegionHandler serves what the coordinators of a deployment with several regions ask (docs/regions.md): GET
// /lockstep/probe and /lockstep/state, POST /lockstep/homes, /lockstep/release, GET /lockstep/released, POST
// /lockstep/adopt, /lockstep/refuse, /lockstep/inspect and /lockstep/effects, GET /lockstep/check and
// /lockstep/holds, POST /lockstep/mend and /lockstep/restore; and after the loss of a
// region POST /lockstep/tries, /lockstep/fence, /lockstep/risk and /lockstep/settle. Handler serves it already.
func (p *Participant) RegionHandler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /lockstep/probe", func(w http.ResponseWriter, _ *http.Request) {
		writeJSON(w, http.StatusOK, p.probe())
	})
	mux.HandleFunc("GET /lockstep/state", func(w http.ResponseWriter, r *http.Request) {
		homes, err := p.barrier.State(r.Context())
		p.answer(w, "state", homes, err)
	})
	mux.HandleFunc("POST /lockstep/homes", func(w http.ResponseWriter, r *http.Request) {
		var homes []barrier.Home
		err := readJSON(w, r, &homes)
		if err == nil {
			err = p.barrier.Homes(r.Context(), homes, p.take(r.Context()))
		}
		p.answer(w, "homes", struct{}{}, err)
	})
	mux.HandleFunc("POST /lockstep/release", func(w http.ResponseWriter, r *http.Request) {
		var homes []barrier.Home
		err := readJSON(w, r, &homes)
		for _, h := range homes {
			if err == nil {
				err = p.release(r.Context(), h)
			}
		}
		p.answer(w, "release", struct{}{}, err)
	})
	mux.HandleFunc("GET /lockstep/released", p.serveReleased)
	mux.HandleFunc("POST /lockstep/adopt", p.serveAdopt)
	p.mountInspection(mux)
	p.mountEffects(mux)
	p.mountMending(mux)
	p.mountForced(mux)
	mux.HandleFunc("POST /lockstep/refuse", func(w http.ResponseWriter, r *http.Request) {
		var in struct {
			Gid      string   `json:"gid"`
			Epoch    int64    `json:"epoch"`
			Branches []string `json:"branches"`
		}
		err := readJSON(w, r, &in)
		var been map[string]string
		if err == nil {
			been, err = p.barrier.Refuse(r.Context(), in.Gid, in.Epoch, in.Branches)
		}
		p.answer(w, "refuse", been, err)
	})
	return mux
}

func (p *Participant) probe() Probe {
	out := Probe{Fenced: true, Batch: true, Movable: p.movable != nil, Tries: true}
	_, out.Settle = p.movable.(Settler)
	for _, o := range p.branches {
		out.Apply = out.Apply || o.op == OpApply
		out.Hold = out.Hold || o.op == OpHold
	}
	return out
}

func (p *Participant) release(ctx context.Context, h barrier.Home) error {
	if p.movable == nil {
		return fmt.Errorf("%w: this participant's accounts cannot be moved", barrier.ErrInvalid)
	}
	return p.barrier.Release(ctx, h.Slot, h.Epoch, func(tx *sql.Tx, rows []barrier.Row) (json.RawMessage, error) {
		return p.movable.Take(ctx, tx, h.Slot, rows)
	})
}

// take is Movable's Take where there are accounts that can be moved.
func (p *Participant) take(ctx context.Context) barrier.TakeFunc {
	return func(tx *sql.Tx, slot int, rows []barrier.Row) (json.RawMessage, error) {
		if p.movable == nil {
			return nil, nil
		}
		return p.movable.Take(ctx, tx, slot, rows)
	}
}

// serveReleased gives the bytes that a release kept; 404 when there was none at that epoch, or, with last=true, below it.
func (p *Participant) serveReleased(w http.ResponseWriter, r *http.Request) {
	n, epoch, err := slotAndEpoch(r)
	var raw []byte
	switch {
	case err != nil:
	case r.URL.Query().Get("last") == "true":
		raw, err = p.barrier.LastReleased(r.Context(), n, epoch)
	default:
		raw, err = p.barrier.Released(r.Context(), n, epoch)
	}
	switch {
	case err != nil:
		p.answer(w, "released", nil, err)
	case raw == nil:
		writeJSON(w, http.StatusNotFound, body{Result: "ERROR", Message: fmt.Sprintf("slot %d was not released at epoch %d", n, epoch)})
	default:
		w.Header().Set("Content-Type", "application/json")
		_, _ = w.Write(raw)
	}
}

// serveAdopt takes a slot's accounts; an empty body stands for nothing that was released. With forced=true a copy becomes
// the home without a release.
func (p *Participant) serveAdopt(w http.ResponseWriter, r *http.Request) {
	if forced, err := isForced(r); forced || err != nil {
		if err == nil {
			err = p.adoptForced(w, r)
		}
		p.answer(w, "adopt", struct{}{}, err)
		return
	}
	n, epoch, err := slotAndEpoch(r)
	var raw []byte
	if err == nil {
		raw, err = io.ReadAll(http.MaxBytesReader(w, r.Body, snapshotBytesMax))
	}
	if err == nil && p.movable == nil {
		err = fmt.Errorf("%w: this participant's accounts cannot be moved", barrier.ErrInvalid)
	}
	if len(raw) == 0 {
		raw = nil
	}
	if err == nil {
		err = p.barrier.Adopt(r.Context(), n, epoch, raw, func(tx *sql.Tx, data json.RawMessage, all, fresh []barrier.Row) error {
			return p.movable.Give(r.Context(), tx, n, data, all, fresh)
		})
	}
	p.answer(w, "adopt", struct{}{}, err)
}

func slotAndEpoch(r *http.Request) (int, int64, error) {
	n, err := strconv.Atoi(r.URL.Query().Get("slot"))
	epoch, err2 := strconv.ParseInt(r.URL.Query().Get("epoch"), 10, 64)
	if err := errors.Join(err, err2); err != nil {
		return 0, 0, fmt.Errorf("%w: slot and epoch are numbers: %w", barrier.ErrInvalid, err)
	}
	return n, epoch, nil
}

func (p *Participant) answer(w http.ResponseWriter, what string, v any, err error) {
	status := Status(err)
	if err != nil {
		if status == http.StatusInternalServerError {
			p.options.Log.Error("a region's request", "what", what, "err", err)
		}
		v = answer(status, err)
	}
	writeJSON(w, status, v)
}

func writeJSON(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(v) // the caller has left, then
}

func readJSON(w http.ResponseWriter, r *http.Request, into any) error {
	dec := json.NewDecoder(http.MaxBytesReader(w, r.Body, PayloadBytesMax))
	dec.DisallowUnknownFields()
	if err := dec.Decode(into); err != nil {
		return fmt.Errorf("%w: body: %w", barrier.ErrInvalid, err)
	}
	return nil
}
