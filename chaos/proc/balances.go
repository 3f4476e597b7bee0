package proc

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
)

// Balances asks each region's participant what the accounts that have their home there have, in minor units.
func (d *Deployment) Balances(ctx context.Context) (map[string]int64, error) {
	out := map[string]int64{}
	for _, r := range d.Regions {
		all, err := balances(ctx, r.Tap.URL()+d.Participant.Balances)
		if err != nil {
			return nil, fmt.Errorf("balances in %s: %w", r.Name, err)
		}
		for _, id := range r.Accounts {
			n, ok := all[id]
			if !ok {
				return nil, fmt.Errorf("balances in %s: there is no account %s", r.Name, id)
			}
			out[id] = n
		}
	}
	return out, nil
}

func balances(ctx context.Context, url string) (map[string]int64, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	raw, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %.200s", resp.Status, raw)
	}
	if err != nil {
		return nil, err
	}
	var nested struct{ Balances map[string]int64 }
	if err := json.Unmarshal(raw, &nested); err == nil && len(nested.Balances) > 0 {
		return nested.Balances, nil
	}
	flat := map[string]int64{}
	if err := json.Unmarshal(raw, &flat); err != nil {
		return nil, errors.Join(errors.New(`neither {"balances":{"account":minor}} nor {"account":minor}`), err)
	}
	return flat, nil
}
