package place

import (
	"context"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/lockstep-tx/lockstep/coordinator/engine"
	"github.com/lockstep-tx/lockstep/coordinator/txn"
	"github.com/lockstep-tx/lockstep/region/arbiter/arbitertest"
	"github.com/lockstep-tx/lockstep/region/registry"
	"github.com/lockstep-tx/lockstep/region/slot"
)

// tellers is a participant that answers with tries, and notes the fences that were raised before.
type tellers struct {
	tries  []wireTry
	fenced bool
	early  bool // it was asked before
}

func (p *tellers) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	switch req.URL.Path {
	case "/lockstep/fence":
		p.fenced = true
	case "/lockstep/tries":
		p.early = p.early || !p.fenced
		_ = json.NewEncoder(w).Encode(map[string]any{"tries": p.tries})
	default:
		w.WriteHeader(http.StatusNotFound)
	}
}

// TestTheArbitersSilenceIsConclusiveUnlessItWasRestored: a try without a record ends in abort only where it is global in everybody's
// words and the arbiter, whose silence that rests on, has never been rebuilt from a backup: what was decided after the backup is not in
// it. Everything else is in doubt. The arbiter is asked each time: it may be restored while a coordinator runs.
func TestTheArbitersSilenceIsConclusiveUnlessItWasRestored(t *testing.T) {
	arb, _ := arbitertest.Start(t)
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	if err := arb.Init(ctx, []string{"east", "west"}, time.Now(), func(int) string { return "east" }); err != nil {
		t.Fatal(err)
	}
	teller := &tellers{}
	srv := httptest.NewServer(teller)
	defer srv.Close()
	if err := registry.Set(ctx, arb, registry.Participant{Name: "wallet", Endpoints: map[string]string{"east": "http://127.0.0.1:1", "west": srv.URL}, Can: &registry.Capabilities{Fenced: true, Tries: true, Settle: true}}); err != nil {
		t.Fatal(err)
	}
	p, err := New(ctx, Config{Self: "west", Arbiter: arb, HTTP: http.DefaultClient})
	if err != nil {
		t.Fatal(err)
	}
	go p.registry.Run(ctx)
	for p.registry.Table() == nil {
		select {
		case <-ctx.Done():
			t.Fatal("the participants are not heard of")
		case <-time.After(10 * time.Millisecond):
		}
	}
	const gid = "g"
	n := slot.Of(gid)
	try := func(branch, durability, state string) wireTry {
		return wireTry{Gid: gid, Branch: branch, TransType: "tcc", Durability: durability, State: state, Account: "ann", Amount: 5, Currency: "CNY", Debit: true}
	}
	abort, doubt := txn.PhaseAborting, txn.PhasePrepared
	for _, c := range []struct {
		name     string
		restored slot.Epoch // from here on
		tries    []wireTry
		phase    txn.Phase
		resolved *txn.Resolve
	}{
		{name: "global, the arbiter knows nothing of it", tries: []wireTry{try("01", "global", "tried"), try("02", "global", "tried")}, phase: abort},
		{name: "regional", tries: []wireTry{try("01", "regional", "tried")}, phase: doubt},
		{name: "global, and one participant says that it is not", tries: []wireTry{try("01", "regional", "tried"), try("02", "global", "tried")}, phase: doubt},
		{name: "global, and the first one says so", tries: []wireTry{try("01", "global", "tried"), try("02", "", "tried")}, phase: doubt},
		{name: "two over one database do not agree", tries: []wireTry{try("01", "global", "tried"), try("01", "regional", "tried")}, phase: doubt},
		{name: "global, the arbiter was restored", restored: 900, tries: []wireTry{try("01", "global", "tried")}, phase: doubt},
		{name: "global, confirmed somewhere, the arbiter was restored", restored: 900, tries: []wireTry{try("01", "global", "confirmed")}, phase: doubt, resolved: &txn.Resolve{Commit: true}},
	} {
		t.Run(c.name, func(t *testing.T) {
			if c.restored != 0 {
				if err := arb.Restored(ctx, c.restored); err != nil {
					t.Fatal(err)
				}
			}
			*teller = tellers{tries: c.tries}
			var took *engine.Adopt
			var resolved *txn.Resolve
			do := func(_ context.Context, req engine.Request) (engine.Reply, error) {
				switch ev := req.Event.(type) {
				case engine.Adopt:
					took = &ev
				case txn.Resolve:
					resolved = &ev
				}
				return engine.Reply{}, nil
			}
			m := engine.Move{Slot: n, Owner: slot.Owner{Region: "west", Epoch: 202, Lost: 101, Status: slot.Active}}
			if err := p.findDoubts(ctx, []engine.Move{m}, false, do); err != nil {
				t.Fatal(err)
			}
			if teller.early || !teller.fenced {
				t.Error("it was asked for its tries before its fences were raised: they may change")
			}
			if took == nil {
				t.Fatal("nobody took it")
			}
			if s := &took.Tx.State; s.Phase != c.phase || s.InDoubt == s.Phase.Decided() || string(s.Gid) != gid || s.Epoch != 202 {
				t.Errorf("%s, in doubt %v: %+v", s.Phase, s.InDoubt, s)
			}
			if (resolved != nil) != (c.resolved != nil) || resolved != nil && resolved.Commit != c.resolved.Commit {
				t.Errorf("resolved: %+v", resolved)
			}
		})
	}
}
