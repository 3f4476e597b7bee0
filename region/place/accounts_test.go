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
