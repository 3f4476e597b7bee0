package replica

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"

	"google.golang.org/protobuf/proto"

	"github.com/lockstep-tx/lockstep/coordinator/record"
	"github.com/lockstep-tx/lockstep/coordinator/record/recordpb"
	"github.com/lockstep-tx/lockstep/coordinator/txn"
	"github.com/lockstep-tx/lockstep/region/journal"
	"github.com/lockstep-tx/lockstep/region/slot"
)

// FreezeRequest asks a region to hold the chains of a lost one (ADR 9), FreezeAnswer says how far each is, by slot.
type FreezeRequest struct {
	Origin string       `json:"origin"`
	Slots  []FreezeSlot `json:"slots"`
}

// FreezeSlot is a slot with the epoch up to which nothing more is to be applied.
type FreezeSlot struct {
	Slot  int        `json:"slot"`
	Epoch slot.Epoch `json:"epoch"`
}

// FreezeAnswer is durable in the region that gives it.
type FreezeAnswer struct {
	Marks []FreezeMark `json:"marks"`
}

// FreezeMark is how far a frozen chain is applied: the epoch, number and chain (lower-case hexadecimal) of the last event.
type FreezeMark struct {
	Slot  int        `json:"slot"`
	Epoch slot.Epoch `json:"epoch"`
	Seq   uint64     `json:"seq"`
	Chain string     `json:"chain"`
}

// Exposure is what this region knows of another one.
type Exposure struct {
	Origin string `json:"origin"`
	// HeardMillis is how long ago it was last heard of; -1: never.
	HeardMillis int64 `json:"heard_ms"`
	// Open and Unpublished are what its coordinators said last of themselves, summed up.
	Open        int `json:"open"`
	Unpublished int `json:"unpublished"`
	// Slots that are behind what is known of them, or do not go on; Unapplied sums up by how many events.
	Slots     []ExposedSlot `json:"slots"`
	Unapplied uint64        `json:"unapplied"`
}

// ExposedSlot is a chain that is not applied whole as far as is known. Stopped and Missing say why it does not go on.
type ExposedSlot struct {
	Slot    int    `json:"slot"`
	Applied uint64 `json:"applied"`
	Head    uint64 `json:"head"`
	Stopped string `json:"stopped,omitempty"`
	Missing string `json:"missing,omitempty"`
}

// DivergenceInfo is a divergence as people see it.
type DivergenceInfo struct {
	ID     int64      `json:"id"`
	Origin string     `json:"origin"`
	Slot   int        `json:"slot"`
	Seq    uint64     `json:"seq"`
	Epoch  slot.Epoch `json:"epoch"`
	Gid    string     `json:"gid,omitempty"`
	Kind   string     `json:"kind,omitempty"`
	Reason string     `json:"reason"`
	At     int64      `json:"at"` // unix milliseconds
	// Decided is commit or abort where the event tells, Phase what it says the transaction is in.
	Decided string `json:"decided,omitempty"`
	Phase   string `json:"phase,omitempty"`
	// DecidedAt is when it was decided, by its coordinator's clock; unix milliseconds, 0 where the event does not tell.
	DecidedAt int64 `json:"decided_at,omitempty"`
	// Branches are those that the decision is about, where the event has them.
	Branches []DivergedBranch `json:"branches,omitempty"`
	// Settled says who settled it and how; empty while nobody has.
	Settled string `json:"settled,omitempty"`
}

// DivergedBranch is a branch of a transaction that diverges: the address of its confirm, and its payload.
type DivergedBranch struct {
	ID      string `json:"id"`
	Confirm string `json:"confirm"`
	Payload []byte `json:"payload,omitempty"`
}

// SettleRequest settles a divergence: Text says who did and how.
type SettleRequest struct {
	ID   int64  `json:"id"`
	Text string `json:"text"`
}

const (
	requestBytes      = 256 << 10 // 1,024 slots take 40 KB
	divergencesMax    = 1000
	divergencesUsual  = 100
	divergenceLimitIs = "limit is no number from 1 to 1000"
)

