package place

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/lockstep-tx/lockstep/coordinator/engine"
	"github.com/lockstep-tx/lockstep/region/registry"
	"github.com/lockstep-tx/lockstep/region/slot"
)

// This file speaks with participants about the homes of accounts: docs/regions.md has the addresses.

// home is one fence row as participants take it.
type home struct {
	Slot  int        `json:"slot"`
	Epoch slot.Epoch `json:"epoch"`
	Here  bool       `json:"here"`
}

// errUnknown: nobody may be taken for nobody.
var errUnknown = errors.New("the participants are not known yet: the arbiter was not heard since the start")

// movable lists the participants of this region whose accounts move, with their endpoints here.
func (p *Place) movable() ([]registry.Participant, error) {
	t := p.registry.Table()
	if t == nil {
		return nil, errUnknown
	}
	var out []registry.Participant
	for _, part := range t.All() {
		if part.Can != nil && part.Can.Movable && isHTTP(part.Endpoints[p.cfg.Self]) {
			out = append(out, part)
		}
	}
	return out, nil
}

func isHTTP(u string) bool {
	return strings.HasPrefix(u, "http://") || strings.HasPrefix(u, "https://")
}

// Release is engine.Regions's.
func (p *Place) Release(ctx context.Context, moves []engine.Move) error {
	var homes []home
	for _, m := range moves {
		homes = append(homes, home{Slot: m.Slot, Epoch: m.Owner.Epoch.Released()})
	}
	parts, err := p.movable()
	if err != nil {
		return err
	}
	for _, part := range parts {
		if _, err := p.post(ctx, part.Endpoints[p.cfg.Self], "/lockstep/release", homes); err != nil {
			return fmt.Errorf("participant %s: %w", part.Name, err)
		}
	}
	return nil
}

// Adopt is engine.Regions's. What was released is at the region that the slot came from, or here where a move was undone.
func (p *Place) Adopt(ctx context.Context, moves []engine.Move) error {
	parts, err := p.movable()
	if err != nil {
		return err
	}
	var mu sync.Mutex
	var errs []error
	var g errgroup.Group
	g.SetLimit(adoptionsAtOnce)
	for _, part := range parts {
		taken := slices.DeleteFunc(slices.Clone(moves), func(m engine.Move) bool { return !m.Owner.Forced() })
		if len(taken) > 0 {
			g.Go(func() error {
				if err := p.adoptForced(ctx, &part, taken); err != nil {
					mu.Lock()
					errs = append(errs, fmt.Errorf("participant %s, %d slots: %w", part.Name, len(taken), err))
					mu.Unlock()
				}
				return nil
			})
		}
		for _, m := range moves {
			if m.Owner.Forced() {
				continue
			}
			g.Go(func() error {
				if err := p.adopt(ctx, &part, m); err != nil {
					mu.Lock()
					errs = append(errs, fmt.Errorf("participant %s, slot %d: %w", part.Name, m.Slot, err))
					mu.Unlock()
				}
				return nil // the others are adopted all the same
			})
		}
	}
	_ = g.Wait() // it has only nil errors
	return errors.Join(errs...)
}

// adoptionsAtOnce bounds the adoptions under way.
const adoptionsAtOnce = 8

func (p *Place) adopt(ctx context.Context, part *registry.Participant, m engine.Move) error {
	from := p.cfg.Self
	if s := m.Owner.Seal; s != nil && m.Owner.Status != slot.Sealed && s.Epoch.Released() == m.Owner.Epoch-m.Owner.Epoch%100 {
		from = p.dep.Name(s.Epoch.Region())
	}
	source, ok := part.Endpoints[from]
	if !ok {
		return fmt.Errorf("it has no endpoint in region %s, where its accounts were released", from)
	}
	// Every epoch that may follow E has the same hundreds, and so has the release between them.
	released := m.Owner.Epoch - m.Owner.Epoch%100
	raw, err := p.get(ctx, source, fmt.Sprintf("/lockstep/released?slot=%d&epoch=%d", m.Slot, released))
	var gone *answerError
	if errors.As(err, &gone) && gone.status == http.StatusNotFound {
		raw, err = p.lastReleased(ctx, part, m)
	}
	if err != nil {
		return err
	}
	_, err = p.postRaw(ctx, part.Endpoints[p.cfg.Self], fmt.Sprintf("/lockstep/adopt?slot=%d&epoch=%d", m.Slot, m.Owner.Epoch), raw)
	return err
}

