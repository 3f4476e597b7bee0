package replica

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"time"

	"github.com/lockstep-tx/lockstep/coordinator/record"
	"github.com/lockstep-tx/lockstep/region/eventlog"
	"github.com/lockstep-tx/lockstep/region/journal"
	"github.com/lockstep-tx/lockstep/region/slot"
)

// Bounds of one answer, and of a question to a peer.
const (
	fillEvents  = 500
	fillBytes   = 4 << 20
	answerBytes = 16 << 20
	askTimeout  = 5 * time.Second
)

// Mount adds the handlers to an admin address: GET /v1/region/events, heads, exposure and divergence, POST /v1/region/freeze
// and divergence/settle. Whoever may ask is the caller's business.
func (s *Service) Mount(mux *http.ServeMux) {
	mux.HandleFunc("GET /v1/region/events", s.serveEvents)
	mux.HandleFunc("GET /v1/region/heads", s.serveHeads)
	mux.HandleFunc("POST /v1/region/freeze", s.serveFreeze)
	mux.HandleFunc("GET /v1/region/exposure", s.serveExposure)
	mux.HandleFunc("GET /v1/region/divergence", s.serveDivergence)
	mux.HandleFunc("POST /v1/region/divergence/settle", s.serveSettle)
}

// serveEvents answers with the events of a chain from this journal: each an unsigned varint of its length and
// record.EncodeEvent's bytes, contiguous from the number after, none where there are none. 410: they were trimmed.
func (s *Service) serveEvents(w http.ResponseWriter, req *http.Request) {
	q := req.URL.Query()
	var n [3]int
	for i, name := range []string{"origin", "slot", "limit"} {
		v, err := strconv.Atoi(q.Get(name))
		if err != nil || v < 0 {
			http.Error(w, name+" is missing or no number", http.StatusBadRequest)
			return
		}
		n[i] = v
	}
	after, err := strconv.ParseUint(q.Get("after"), 10, 63)
	if err != nil || n[1] >= slot.Count || n[2] < 1 {
		http.Error(w, "after, slot or limit is out of range", http.StatusBadRequest)
		return
	}
	events, err := s.cfg.Journal.EventsAfter(req.Context(), n[0], n[1], after, min(n[2], fillEvents))
	if err != nil {
		code := http.StatusInternalServerError
		if errors.Is(err, journal.ErrTrimmed) {
			code = http.StatusGone
		}
		http.Error(w, err.Error(), code)
		return
	}
	var out []byte
	for i := range events {
		b, err := record.EncodeEvent(&events[i])
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		if i > 0 && len(out)+len(b) > fillBytes {
			break
		}
		out = append(binary.AppendUvarint(out, uint64(len(b))), b...)
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	_, _ = w.Write(out)
}

func decodeEvents(b []byte) ([]record.Event, error) {
	var out []record.Event
	for len(b) > 0 {
		size, n := binary.Uvarint(b)
		if n <= 0 || size > uint64(len(b)-n) {
			return nil, errors.New("the answer ends in the middle of an event")
		}
		e, err := record.DecodeEvent(b[n : n+int(size)])
		if err != nil {
			return nil, err
		}
		out = append(out, *e)
		b = b[n+int(size):]
	}
	return out, nil
}

// answer is what a coordinator says of its region over HTTP: a version, its own counts, for each origin how far the journal is, and
// its id.
type answer struct {
	live  eventlog.Live
	heads map[int][]eventlog.Head
}

const answerVersion = 1

func (a *answer) encode() []byte {
	b := []byte{answerVersion}
	b = binary.BigEndian.AppendUint64(b, uint64(a.live.Open))
	b = binary.BigEndian.AppendUint64(b, uint64(a.live.Unpublished))
	b = binary.BigEndian.AppendUint32(b, uint32(len(a.heads)))
	for index, heads := range a.heads {
		b = binary.BigEndian.AppendUint32(b, uint32(index))
		b = eventlog.AppendHeads(b, heads)
	}
	return eventlog.AppendMember(b, a.live.Member)
}

func decodeAnswer(b []byte) (*answer, error) {
	if len(b) < 21 || b[0] != answerVersion {
		return nil, errors.New("this is not what a region says of its heads")
	}
	a := &answer{heads: map[int][]eventlog.Head{}}
	a.live = eventlog.Live{Open: int(int64(binary.BigEndian.Uint64(b[1:]))), Unpublished: int(int64(binary.BigEndian.Uint64(b[9:])))}
	count := binary.BigEndian.Uint32(b[17:])
	b = b[21:]
	for range count {
		if len(b) < 4 {
			return nil, errors.New("the heads end too early")
		}
		index := int(binary.BigEndian.Uint32(b))
		var err error
		if a.heads[index], b, err = eventlog.DecodeHeads(b[4:]); err != nil {
			return nil, err
		}
	}
	var err error
	a.live.Member, err = eventlog.DecodeMember(b)
	return a, err
}

// serveHeads answers with how far this journal has every region's chains; the own ones as far as they are published.
func (s *Service) serveHeads(w http.ResponseWriter, req *http.Request) {
	a := &answer{live: s.cfg.Live(), heads: map[int][]eventlog.Head{}}
	a.live.Unpublished += s.pub.Unpublished()
	published, err := s.cfg.Journal.Published(req.Context(), s.cfg.Index)
	var marks []journal.Mark
	if err == nil {
		marks, err = s.cfg.Journal.Marks(req.Context())
	}
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	for _, m := range append(published, marks...) {
		if m.Head.Seq > 0 {
			a.heads[m.Origin] = append(a.heads[m.Origin], eventlog.Head{Slot: m.Slot, Head: m.Head})
		}
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	_, _ = w.Write(a.encode())
}

// errGone: a peer has trimmed what was asked for.
var errGone = errors.New("it was trimmed there")

// get asks a region; any of its coordinators will do, the one that answered last first.
func (s *Service) get(ctx context.Context, o *origin, path string) ([]byte, error) {
	o.mu.Lock()
	first := o.trust
	o.mu.Unlock()
	var errs []error
	for i := range o.peer.AdminURLs {
		at := (first + i) % len(o.peer.AdminURLs)
		b, err := s.getFrom(ctx, o.peer.AdminURLs[at]+path)
		if err == nil {
			o.mu.Lock()
			o.trust = at
			o.mu.Unlock()
			return b, nil
		}
		errs = append(errs, err)
		if ctx.Err() != nil || errors.Is(err, errGone) {
			break
		}
	}
	if errs == nil {
		return nil, fmt.Errorf("region %s has no admin addresses", o.peer.Name)
	}
	return nil, fmt.Errorf("ask region %s: %w", o.peer.Name, errors.Join(errs...))
}

func (s *Service) getFrom(ctx context.Context, address string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, address, nil)
	if err != nil {
		return nil, err
	}
	res, err := s.cfg.HTTP.Do(req)
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	b, err := io.ReadAll(io.LimitReader(res.Body, answerBytes))
	switch {
	case err != nil:
		return nil, err
	case res.StatusCode == http.StatusGone:
		return nil, fmt.Errorf("%w: %.200s", errGone, b)
	case res.StatusCode != http.StatusOK:
		return nil, fmt.Errorf("%s: %.200s", res.Status, b)
	}
	return b, nil
}

// ask learns every second how far a peer is: its own heads, and what it has of ours.
func (s *Service) ask(ctx context.Context, o *origin) {
	for ; ctx.Err() == nil; rest(ctx, time.Second) {
		b, err := s.get(ctx, o, "/v1/region/heads")
		var a *answer
		if err == nil {
			a, err = decodeAnswer(b)
		}
		if err != nil {
			if ctx.Err() == nil {
				s.log.Debug("a peer did not say how far it is", "region", o.peer.Name, "err", err)
			}
			continue
		}
		o.learn(a.heads[o.peer.Index], &a.live)
		o.told(a.heads)
		if err := s.acknowledged(ctx, o.peer.Index, a.heads[s.cfg.Index]); err != nil && ctx.Err() == nil {
			s.log.Warn("what a peer has could not be noted", "region", o.peer.Name, "err", err)
		}
	}
}

// acknowledged notes what a peer has of our chains.
func (s *Service) acknowledged(ctx context.Context, peer int, heads []eventlog.Head) error {
	news := map[int]uint64{}
	heads = s.ofOurs(ctx, heads)
	s.mu.Lock()
	for _, h := range heads {
		if h.Head.Seq > s.acks[peer][h.Slot] {
			news[h.Slot] = h.Head.Seq
		}
	}
	s.mu.Unlock()
	if len(news) == 0 {
		return nil
	}
	if err := s.cfg.Journal.Acknowledge(ctx, s.cfg.Index, peer, news); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for n, seq := range news {
		s.acks[peer][n] = seq
	}
	return nil
}