// Freeze holds chains of another region in this region's journal, and says how far each is. Durable on nil. An error of
// what was asked names the field and is ErrRequest.
func (s *Service) Freeze(ctx context.Context, req FreezeRequest) (*FreezeAnswer, error) {
	o, err := s.named(req.Origin)
	if err != nil {
		return nil, err
	}
	at := make([]journal.Frozen, len(req.Slots))
	for i, f := range req.Slots {
		if f.Slot < 0 || f.Slot >= slot.Count || f.Epoch.Region() != o.peer.Index {
			return nil, fmt.Errorf("%w: slots: slot %d, epoch %d is no slot and epoch of %s", ErrRequest, f.Slot, f.Epoch, req.Origin)
		}
		at[i] = journal.Frozen{Slot: f.Slot, Epoch: uint64(f.Epoch)}
	}
	if len(at) == 0 || len(at) > slot.Count {
		return nil, fmt.Errorf("%w: slots: %d of them, not 1 to %d", ErrRequest, len(at), slot.Count)
	}
	marks, err := s.cfg.Journal.Freeze(ctx, o.peer.Index, at)
	if err != nil {
		return nil, err
	}
	o.settled(marks)
	out := &FreezeAnswer{Marks: make([]FreezeMark, len(marks))}
	for i, m := range marks {
		out.Marks[i] = FreezeMark{Slot: m.Slot, Epoch: slot.Epoch(m.Epoch), Seq: m.Head.Seq, Chain: hex.EncodeToString(m.Head.Chain[:])}
	}
	return out, nil
}

// ErrRequest: what was asked for cannot be; the text names the field.
var ErrRequest = errors.New("not a valid request")

// named finds another region by its name.
func (s *Service) named(origin string) (*origin, error) {
	if origin == s.cfg.Region {
		return nil, fmt.Errorf("%w: origin: %s is this region itself", ErrRequest, origin)
	}
	for _, o := range s.origins {
		if o.peer.Name == origin {
			return o, nil
		}
	}
	return nil, fmt.Errorf("%w: origin: there is no region %q", ErrRequest, origin)
}

// Exposure tells what is known of another region. It asks nobody. ErrRequest where there is no such region.
func (s *Service) Exposure(origin string) (*Exposure, error) {
	o, err := s.named(origin)
	if err != nil {
		return nil, err
	}
	st := o.status()
	out := &Exposure{Origin: origin, HeardMillis: st.HeardMillis, Open: st.Open, Unpublished: st.Unpublished, Slots: []ExposedSlot{}, Unapplied: st.LagEvents}
	why := map[int]SlotStop{}
	for _, stop := range st.Stopped {
		why[stop.Slot] = stop
	}
	for _, sl := range st.Slots {
		stop, stopped := why[sl.Slot]
		if sl.Head <= sl.Applied && !stopped {
			continue
		}
		one := ExposedSlot{Slot: sl.Slot, Applied: sl.Applied, Head: sl.Head}
		if stop.Missing {
			one.Missing = stop.Reason
		} else {
			one.Stopped = stop.Reason
		}
		out.Slots = append(out.Slots, one)
	}
	return out, nil
}

// Divergences is journal.DivergencesBefore, with what each event says.
func (s *Service) Divergences(ctx context.Context, before int64, settled bool, limit int) ([]DivergenceInfo, error) {
	list, err := s.cfg.Journal.DivergencesBefore(ctx, before, settled, limit)
	if err != nil {
		return nil, err
	}
	out := make([]DivergenceInfo, len(list))
	for i := range list {
		out[i] = s.info(&list[i])
	}
	return out, nil
}

