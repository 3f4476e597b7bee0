package main

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"

	"github.com/lockstep-tx/lockstep/region/slot"
)

// TestAnArbiterFromABackupGoesPastEverythingThatWasSeen: the backup is older than a move of slot 0 to west, which a participant
// has seen, than an epoch of slot 3 that west's coordinator holds, and than the forced failover that took slot 4 from east.
func TestAnArbiterFromABackupGoesPastEverythingThatWasSeen(t *testing.T) {
	w := newWorld(t)
	w.must("region", "init")
	epochs := make([]slot.Epoch, slot.Count)
	epochs[3] = 402
	taken := slot.Owner{Region: "west", Epoch: 302, Status: slot.Active, Lost: 101, Risk: slot.Risk{Policy: slot.Limit, Cap: 7}, Seal: &slot.Seal{Epoch: 101, Seq: 9, Chain: strings.Repeat("ab", 32), Forced: true}}
	other := slot.Seal{Epoch: 101, Seq: 3, Chain: strings.Repeat("cd", 32), Forced: true} // of a loss that was worked off
	answers := map[string]bool{"east": true, "west": true}
	for region := range answers {
		w.admin[region].HandleFunc("GET /v1/region/epochs", func(rw http.ResponseWriter, _ *http.Request) {
			if !answers[region] {
				http.Error(rw, "gone", http.StatusServiceUnavailable)
				return
			}
			answer := map[string]any{"epochs": epochs}
			if region == "west" {
				owners := make([]slot.Owner, slot.Count)
				owners[4] = taken
				answer["owners"], answer["seals"] = owners, map[int][]slot.Seal{4: {*taken.Seal}, 6: {other}}
			}
			if err := json.NewEncoder(rw).Encode(answer); err != nil {
				t.Error(err)
			}
		})
	}
	part := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/lockstep/probe" {
			fmt.Fprint(rw, `{"fenced":true}`)
			return
		}
		// Slot 0 is west's since; slot 2 was released, and nobody had adopted it.
		fmt.Fprint(rw, `[{"slot":0,"epoch":702,"here":true},{"slot":2,"epoch":800,"here":false}]`)
	}))
	defer part.Close()
	w.must("participant", "set", "wallet", "--endpoint", "east="+part.URL, "--endpoint", "west="+part.URL)
	answers["west"] = false
	if out, code := w.command("region", "restored"); code != exitFailure || !strings.Contains(out, "a coordinator of region west does not answer") || !strings.Contains(out, "--without REGION") || w.owned("east") != slot.Count/2 {
		t.Fatal(code, out)
	}
	answers["west"] = true
	if out := w.must("region", "restored", "--dry-run"); !strings.Contains(out, "nothing was written") || w.owned("east") != slot.Count/2 {
		t.Fatal(out)
	}
	out := w.must("region", "restored", "--who", "ann")
	if !strings.Contains(out, "the highest epoch that was seen is 800; every slot goes to an epoch from 900 on; 2 slots had moved") {
		t.Fatal(out)
	}
	m, err := w.arbiter.Owners(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for n, o := range m {
		want := []string{"east", "west"}[n%2]
		if n == 0 || n == 4 {
			want = "west"
		}
		if n == 4 && (o.Lost != taken.Lost || o.Risk != taken.Risk || o.Seal == nil || *o.Seal != *taken.Seal) {
			t.Errorf("what the loss left of slot 4 is forgotten: %+v", o)
		}
		if o.Region != want || o.Epoch/100 != 9 || o.Epoch.Region() != map[string]int{"east": 1, "west": 2}[want] || o.Status != slot.Active {
			t.Fatalf("slot %d: %+v", n, o)
		}
	}
	if d, err := w.arbiter.Deployment(t.Context()); err != nil || d.RestoredEpoch != 900 {
		t.Fatalf("%+v, %v", d, err)
	}
	if !strings.Contains(w.audit(), "ann restored epochs from 900 on") {
		t.Error(w.audit())
	}
	seals, err := w.arbiter.AllSeals(t.Context())
	if err != nil || !slices.Contains(seals[4], *taken.Seal) || !slices.Contains(seals[6], other) {
		t.Fatalf("%+v, %+v, %v", seals[4], seals[6], err)
	}
	// Once more, for whoever was killed in between: it goes on from there.
	w.must("region", "restored")
	if d, err := w.arbiter.Deployment(t.Context()); err != nil || d.RestoredEpoch != 1000 {
		t.Fatalf("%+v, %v", d, err)
	}
}
