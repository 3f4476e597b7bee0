package participanttest

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"

	"github.com/lockstep-tx/lockstep/participants/barrier"
	"github.com/lockstep-tx/lockstep/participants/branch"
)

// This file checks what a participant serves after the loss of a region (ADR 9), where its probe says that it does.

// probes asks once what the participant can do; nothing where it does not answer.
func (r *run) probes() branch.Probe {
	if r.probe1 == nil {
		r.probe1 = &branch.Probe{}
		if _, raw, err := r.region(http.MethodGet, "/lockstep/probe", nil); err == nil {
			_ = json.Unmarshal(raw, r.probe1) // what cannot be read says nothing; the check of the probe says so
		}
	}
	return *r.probe1
}

// raises gives a transaction whose slot's epoch the check raises: the others keep out of it.
func (r *run) raises() (gid string, slot int) {
	gid = r.gid()
	slot = barrier.SlotOf(gid)
	r.raised[slot] = true
	return gid, slot
}

// tried lists the branches of a transaction that the participant says are tried.
func (r *run) tried(gid string) ([]branch.Try, error) {
	n := barrier.SlotOf(gid)
	raw, err := r.regionOK(http.MethodPost, "/lockstep/tries", fmt.Appendf(nil, `{"slots":[%d,%d]}`, n, n))
	if err != nil {
		return nil, err
	}
	var all struct{ Tries []branch.Try }
	if err := json.Unmarshal(raw, &all); err != nil {
		return nil, fmt.Errorf("the answer of tries: %w", err)
	}
	var own []branch.Try
	for _, t := range all.Tries {
		if barrier.SlotOf(t.Gid) != n {
			return nil, fmt.Errorf("tries of slot %d list %s, which is of slot %d", n, t.Gid, barrier.SlotOf(t.Gid))
		}
		if t.Gid == gid {
			own = append(own, t)
		}
	}
	return own, nil
}

func (r *run) triesListed() error {
	for _, end := range []string{confirm, cancel} {
		g := r.gid()
		if a := r.at(g, try, before); a.status != http.StatusOK {
			return fmt.Errorf("a try is answered %s", a)
		}
		for _, want := range []int{1, 0} {
			got, err := r.tried(g)
			if err != nil {
				return err
			}
			if len(got) != want || want == 1 && (got[0].State != barrier.StateTried || got[0].Branch != "01") {
				return fmt.Errorf("tries lists %+v of a transaction with %d open tries (%s)", got, want, end)
			}
			if a := r.at(g, end, before); a.status != http.StatusOK {
				return fmt.Errorf("the %s is answered %s", end, a)
			}
		}
	}
	if status, _, err := r.region(http.MethodPost, "/lockstep/tries", []byte(`{"slots":[]}`)); err != nil || status != http.StatusBadRequest {
		return fmt.Errorf("tries of no slots is answered %d (%v), want 400", status, err)
	}
	return nil
}

func (r *run) fenced() error {
	g, n := r.raises()
	if a := r.at(g, try, before); a.status != http.StatusOK {
		return fmt.Errorf("a try is answered %s", a)
	}
	for _, epoch := range []int{after, after, before} { // a repeat and a lower one change nothing
		if _, err := r.regionOK(http.MethodPost, "/lockstep/fence", fmt.Appendf(nil, `[{"slot":%d,"epoch":%d}]`, n, epoch)); err != nil {
			return err
		}
		for _, op := range []string{try, confirm, cancel} {
			if a := r.at(g, op, before); a.status != http.StatusPreconditionFailed {
				return fmt.Errorf("a %s of the old epoch after the fence is answered %s, want 412", op, a)
			}
		}
	}
	if a := r.at(g, cancel, after); a.status != http.StatusOK {
		return fmt.Errorf("a cancel at the fence's epoch is answered %s", a)
	}
	return nil
}