func (s *Service) info(d *journal.Divergence) DivergenceInfo {
	out := DivergenceInfo{ID: d.ID, Origin: strconv.Itoa(d.Origin), Slot: d.Slot, Seq: d.Seq, Epoch: slot.Epoch(d.Epoch), Gid: string(d.Gid), Reason: d.Reason, At: d.At, Settled: d.Settled}
	if d.Origin == s.cfg.Index {
		out.Origin = s.cfg.Region
	} else if o := s.origins[d.Origin]; o != nil {
		out.Origin = o.peer.Name
	}
	e, err := record.DecodeEvent(d.Event)
	if err != nil {
		return out
	}
	out.Kind = e.Kind.String()
	state := stateOf(e)
	if state.Phase == 0 {
		return out
	}
	out.Phase = state.Phase.String()
	switch {
	case state.Phase.Decided() && state.Phase.Commit():
		out.Decided = "commit"
	case state.Phase.Decided():
		out.Decided = "abort"
	}
	if e.Kind == record.KindDecision {
		out.DecidedAt = state.DecidedAt
	}
	for i := range state.Branches {
		if b := &state.Branches[i]; b.Confirm != "" && !b.Message {
			out.Branches = append(out.Branches, DivergedBranch{ID: string(b.ID), Confirm: b.Confirm, Payload: b.Payload})
		}
	}
	return out
}

// stateOf is what an event says of its transaction: of a finish the phase alone; phase 0 where it does not tell.
func stateOf(e *record.Event) txn.State {
	switch e.Kind {
	case record.KindDecision:
		if tx, err := record.FromParts(e.Body, nil, e.Head, record.Head{}, e.Epoch, 0); err == nil {
			return tx.State
		}
	case record.KindCarry:
		if tx, err := record.Decode(e.Body); err == nil {
			return tx.State
		}
	case record.KindFinish:
		p := &recordpb.Progress{}
		if err := proto.Unmarshal(e.Body, p); err == nil && txn.Phase(p.Phase).Finished() {
			return txn.State{Phase: txn.Phase(p.Phase)}
		}
	}
	return txn.State{}
}

func (s *Service) serveFreeze(w http.ResponseWriter, req *http.Request) {
	var in FreezeRequest
	if !decode(w, req, &in) {
		return
	}
	out, err := s.Freeze(req.Context(), in)
	respond(w, out, err)
}

func (s *Service) serveExposure(w http.ResponseWriter, req *http.Request) {
	out, err := s.Exposure(req.URL.Query().Get("origin"))
	respond(w, out, err)
}

func (s *Service) serveDivergence(w http.ResponseWriter, req *http.Request) {
	limit := divergencesUsual
	if text := req.URL.Query().Get("limit"); text != "" {
		var err error
		if limit, err = strconv.Atoi(text); err != nil || limit < 1 || limit > divergencesMax {
			http.Error(w, divergenceLimitIs, http.StatusBadRequest)
			return
		}
	}
	before := int64(0)
	if text := req.URL.Query().Get("before"); text != "" {
		var err error
		if before, err = strconv.ParseInt(text, 10, 64); err != nil || before < 1 {
			http.Error(w, fmt.Sprintf("before: %q is no id; the id of a page's last entry begins the next page", text), http.StatusBadRequest)
			return
		}
	}
	out, err := s.Divergences(req.Context(), before, req.URL.Query().Get("settled") == "true", limit)
	respond(w, out, err)
}

func (s *Service) serveSettle(w http.ResponseWriter, req *http.Request) {
	var in SettleRequest
	if !decode(w, req, &in) {
		return
	}
	if in.Text == "" || len(in.Text) > journal.SettleBytesMax {
		http.Error(w, fmt.Sprintf("text has %d bytes, not 1 to %d", len(in.Text), journal.SettleBytesMax), http.StatusBadRequest)
		return
	}
	respond(w, map[string]bool{"settled": true}, s.cfg.Journal.SettleDivergence(req.Context(), in.ID, in.Text))
}

func decode(w http.ResponseWriter, req *http.Request, into any) bool {
	d := json.NewDecoder(http.MaxBytesReader(w, req.Body, requestBytes))
	d.DisallowUnknownFields()
	if err := d.Decode(into); err != nil {
		http.Error(w, "body: "+err.Error(), http.StatusBadRequest)
		return false
	}
	return true
}

func respond(w http.ResponseWriter, v any, err error) {
	switch {
	case errors.Is(err, ErrRequest):
		http.Error(w, err.Error(), http.StatusBadRequest)
	case errors.Is(err, journal.ErrNoDivergence):
		http.Error(w, err.Error(), http.StatusNotFound)
	case err != nil:
		http.Error(w, err.Error(), http.StatusInternalServerError)
	default:
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(v) // the caller has left, then
	}
}
