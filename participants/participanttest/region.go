package participanttest

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"

	"github.com/lockstep-tx/lockstep/participants/branch"
)

// The epochs of a slot that is handed over: begun at, released at, and adopted at again.
const (
	before, released, after = 202, 300, 302
)

// region makes a request of the kind that a region's coordinators make.
func (r *run) region(method, path string, body []byte) (int, []byte, error) {
	return r.regionWith(method, path, body, nil)
}

func (r *run) regionWith(method, path string, body []byte, headers map[string]string) (int, []byte, error) {
	req, err := http.NewRequestWithContext(r.ctx, method, strings.TrimSuffix(r.target.RegionURL, "/")+path, bytes.NewReader(body))
	if err != nil {
		return 0, nil, err
	}
	for name, value := range headers {
		req.Header.Set(name, value)
	}
	resp, err := r.client.Do(req)
	if err != nil {
		return 0, nil, err
	}
	defer resp.Body.Close()
	raw, err := io.ReadAll(io.LimitReader(resp.Body, 16<<20))
	return resp.StatusCode, raw, err
}

func (r *run) regionOK(method, path string, body []byte) ([]byte, error) {
	status, raw, err := r.region(method, path, body)
	if err == nil && status != http.StatusOK {
		err = fmt.Errorf("%s %s is answered %d %.200s", method, path, status, raw)
	}
	return raw, err
}

func (r *run) probed() error {
	raw, err := r.regionOK(http.MethodGet, "/lockstep/probe", nil)
	if err != nil {
		return err
	}
	var p branch.Probe
	if err := json.Unmarshal(raw, &p); err != nil {
		return fmt.Errorf("the probe's answer: %w", err)
	}
	if !p.Fenced {
		return errors.New("the probe says that it is not fenced")
	}
	return nil
}

// at makes a call of the slot's coordinator at an epoch of several regions: the other checks' are lower.
func (r *run) at(gid, op string, epoch int64) answer {
	c := r.newCall(gid, op, epoch)
	r.raised[c.slot] = true
	return r.send(c)
}

// handedOver releases the slot of a transaction that has tried, and adopts it again here: in between the old epoch is
// refused and the new one put off, afterwards the transaction can be confirmed. Every step is repeated.
func (r *run) handedOver() error {
	g, n := r.raises()
	if a := r.at(g, try, before); a.status != http.StatusOK {
		return fmt.Errorf("a try at epoch %d is answered %s", before, a)
	}
	release := fmt.Appendf(nil, `[{"slot":%d,"epoch":%d}]`, n, released)
	for range 2 {
		if _, err := r.regionOK(http.MethodPost, "/lockstep/release", release); err != nil {
			return err
		}
	}
	if a := r.at(g, confirm, before); a.status != http.StatusPreconditionFailed {
		return fmt.Errorf("a confirm of the old epoch after the release is answered %s, want 412", a)
	}
	if a := r.at(g, confirm, after); a.status != http.StatusMisdirectedRequest {
		return fmt.Errorf("a confirm of the new epoch before the adoption is answered %s, want 421", a)
	}
	raw, err := r.regionOK(http.MethodGet, fmt.Sprintf("/lockstep/released?slot=%d&epoch=%d", n, released), nil)
	if err != nil {
		return err
	}
	adopt := fmt.Sprintf("/lockstep/adopt?slot=%d&epoch=%d", n, after)
	if status, _, err := r.region(http.MethodPost, adopt, nil); err != nil || status == http.StatusOK {
		return fmt.Errorf("an adoption without what was released is answered %d (%v): the accounts would be lost", status, err)
	}
	for range 2 {
		if _, err := r.regionOK(http.MethodPost, adopt, raw); err != nil {
			return err
		}
	}
	for range 2 {
		if a := r.at(g, confirm, after); a.status != http.StatusOK {
			return fmt.Errorf("the confirm after the adoption is answered %s", a)
		}
	}
	if a := r.at(g, confirm, before); a.status != http.StatusPreconditionFailed {
		return fmt.Errorf("a confirm of the old epoch after the adoption is answered %s, want 412", a)
	}
	return nil
}

// appliedOnce posts a committed effect to the copy here, several times; with balances to see, it counts.
func (r *run) appliedOnce() error {
	g := r.gid()
	var moved []map[string]int64
	for range repeats {
		if a := r.at(g, branch.OpApply, before); a.status != http.StatusOK {
			return fmt.Errorf("apply is answered %s", a)
		}
		if r.target.StateURL != "" {
			b, err := r.balances()
			if err != nil {
				return err
			}
			moved = append(moved, b)
		}
	}
	for i := 1; i < len(moved); i++ {
		for name, have := range moved[i] {
			if have != moved[0][name] {
				return fmt.Errorf("a repeat of apply moved %s from %d to %d", name, moved[0][name], have)
			}
		}
	}
	if a := r.at(g, confirm, before); a.status != http.StatusOK {
		return fmt.Errorf("a confirm of what was applied is answered %s, want a repeat's success", a)
	}
	return nil
}