func (r *run) adoptedByForce() error {
	g, n := r.raises()
	if _, err := r.regionOK(http.MethodPost, "/lockstep/homes", fmt.Appendf(nil, `[{"slot":%d,"epoch":%d,"here":false}]`, n, before)); err != nil {
		return err
	}
	if a := r.at(g, try, after); a.status != http.StatusMisdirectedRequest {
		return fmt.Errorf("a try at a copy is answered %s, want 421", a)
	}
	adopt := fmt.Sprintf("/lockstep/adopt?slot=%d&epoch=%d&forced=true", n, after)
	for _, bad := range []string{"", "&at_risk=maybe", "&at_risk=limit", "&at_risk=limit&cap=-1"} {
		if status, _, err := r.region(http.MethodPost, adopt+bad, nil); err != nil || status != http.StatusBadRequest {
			return fmt.Errorf("a forced adoption with %q is answered %d (%v), want 400", bad, status, err)
		}
	}
	for range 2 {
		if _, err := r.regionOK(http.MethodPost, adopt+"&at_risk=allow", nil); err != nil {
			return err
		}
	}
	if status, _, err := r.region(http.MethodPost, fmt.Sprintf("/lockstep/adopt?slot=%d&epoch=%d&forced=true&at_risk=allow", n, before), nil); err != nil || status != http.StatusPreconditionFailed {
		return fmt.Errorf("a forced adoption of an older epoch is answered %d (%v), want 412", status, err)
	}
	if a := r.at(g, confirm, before); a.status != http.StatusPreconditionFailed {
		return fmt.Errorf("a confirm of the lost region is answered %s, want 412", a)
	}
	for _, op := range []string{try, cancel} {
		if a := r.at(g, op, after); a.status != http.StatusOK {
			return fmt.Errorf("a %s at the new home is answered %s", op, a)
		}
	}
	_, err := r.regionOK(http.MethodPost, "/lockstep/risk", fmt.Appendf(nil, `{"slots":[{"slot":%d,"epoch":%d}]}`, n, after))
	return err
}

// heldAgain rebuilds at a copy what was held at a home that is lost: once, also beside the policy of the accounts, never after the
// branch has ended here, and so that confirm and cancel find it.
func (r *run) heldAgain() error {
	for _, end := range []string{confirm, cancel} {
		g, n := r.raises()
		if _, err := r.regionOK(http.MethodPost, "/lockstep/homes", fmt.Appendf(nil, `[{"slot":%d,"epoch":%d,"here":false}]`, n, before)); err != nil {
			return err
		}
		adopt := func() error {
			_, err := r.regionOK(http.MethodPost, fmt.Sprintf("/lockstep/adopt?slot=%d&epoch=%d&forced=true&at_risk=block", n, after), nil)
			return err
		}
		steps := []func() error{adopt, func() error { return r.holdsOnce(g) }}
		if end == confirm {
			slices.Reverse(steps) // as it should be; the other way the adoption was interrupted, and begins anew
		}
		for _, step := range steps {
			if err := step(); err != nil {
				return err
			}
		}
		if a := r.at(g, end, after); a.status != http.StatusOK {
			return fmt.Errorf("the %s of what was held again is answered %s", end, a)
		}
		if _, err := r.regionOK(http.MethodPost, "/lockstep/risk", fmt.Appendf(nil, `{"slots":[{"slot":%d,"epoch":%d}]}`, n, after)); err != nil {
			return err
		}
	}
	for _, end := range []string{branch.OpApply, cancel} {
		g, _ := r.raises()
		if a := r.at(g, end, before); a.status != http.StatusOK {
			return fmt.Errorf("the %s of a branch that was not tried here is answered %s", end, a)
		}
		was, err := r.moves(branch.OpHold, g, http.StatusConflict, http.StatusOK)
		if err != nil {
			return fmt.Errorf("after the %s: %w", end, err)
		}
		open, err := r.tried(g)
		if err != nil {
			return err
		}
		if was != "" || len(open) != 0 {
			return fmt.Errorf("a hold that comes after the %s moves %q, and %d tries are listed", end, was, len(open))
		}
	}
	return nil
}

