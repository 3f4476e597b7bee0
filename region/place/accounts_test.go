package place

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/lockstep-tx/lockstep/coordinator/engine"
	"github.com/lockstep-tx/lockstep/region/arbiter"
	"github.com/lockstep-tx/lockstep/region/registry"
	"github.com/lockstep-tx/lockstep/region/slot"
)

// releases is a participant's endpoint that keeps one release, as a real one does, and notes what it was told to adopt.
type releases struct {
	epoch   int64 // of the release; 0: none; -1: it does not answer
	adopted string
}

func (r *releases) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	q := req.URL.Query()
	switch {
	case r.epoch < 0:
		w.WriteHeader(http.StatusBadGateway)
	case req.URL.Path == "/lockstep/adopt":
		raw, _ := io.ReadAll(req.Body)
		r.adopted = q.Get("epoch") + " " + string(raw)
	case r.epoch > 0 && (q.Get("last") == "true" || q.Get("epoch") == fmt.Sprint(r.epoch)):
		fmt.Fprintf(w, `{"slot":7,"epoch":%d}`, r.epoch)
	default:
		w.WriteHeader(http.StatusNotFound)
	}
}

// A move that began before the accounts of the one before were adopted, and was undone before it released anything, must
// not leave accounts that nobody can ever adopt.
func TestAdoptTakesTheLastReleaseWhereTheMoveMadeNone(t *testing.T) {
	for _, c := range []struct {
		name       string
		east, west int64
		want       string
	}{
		{"released by the move", 300, 0, `302 {"slot":7,"epoch":300}`},
		{"the last is of the move before, here", 0, 200, `302 {"slot":7,"epoch":200}`},
		{"the last is of the move before, there", 200, 100, `302 {"slot":7,"epoch":200}`},
		{"never released", 0, 0, "302 "},
		{"who does not answer may have the last", -1, 200, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			east, west := &releases{epoch: c.east}, &releases{epoch: c.west}
			e, w := httptest.NewServer(east), httptest.NewServer(west)
			defer e.Close()
			defer w.Close()
			p := &Place{cfg: Config{Self: "west", HTTP: http.DefaultClient}, dep: arbiter.Deployment{Regions: []string{"east", "west"}}}
			part := &registry.Participant{Name: "wallet", Endpoints: map[string]string{"east": e.URL, "west": w.URL}}
			o := slot.Owner{Region: "west", Epoch: 302, Status: slot.Active}
			if c.east == 300 {
				o.Seal = &slot.Seal{Epoch: 201}
			}
			err := p.adopt(t.Context(), part, engine.Move{Slot: 7, Owner: o})
			if west.adopted != c.want || (err != nil) != (c.want == "") {
				t.Errorf("adopted %q, %v; want %q", west.adopted, err, c.want)
			}
		})
	}
}

// TestWhatIsNoAnswerToTheProbeSaysNothing: only an endpoint without a probe is taken for one that can do nothing.
func TestWhatIsNoAnswerToTheProbeSaysNothing(t *testing.T) {
	status := http.StatusOK
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(status)
		fmt.Fprint(w, `{"fenced":true,"apply":true}`)
	}))
	defer srv.Close()
	for _, c := range []struct {
		status     int
		can, fails bool
	}{
		{http.StatusOK, true, false},
		{http.StatusNotFound, false, false}, {http.StatusMethodNotAllowed, false, false}, {http.StatusNotImplemented, false, false},
		{http.StatusUnauthorized, false, true}, {http.StatusForbidden, false, true}, {http.StatusRequestTimeout, false, true},
		{http.StatusTooManyRequests, false, true}, {http.StatusBadGateway, false, true},
	} {
		status = c.status
		can, err := Probe(t.Context(), http.DefaultClient, srv.URL)
		if can.Apply != c.can || (err != nil) != c.fails {
			t.Errorf("%d: %+v, %v", c.status, can, err)
		}
	}
}

// TestNothingIsReleasedOrAdoptedBeforeTheParticipantsAreKnown: a slot would be sealed with accounts that nobody gave out.
func TestNothingIsReleasedOrAdoptedBeforeTheParticipantsAreKnown(t *testing.T) {
	p := &Place{cfg: Config{Self: "west"}, registry: registry.New(nil, nil)}
	p.owners.Store(&slot.Map{})
	moves := []engine.Move{{Slot: 7, Owner: slot.Owner{Region: "west", Epoch: 102, Status: slot.Active}}}
	if err := p.Release(t.Context(), moves); err == nil {
		t.Error("released")
	}
	if err := p.Adopt(t.Context(), moves); err == nil {
		t.Error("adopted")
	}
	if _, err := p.Resolve(&engine.Call{URL: "http://x/confirm"}); err == nil {
		t.Error("a branch was called where an account's home is not known")
	}
}
