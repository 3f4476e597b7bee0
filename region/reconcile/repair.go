package reconcile

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/lockstep-tx/lockstep/coordinator/mutant"
	"github.com/lockstep-tx/lockstep/region/arbiter"
	"github.com/lockstep-tx/lockstep/region/slot"
)

// order of repairs: records first, for decisions are read from them; then barriers, then books, then effects.
// Rows of the barrier come before effects: nothing may be done again meanwhile.
var order = []Class{EventMissing, TxMissing, Overwritten, StatusFlipped, RecordAltered, RowMissing, ConfirmTwice, AppliedTwice, UnitSwapped, WrongAccount, LegAltered,
	CancelTwice, AmountAltered, Compensating, EffectMissing, LostConfirm, LostCancel, SetBack, Unpublished, Stale}

// Plan sorts the findings that have a repair into the order in which they are repaired.
func Plan(all []Finding) []Finding {
	var out []Finding
	for _, c := range order {
		from := len(out)
		for _, f := range all {
			if f.Class == c && f.Status == Open && f.Repair != "" {
				out = append(out, f)
			}
		}
		switch c {
		case EventMissing, TxMissing, Overwritten, StatusFlipped, RecordAltered:
			inChain(out[from:])
		}
	}
	return out
}

// ErrRefused says that a participant or a region has refused a repair: it was not done, and would not be on the same facts.
var ErrRefused = errors.New("the repair is refused")

// refusals is how often a repair is refused on the same facts before it waits for a person. The first may be of what moved between
// the look and the repair.
const refusals = 2

// Apply repairs one finding and writes down what came of it. A repair can be repeated; one that is refused (ErrRefused) or failed
// leaves the finding open with the reason, and is an error. One that was found anew on the same facts and is refused again is
// quarantined: only a person can end it.
func (r *Reconciler) Apply(ctx context.Context, a *arbiter.Arbiter, f *Finding, at time.Time) error {
	outcome, err := r.repair(ctx, f)
	if err != nil {
		f.Outcome = "not repaired: " + err.Error()
		if errors.Is(err, ErrRefused) {
			if f.Refused++; f.Refused >= refusals {
				f.Status = Quarantined
			}
		}
		return errors.Join(fmt.Errorf("%s %s: %w", f.Class, f.ID, err), f.put(ctx, a))
	}
	f.Status, f.RepairedMillis, f.Outcome, f.Refused = Repaired, at.UnixMilli(), outcome, 0
	return f.put(ctx, a)
}

func (r *Reconciler) repair(ctx context.Context, f *Finding) (string, error) {
	if f.Repair == "" {
		return "", fmt.Errorf("the finding has no repair; a person must decide")
	}
	switch f.Class {
	case EventMissing, TxMissing, Overwritten, StatusFlipped, RecordAltered:
		raw, err := r.Ask.Post(ctx, f.Region, "/v1/drift/restore", f.Evidence)
		return strings.TrimSpace(string(raw)), err
	case AmountAltered, Compensating, CancelTwice, ConfirmTwice, AppliedTwice, LegAltered, WrongAccount, UnitSwapped:
		return r.atParticipant(ctx, f, "/lockstep/mend")
	case EffectMissing:
		if isMend(f.Evidence) {
			return r.atParticipant(ctx, f, "/lockstep/mend")
		}
		return r.atParticipant(ctx, f, "/lockstep/restore")
	case RowMissing:
		return r.atParticipant(ctx, f, "/lockstep/restore")
	case LostConfirm, LostCancel, SetBack:
		return r.resend(ctx, f)
	case Unpublished:
		raw, err := r.Ask.Post(ctx, f.Region, "/v1/drift/publish", f.Evidence)
		return strings.TrimSpace(string(raw)), err
	case Stale:
		var e resume
		if err := json.Unmarshal(f.Evidence, &e); err != nil {
			return "", fmt.Errorf("the finding's evidence: %w", err)
		}
		raw, err := r.Ask.Post(ctx, f.Region, fmt.Sprintf("/v1/region/unstop?origin=%s&slot=%d", escape(e.Origin), e.Slot), nil)
		return strings.TrimSpace(string(raw)), err
	case PhantomHold:
		if mutant.On(mutant.GuessesAmbiguous) {
			return r.end(ctx, f, Cancel)
		}
	case BothApplied, PhantomEntry, NeverTried, ChainsDiffer:
	}
	return "", fmt.Errorf("a finding of class %s has no repair; a person must decide", f.Class)
}