// lastReleased gives what the last release of a slot gave, in whichever region: nobody can have moved the slot away from
// where it was adopted without releasing it there, so that it is the last home's. It is needed where a move began before the
// accounts of the one before were adopted, and was undone before it released anything. nil when there was never a release; a
// participant that is a copy refuses to be home without it. A region that does not answer is an error: it may have the last.
func (p *Place) lastReleased(ctx context.Context, part *registry.Participant, m engine.Move) ([]byte, error) {
	var last []byte
	var at int64
	for region, source := range part.Endpoints {
		raw, err := p.get(ctx, source, fmt.Sprintf("/lockstep/released?slot=%d&epoch=%d&last=true", m.Slot, m.Owner.Epoch))
		var none *answerError
		if errors.As(err, &none) && none.status < http.StatusInternalServerError {
			continue
		}
		var s struct{ Epoch int64 }
		if err == nil {
			err = json.Unmarshal(raw, &s)
		}
		if err != nil {
			return nil, fmt.Errorf("what was released in region %s: %w", region, err)
		}
		if s.Epoch > at {
			last, at = raw, s.Epoch
		}
	}
	return last, nil
}

// introduce tells the region's participants which slots have their home here, whenever there are new ones, and once a
// minute: one whose database is new learns that it holds copies.
func (p *Place) introduce(ctx context.Context) {
	told := map[string]time.Time{}
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	for {
		m := p.owners.Load()
		parts, _ := p.movable() // soon again
		for _, part := range parts {
			endpoint := part.Endpoints[p.cfg.Self]
			if m == nil || time.Since(told[endpoint]) < time.Minute {
				continue
			}
			var homes []home
			for n, o := range m {
				if o.Status == slot.Active {
					homes = append(homes, home{Slot: n, Epoch: o.Epoch, Here: o.Region == p.cfg.Self})
				}
			}
			if _, err := p.post(ctx, endpoint, "/lockstep/homes", homes); err != nil {
				if ctx.Err() == nil {
					p.cfg.Log.Warn("a participant was not told its homes; trying again", "participant", part.Name, "err", err)
				}
				told[endpoint] = time.Now().Add(-59 * time.Second)
				continue
			}
			told[endpoint] = time.Now()
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// Probe asks a participant's endpoint what it can do. One that has no probe (404, 405, 501, or an answer that is none) is
// unfenced: the zero Capabilities and no error. Anything else is an error, and says nothing of what it can do.
func Probe(ctx context.Context, client *http.Client, endpoint string) (registry.Capabilities, error) {
	var can registry.Capabilities
	if !isHTTP(endpoint) {
		return can, nil // the probe is HTTP; a participant over gRPC alone has none
	}
	raw, err := (&Place{cfg: Config{HTTP: client}}).get(ctx, endpoint, "/lockstep/probe")
	var other *answerError
	switch {
	case errors.As(err, &other) && (other.status == http.StatusNotFound || other.status == http.StatusMethodNotAllowed || other.status == http.StatusNotImplemented):
		return can, nil
	case err != nil:
		return can, err
	}
	if json.Unmarshal(raw, &can) != nil {
		return registry.Capabilities{}, nil // it answers everything, and means nothing by it
	}
	return can, nil
}

// answerError is an answer that is not 200.
type answerError struct {
	status int
	text   string
}

func (e *answerError) Error() string { return fmt.Sprintf("HTTP status %d: %s", e.status, e.text) }

func (p *Place) get(ctx context.Context, endpoint, path string) ([]byte, error) {
	return p.roundTrip(ctx, http.MethodGet, endpoint, path, nil)
}

func (p *Place) post(ctx context.Context, endpoint, path string, v any) ([]byte, error) {
	body, err := json.Marshal(v)
	if err != nil {
		return nil, err
	}
	return p.postRaw(ctx, endpoint, path, body)
}

func (p *Place) postRaw(ctx context.Context, endpoint, path string, body []byte) ([]byte, error) {
	return p.roundTrip(ctx, http.MethodPost, endpoint, path, body)
}

// answerBytesMax bounds what is read of an answer: a slot's accounts may be many.
const answerBytesMax = 256 << 20

func (p *Place) roundTrip(ctx context.Context, method, endpoint, path string, body []byte) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, method, strings.TrimSuffix(endpoint, "/")+path, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	resp, err := p.cfg.HTTP.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	raw, err := io.ReadAll(io.LimitReader(resp.Body, answerBytesMax))
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusOK {
		return nil, &answerError{resp.StatusCode, strings.ToValidUTF8(string(raw[:min(len(raw), 300)]), "?")}
	}
	return raw, nil
}
