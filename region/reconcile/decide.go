package reconcile

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/lockstep-tx/lockstep/region/arbiter"
)

// What a person decides of a finding that has no authority.
const (
	// Accept: it stays as it is.
	Accept = "accept"
	// Confirm and Cancel: the branch is ended so at its participant.
	Confirm = "confirm"
	Cancel  = "cancel"
)

// Decision is what a person decided of a quarantined finding.
type Decision struct {
	What   string `json:"what"` // accept, confirm or cancel
	Reason string `json:"reason"`
	Who    string `json:"who"`
	At     int64  `json:"at"` // unix ms
}

// Options are what a person may decide of a finding; none where it is not quarantined.
func (f *Finding) Options() []string {
	if f.Status != Quarantined {
		return nil
	}
	switch {
	case f.wasPosted():
		return []string{Accept} // what it moved is evened out by a payment
	case f.Class == NeverTried, f.Class == SetBack && f.Branch != "":
		return []string{Accept, Confirm}
	case f.Class == PhantomHold:
		return []string{Accept, Cancel} // no barrier knows its try: a confirm would post what nobody has checked
	case f.Class == TxMissing && f.Participant != "":
		return []string{Accept, Confirm, Cancel}
	}
	return []string{Accept}
}

// Decide does what a person has decided of a quarantined finding, and writes it down. It may be repeated after an error.
func (r *Reconciler) Decide(ctx context.Context, a *arbiter.Arbiter, f *Finding, d Decision) error {
	ok := false
	for _, o := range f.Options() {
		ok = ok || o == d.What
	}
	if !ok {
		return fmt.Errorf("finding %s of class %s is %s: of %q nothing can be decided; possible: %v", f.ID, f.Class, f.Status, d.What, f.Options())
	}
	outcome, status := "it stays as it is", Accepted
	var err error
	switch {
	case d.What == Accept:
	case f.Class == NeverTried, f.Class == SetBack:
		status = Repaired
		outcome, err = r.confirmUntried(ctx, f)
	default:
		status = Repaired
		outcome, err = r.end(ctx, f, d.What)
	}
	f.Decision = &d
	if err != nil {
		f.Outcome = "not done: " + err.Error()
		return errors.Join(err, f.put(ctx, a))
	}
	f.Status, f.Outcome = status, outcome
	if status == Repaired {
		f.RepairedMillis = time.Now().UnixMilli()
	}
	return f.put(ctx, a)
}

// confirmUntried posts the branch of a commit that was never tried, from its record.
func (r *Reconciler) confirmUntried(ctx context.Context, f *Finding) (string, error) {
	var e struct {
		Resend resend `json:"resend"`
	}
	if err := json.Unmarshal(f.Evidence, &e); err != nil {
		return "", fmt.Errorf("the finding's evidence: %w", err)
	}
	raw, err := json.Marshal(e.Resend)
	if err != nil {
		return "", err
	}
	again := *f
	again.Evidence = raw
	return r.resend(ctx, &again)
}

// end ends a hold by its name: first at the barrier, so that no late call can end it otherwise, then in the books where the
// barrier had no try and ran nothing.
func (r *Reconciler) end(ctx context.Context, f *Finding, op string) (string, error) {
	endpoint := r.participants(f.Region)[f.Participant]
	if endpoint == "" {
		return "", fmt.Errorf("participant %s has no endpoint in %s", f.Participant, f.Region)
	}
	q := strings.Join([]string{"gid=" + escape(f.Gid), "trans_type=tcc", "branch_id=" + escape(f.Branch), "op=" + op}, "&")
	if _, _, err := r.call(ctx, nil, http.MethodPost, endpoint+"/lockstep/settle?"+q, nil, r.fences(f)); err != nil {
		return "", err
	}
	evidence, err := json.Marshal(restore{Gid: f.Gid, Branch: f.Branch, Op: op, What: "effect"})
	if err != nil {
		return "", err
	}
	again := *f
	again.Evidence = evidence
	return r.atParticipant(ctx, &again, "/lockstep/restore")
}
