package main

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"

	"github.com/lockstep-tx/lockstep/region/failover/conduct"
	"github.com/lockstep-tx/lockstep/region/slot"
)

// This file is what an operation that moves slots asks of the regions: conduct.World.

// Reached is conduct.World's.
func (a *asker) Reached(ctx context.Context, region string, seals map[int]*slot.Seal) map[int]bool {
	yes := map[int]bool{}
	body, err := json.Marshal(map[string]any{"seals": seals})
	if err != nil {
		return yes
	}
	var out struct{ Reached []int }
	if raw, err := a.askAny(ctx, region, "/v1/region/reached", body); err == nil && json.Unmarshal(raw, &out) == nil {
		for _, n := range out.Reached {
			yes[n] = true
		}
	}
	return yes
}

// Canary is conduct.World's.
func (a *asker) Canary(ctx context.Context, region string, n int) error {
	_, err := a.askAny(ctx, region, fmt.Sprintf("/v1/region/canary?slot=%d", n), []byte{})
	if err == nil {
		a.mu.Lock()
		defer a.mu.Unlock()
		if a.written == nil {
			a.written = map[int]bool{}
		}
		a.written[n] = true
	}
	return err
}

// Freeze is conduct.World's.
func (a *asker) Freeze(ctx context.Context, lost, target string, epochs map[int]slot.Epoch) (map[int]*slot.Seal, error) {
	type at struct {
		Slot  int    `json:"slot"`
		Epoch uint64 `json:"epoch"`
	}
	var in struct {
		Origin string `json:"origin"`
		Slots  []at   `json:"slots"`
	}
	in.Origin = lost
	for _, n := range slices.Sorted(maps.Keys(epochs)) {
		in.Slots = append(in.Slots, at{n, uint64(epochs[n])})
	}
	body, err := json.Marshal(&in)
	if err != nil {
		return nil, err
	}
	answers := a.askAll(ctx, lost, "/v1/region/freeze", body, a.hurried(target))
	if err := answers[target].err; err != nil {
		return nil, fmt.Errorf("region %s did not freeze its journal: %w", target, err)
	}
	return conduct.Seals(epochs, marksOf(answers))
}

// marksOf reads what journals that answered say; the others' silence is theirs to find out (ADR 9).
func marksOf(answers map[string]answered) map[string][]conduct.Mark {
	out := map[string][]conduct.Mark{}
	for region, ans := range answers {
		var got struct {
			Marks []conduct.Mark `json:"marks"`
		}
		if ans.err == nil && json.Unmarshal(ans.body, &got) == nil {
			out[region] = got.Marks
		}
	}
	return out
}