// isMend says whether a finding's evidence is about rows of the books.
func isMend(evidence json.RawMessage) bool {
	var m mend
	return json.Unmarshal(evidence, &m) == nil && m.Do != ""
}

// atParticipant has a participant repair what is its own, under the fence rows of the transaction's and the account's slots at
// the epochs that this reconciler knows: one that is behind is refused.
func (r *Reconciler) atParticipant(ctx context.Context, f *Finding, path string) (string, error) {
	endpoint := r.participants(f.Region)[f.Participant]
	if endpoint == "" {
		return "", fmt.Errorf("participant %s has no endpoint in %s", f.Participant, f.Region)
	}
	raw, _, err := r.call(ctx, nil, http.MethodPost, endpoint+path, f.Evidence, r.fences(f))
	return strings.TrimSpace(string(raw)), err
}

// fences are the headers that say for which slots the reconciler speaks, and at which epochs.
func (r *Reconciler) fences(f *Finding) map[string]string {
	headers := map[string]string{"Content-Type": "application/json"}
	fence := func(kind string, n int) {
		if e := r.Owners[n].Epoch; e > 0 {
			headers[kind+"Slot"], headers[kind+"Epoch"] = strconv.Itoa(n), strconv.FormatUint(uint64(e), 10)
		}
	}
	if f.Gid != "" {
		fence("Lockstep-", slot.Of(f.Gid))
	}
	if f.Account != "" {
		fence("Lockstep-Account-", slot.Of(f.Account))
	}
	return headers
}

// resend makes the call that was lost, at the participant of the region where it was: the barrier takes it once.
func (r *Reconciler) resend(ctx context.Context, f *Finding) (string, error) {
	var e resend
	if err := json.Unmarshal(f.Evidence, &e); err != nil {
		return "", fmt.Errorf("the finding's evidence: %w", err)
	}
	path, query, _ := strings.Cut(e.Path, "?")
	path, ok := strings.CutSuffix(path, "/confirm")
	if !ok {
		return "", fmt.Errorf("the branch's confirm %q does not end in /confirm: send it by hand", e.Path)
	}
	op, headers := "apply", map[string]string{"Lockstep-Account-Slot": strconv.Itoa(e.AccountSlot), "Lockstep-Account-Epoch": "1"}
	if !e.Commit {
		op = "cancel"
		home := r.Owners[e.AccountSlot]
		if home.Region != f.Region {
			return "", fmt.Errorf("the account's home is %s by now, and a copy holds nothing; run the reconciliation again", home.Region)
		}
		headers["Lockstep-Slot"], headers["Lockstep-Epoch"] = strconv.Itoa(f.Slot), strconv.FormatUint(uint64(r.Owners[f.Slot].Epoch), 10)
		headers["Lockstep-Account-Epoch"] = strconv.FormatUint(uint64(home.Epoch), 10)
	}
	q := []string{"gid=" + escape(f.Gid), "trans_type=tcc", "branch_id=" + escape(f.Branch), "op=" + op}
	if query != "" {
		q = append(q, query)
	}
	slices.Sort(q)
	url := r.participants(f.Region)[f.Participant] + path + "/" + op + "?" + strings.Join(q, "&")
	headers["Content-Type"] = "application/json"
	raw, _, err := r.call(ctx, nil, http.MethodPost, url, e.Payload, headers)
	return strings.TrimSpace(string(raw)), err
}
