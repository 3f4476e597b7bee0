package barrier

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"
)

// FloorsFrom asks the region's coordinators, at the URLs of their admin addresses, what CleanOptions.Floors wants to
// know. Each speaks for the slots that it holds; a coordinator that does not answer leaves its slots out, and only when
// none answers is it an error. token is sent as a bearer token where it is not empty; the role viewer is enough. client
// nil is one with a timeout of 10 s.
func FloorsFrom(urls []string, token string, client *http.Client) func(ctx context.Context) (map[int]int64, error) {
	if client == nil {
		client = &http.Client{Timeout: 10 * time.Second}
	}
	return func(ctx context.Context) (map[int]int64, error) {
		floors := map[int]int64{}
		var errs []error
		for _, u := range urls {
			got, err := askFloors(ctx, client, strings.TrimSuffix(u, "/")+"/v1/floors", token)
			if err != nil {
				errs = append(errs, err)
				continue
			}
			for n, ms := range got {
				if has, ok := floors[n]; ok {
					ms = min(ms, has) // the slot has just moved: the more careful word counts
				}
				floors[n] = ms
			}
		}
		if len(errs) == len(urls) {
			return nil, errors.Join(append(errs, errors.New("no coordinator has told its floors"))...)
		}
		return floors, nil
	}
}

func askFloors(ctx context.Context, client *http.Client, url, token string) (map[int]int64, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	resp, err := client.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", url, err)
	}
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%s: %s: %.200s", url, resp.Status, body)
	}
	var answer struct {
		Floors map[int]int64 `json:"floors"`
	}
	if err := json.Unmarshal(body, &answer); err != nil {
		return nil, fmt.Errorf("%s: %w", url, err)
	}
	for n, ms := range answer.Floors {
		if n < 0 || n >= SlotCount || ms <= 0 {
			return nil, fmt.Errorf("%s: slot %d with floor %d", url, n, ms)
		}
	}
	return answer.Floors, nil
}
