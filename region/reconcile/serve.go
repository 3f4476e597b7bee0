package reconcile

import (
	"context"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"time"

	"github.com/lockstep-tx/lockstep/coordinator/engine"
	"github.com/lockstep-tx/lockstep/coordinator/record"
	"github.com/lockstep-tx/lockstep/coordinator/txn"
	"github.com/lockstep-tx/lockstep/region/journal"
	"github.com/lockstep-tx/lockstep/region/slot"
)

// Served is what a coordinator answers of its region's journal.
type Served struct {
	Journal *journal.Journal
	// Index of the own region.
	Index int
	// Live says whether the region's coordinators have a transaction under way; nil where nobody can say.
	Live func(ctx context.Context, gid string) (bool, error)
	// Keeps is how long a transaction that has ended is remembered; 0: for ever.
	Keeps time.Duration
	// Topic is the region's own; nil: its outbox cannot be compared with it.
	Topic Topic
	// Audited is called after a repair; nil for nobody.
	Audited func(ctx context.Context, act string, err error, args ...any)
}

// RowAnswer is a row as it is stored, with what is known of it here.
type RowAnswer struct {
	Row *engine.Row `json:"row,omitempty"`
	// Sound: its events continue the chains of this journal.
	Sound bool `json:"sound"`
}

// Finished is one finished transaction as tier 3 needs it.
type Finished struct {
	Gid     string `json:"gid"`
	Slot    int    `json:"slot"`
	Commit  bool   `json:"commit"`
	Applied bool   `json:"applied"` // its effects were applied to this region's copies
	At      int64  `json:"at"`      // of the finish, unix ms
	// Origin and Seq of the finish.
	Origin   int              `json:"origin"`
	Seq      uint64           `json:"seq"`
	Branches []FinishedBranch `json:"branches"`
}

// FinishedBranch is a branch that was confirmed or cancelled.
type FinishedBranch struct {
	ID      string `json:"id"`
	URL     string `json:"url"` // of the confirm
	Account string `json:"account,omitempty"`
	Payload []byte `json:"payload,omitempty"`
}

// HeadAnswer is how far a chain is here. Chain is the first eight bytes of the event's: enough to tell two apart, for both
// stand at the same number.
type HeadAnswer struct {
	Origin int
	Slot   int
	Seq    uint64
	Chain  uint64
}

// headBytes of a head on the wire.
const headBytes = 19

func encodeHeads(list []HeadAnswer) []byte {
	out := make([]byte, 0, len(list)*headBytes)
	for _, h := range list {
		out = append(out, byte(h.Origin))
		out = binary.BigEndian.AppendUint16(out, uint16(h.Slot))
		out = binary.BigEndian.AppendUint64(out, h.Seq)
		out = binary.BigEndian.AppendUint64(out, h.Chain)
	}
	return out
}

func decodeHeads(b []byte) []HeadAnswer {
	out := make([]HeadAnswer, 0, len(b)/headBytes)
	for ; len(b) >= headBytes; b = b[headBytes:] {
		out = append(out, HeadAnswer{Origin: int(b[0]), Slot: int(binary.BigEndian.Uint16(b[1:])), Seq: binary.BigEndian.Uint64(b[3:]), Chain: binary.BigEndian.Uint64(b[11:])})
	}
	return out
}

// finishedMax bounds one answer.
const finishedMax = 5000

// knownMax bounds the gids of one question.
const knownMax = 5000

// known says of transactions whether this region has them: "finished" or "decided" in its journal, "open" in its store.
func (s *Served) known(ctx context.Context, gids []string) (map[string]string, error) {
	if len(gids) > knownMax {
		return nil, fmt.Errorf("%d gids; at most %d are answered", len(gids), knownMax)
	}
	if s.Live == nil {
		return nil, errors.New("this coordinator cannot say what is under way")
	}
	out := map[string]string{}
	for _, gid := range gids {
		// What is under way is asked first: it goes from there to the journal, and not back.
		live, err := s.Live(ctx, gid)
		if err != nil {
			return nil, err
		}
		if live {
			out[gid] = "open"
			continue
		}
		row, err := s.Journal.Row(ctx, txn.Gid(gid))
		switch {
		case err != nil:
			return nil, err
		case row != nil && row.Finish.Seq > 0:
			out[gid] = "finished"
		case row != nil:
			out[gid] = "decided"
		}
	}
	return out, nil
}

// keeps says whether everything is still here that ended since a time (unix ms); "" where that is of no interest.
func (s *Served) keeps(since string) error {
	if since == "" || s.Keeps == 0 {
		return nil
	}
	at, err := strconv.ParseInt(since, 10, 64)
	if err != nil {
		return fmt.Errorf("since: %w", err)
	}
	if oldest := time.Now().Add(-s.Keeps).UnixMilli(); at < oldest {
		return fmt.Errorf("since: transactions that ended before %d are forgotten here (--keep-outcomes %s): ask for less", oldest, s.Keeps)
	}
	return nil
}