// holdsOnce makes the call twice: the first is a try that has no end, the second nothing.
func (r *run) holdsOnce(gid string) error {
	if _, err := r.moves(branch.OpHold, gid, http.StatusOK); err != nil {
		return err
	}
	open, err := r.tried(gid)
	if err != nil {
		return err
	}
	if len(open) != 1 {
		return fmt.Errorf("of what was held again %d tries are listed, not one", len(open))
	}
	again, err := r.moves(branch.OpHold, gid, http.StatusOK)
	if again != "" {
		return fmt.Errorf("a repeat of the hold moves %s", again)
	}
	return err
}

// moves makes a call and says what it moves; "" where nothing, or where no balance is to be seen.
func (r *run) moves(op, gid string, want ...int) (string, error) {
	call := func() error {
		if a := r.at(gid, op, before); !slices.Contains(want, a.status) {
			return fmt.Errorf("a %s is answered %s, want %d", op, a, want)
		}
		return nil
	}
	if r.target.StateURL == "" {
		return "", call()
	}
	delta, err := r.moved(call)
	if err != nil || len(delta) == 0 {
		return "", err
	}
	return fmt.Sprint(delta), nil
}

// settle ends a branch by its name.
func (r *run) settle(gid, op string) (int, error) {
	q := url.Values{"gid": {gid}, "trans_type": {"tcc"}, "branch_id": {"01"}, "op": {op}}
	status, _, err := r.regionWith(http.MethodPost, "/lockstep/settle?"+q.Encode(), nil, map[string]string{
		barrier.HeaderSlot: strconv.Itoa(barrier.SlotOf(gid)), barrier.HeaderEpoch: strconv.Itoa(before)})
	return status, err
}

func (r *run) settled() error {
	for op, opposite := range map[string]string{confirm: cancel, cancel: confirm} {
		g := r.gid()
		if a := r.at(g, try, before); a.status != http.StatusOK {
			return fmt.Errorf("a try is answered %s", a)
		}
		for range 2 {
			if status, err := r.settle(g, op); err != nil || status != http.StatusOK {
				return fmt.Errorf("a %s by name is answered %d (%v)", op, status, err)
			}
		}
		if a := r.at(g, op, before); a.status != http.StatusOK {
			return fmt.Errorf("the ordinary %s after the one by name is answered %s, want a repeat's success", op, a)
		}
		if a := r.at(g, opposite, before); a.status == http.StatusOK {
			return fmt.Errorf("a %s after the %s by name is a success", opposite, op)
		}
		if status, err := r.settle(g, opposite); err != nil || status == http.StatusOK {
			return fmt.Errorf("a %s by name after the %s by name is answered %d (%v)", opposite, op, status, err)
		}
	}
	return r.settledNothing()
}

func (r *run) settledNothing() error {
	g := r.gid()
	if status, err := r.settle(g, confirm); err != nil || status == http.StatusOK {
		return fmt.Errorf("a confirm by name of what was never tried is answered %d (%v)", status, err)
	}
	if a := r.at(g, try, before); a.status != http.StatusOK {
		return fmt.Errorf("a try after a confirm by name that did nothing is answered %s: it has left something", a)
	}
	if status, err := r.settle(g, cancel); err != nil || status != http.StatusOK {
		return errors.Join(err, fmt.Errorf("a cancel by name is answered %d", status))
	}
	late := r.gid()
	if status, err := r.settle(late, cancel); err != nil || status != http.StatusOK {
		return errors.Join(err, fmt.Errorf("a cancel by name before its try is answered %d", status))
	}
	if a := r.at(late, try, before); a.status != http.StatusConflict {
		return fmt.Errorf("a try after a cancel by name is answered %s, want 409", a)
	}
	return nil
}
