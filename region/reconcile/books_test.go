package reconcile

import (
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/lockstep-tx/lockstep/region/registry"
)

// TestOnlySoundEntriesAreARepair: where entries and transfers disagree too, the finding is for a person, with both sides in
// its evidence.
func TestOnlySoundEntriesAreARepair(t *testing.T) {
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/lockstep/check" {
			_, _ = io.WriteString(w, `[{"account":"ann","currency":"CNY","have":[0,5,0,9],"fold":[0,5,0,8],"transfers":[0,5,0,8]},
				{"account":"bob","currency":"CNY","have":[0,5,0,9],"fold":[0,6,0,9],"transfers":[0,5,0,9],"entries_differ":["g1:01","g7:01"]},
				{"account":"eve","currency":"CNY","have":[0,6,0,9],"fold":[0,6,0,9],"transfers":[0,5,0,9],"entries_differ":["g1:01"]}]`)
		}
	}))
	defer srv.Close()
	p := newPair(t, 0, 0)
	r := p.reconciler()
	r.Table = registry.NewTable([]registry.Participant{{Name: "wallets", Endpoints: map[string]string{"east": srv.URL}, Can: &registry.Capabilities{Apply: true}}})
	rep, err := r.Detect(t.Context(), base, base+1_000_000)
	if err != nil || rep.Books != 1 || len(rep.Findings) != 3 {
		t.Fatalf("%+v, %v", rep, err)
	}
	for i, f := range rep.Findings {
		if f.Class != AmountAltered || (f.Repair != "") != (i == 0) || strings.Contains(string(f.Evidence), "entries_differ") != (i > 0) ||
			!strings.Contains(string(f.Evidence), `"transfers":[0,5,0,`) {
			t.Errorf("%+v, evidence %s", f, f.Evidence)
		}
		if i > 0 && !strings.Contains(f.Text, "g1:01") {
			t.Errorf("%s does not name the transfer", f.Text)
		}
	}
}