// Mount adds the handlers: GET /v1/drift/sums, /prints, /row, /heads, /finished, /outbox, and POST /v1/drift/known,
// /restore, /publish, /lost. Who may ask is
// the caller's business.
func (s *Served) Mount(mux *http.ServeMux) {
	s.mountOutbox(mux)
	s.mountLost(mux)
	mux.HandleFunc("GET /v1/drift/sums", func(w http.ResponseWriter, r *http.Request) {
		from, to, err := window(r)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		sums, err := s.Journal.Sums(r.Context(), from, to)
		if err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
			return
		}
		out := make([]byte, 0, slot.Count*journal.SumBytes)
		for _, sum := range sums {
			out = append(out, sum.Bytes()...)
		}
		w.Header().Set("Content-Type", "application/octet-stream")
		_, _ = w.Write(out) // the caller has left, then
	})
	mux.HandleFunc("GET /v1/drift/prints", func(w http.ResponseWriter, r *http.Request) {
		from, to, err := window(r)
		n, err2 := strconv.Atoi(r.URL.Query().Get("slot"))
		if err := errors.Join(err, err2); err != nil || n < 0 || n >= slot.Count {
			http.Error(w, fmt.Sprintf("from, to and slot are numbers (%v)", err), http.StatusBadRequest)
			return
		}
		prints, err := s.Journal.Prints(r.Context(), n, from, to)
		out := map[string]string{}
		for _, p := range prints {
			out[string(p.Gid)] = hex.EncodeToString(p.Print[:])
		}
		answer(w, out, err)
	})
	mux.HandleFunc("GET /v1/drift/row", func(w http.ResponseWriter, r *http.Request) {
		row, err := s.Journal.Row(r.Context(), txn.Gid(r.URL.Query().Get("gid")))
		out := RowAnswer{Row: row}
		if err == nil && row != nil {
			out.Sound, err = s.Journal.Sound(r.Context(), row)
		}
		answer(w, out, err)
	})
	mux.HandleFunc("GET /v1/drift/heads", func(w http.ResponseWriter, r *http.Request) {
		out, err := s.heads(r.Context())
		if err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
			return
		}
		w.Header().Set("Content-Type", "application/octet-stream")
		_, _ = w.Write(encodeHeads(out)) // the caller has left, then
	})
	mux.HandleFunc("GET /v1/drift/finished", func(w http.ResponseWriter, r *http.Request) {
		from, to, err := window(r)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		out, err := s.finished(r.Context(), from, to)
		answer(w, out, err)
	})
	mux.HandleFunc("POST /v1/drift/known", func(w http.ResponseWriter, r *http.Request) {
		var gids []string
		if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, 8<<20)).Decode(&gids); err != nil {
			http.Error(w, "body: "+err.Error(), http.StatusBadRequest)
			return
		}
		var out map[string]string
		err := s.keeps(r.URL.Query().Get("since"))
		if err == nil {
			out, err = s.known(r.Context(), gids)
		}
		answer(w, out, err)
	})
	mux.HandleFunc("POST /v1/drift/restore", func(w http.ResponseWriter, r *http.Request) {
		var row engine.Row
		err := json.NewDecoder(http.MaxBytesReader(w, r.Body, 8<<20)).Decode(&row)
		if err != nil {
			http.Error(w, "body: "+err.Error(), http.StatusBadRequest)
			return
		}
		err = s.Journal.Restore(r.Context(), &row)
		if s.Audited != nil {
			s.Audited(r.Context(), "drift restore", err, "gid", string(row.Gid))
		}
		answer(w, map[string]bool{"restored": err == nil}, err)
	})
}

func window(r *http.Request) (from, to int64, err error) {
	from, err = strconv.ParseInt(r.URL.Query().Get("from"), 10, 64)
	to, err2 := strconv.ParseInt(r.URL.Query().Get("to"), 10, 64)
	return from, to, errors.Join(err, err2)
}

func answer(w http.ResponseWriter, v any, err error) {
	if err != nil {
		http.Error(w, err.Error(), http.StatusServiceUnavailable)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(v) // the caller has left, then
}

// heads gives how far this journal has each other region's chains, and how far its own were published.
func (s *Served) heads(ctx context.Context) ([]HeadAnswer, error) {
	marks, err := s.Journal.Marks(ctx)
	if err != nil {
		return nil, err
	}
	own, err := s.Journal.Published(ctx, s.Index)
	if err != nil {
		return nil, err
	}
	out := make([]HeadAnswer, 0, len(marks)+len(own))
	for _, m := range append(marks, own...) {
		if m.Head.Seq > 0 {
			out = append(out, HeadAnswer{Origin: m.Origin, Slot: m.Slot, Seq: m.Head.Seq, Chain: binary.BigEndian.Uint64(m.Head.Chain[:])})
		}
	}
	return out, nil
}

// FinishedAnswer is one page of finished transactions. Next is where the next one begins, 0 where this is the last; those
// of its first millisecond may come again.
type FinishedAnswer struct {
	List []Finished `json:"list"`
	Next int64      `json:"next"`
}

// finished lists the TCC transactions that finished in a window, with their branches.
func (s *Served) finished(ctx context.Context, from, to int64) (out FinishedAnswer, err error) {
	applied, err := s.Journal.Applied(ctx)
	if err != nil {
		return out, err
	}
	rows, last, err := s.Journal.FinishedBetween(ctx, from, to, finishedMax, func(tx *record.Tx, n int) {
		if tx.State.Mode != txn.ModeTCC || tx.Trimmed {
			return
		}
		origin := slot.Epoch(tx.FinishEpoch).Region()
		f := Finished{Gid: string(tx.State.Gid), Slot: n, At: tx.State.FinishedAt, Commit: tx.State.Phase.Commit(), Origin: origin, Seq: tx.Finish.Seq, Applied: applied[[2]int{origin, n}] >= tx.Finish.Seq}
		for i := range tx.State.Branches {
			if b := &tx.State.Branches[i]; !b.Message && b.Confirm != "" {
				f.Branches = append(f.Branches, FinishedBranch{ID: string(b.ID), URL: b.Confirm, Account: b.Account, Payload: b.Payload})
			}
		}
		out.List = append(out.List, f)
	})
	if rows >= finishedMax {
		out.Next = max(last, from+1)
	}
	return out, err
}
