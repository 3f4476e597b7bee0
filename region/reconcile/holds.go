package reconcile

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"

	"github.com/lockstep-tx/lockstep/region/slot"
)

// openHold is a hold that nobody has ended, as a participant tells it.
type openHold struct {
	ID     string `json:"id"`
	Gid    string `json:"gid"`
	Branch string `json:"branch"`
	posting
	Since int64 `json:"since"`
	Tried bool  `json:"tried"`
}

// holds looks for holds of transactions that nobody knows, made before a time. A coordinator that has lost the transaction
// and a hold that nobody asked for look alike from here: neither is ever cancelled by a guess. Where one region does not
// answer nothing is said, for it may be its transaction.
func (r *Reconciler) holds(ctx context.Context, rep *Report, region, name, endpoint string, before int64) error {
	after := ""
	for {
		raw, status, err := r.call(ctx, rep, http.MethodGet, fmt.Sprintf("%s/lockstep/holds?before=%d&after=%s", endpoint, before, escape(after)), nil, nil)
		if status == http.StatusBadRequest || status == http.StatusNotFound {
			return nil // it cannot be asked
		}
		if err != nil {
			return err
		}
		var page []openHold
		if err := json.Unmarshal(raw, &page); err != nil {
			return err
		}
		if len(page) == 0 {
			return nil
		}
		if err := r.unknownHolds(ctx, rep, region, name, page); err != nil {
			return err
		}
		after = page[len(page)-1].ID
	}
}

func (r *Reconciler) unknownHolds(ctx context.Context, rep *Report, region, name string, page []openHold) error {
	var gids []string
	for i := range page {
		if page[i].Gid != "" {
			gids = append(gids, page[i].Gid)
		}
	}
	body, err := json.Marshal(gids)
	if err != nil {
		return err
	}
	known := map[string]string{}
	for _, asked := range r.Regions {
		raw, err := r.Ask.Post(ctx, asked, "/v1/drift/known", body)
		rep.Bytes += len(raw) + len(body)
		if err != nil {
			return fmt.Errorf("which transactions %s knows: %w", asked, err)
		}
		some := map[string]string{}
		if err := json.Unmarshal(raw, &some); err != nil {
			return err
		}
		for gid, what := range some {
			known[gid] = what
		}
	}
	for i := range page {
		h := &page[i]
		if known[h.Gid] != "" {
			continue
		}
		f := Finding{Class: PhantomHold, Region: region, Gid: h.Gid, Branch: h.Branch, Participant: name, Account: h.Account, Slot: slot.Of(h.Gid)}
		if f.Text = "no barrier row of its try: nobody has asked for it in the ordinary way"; h.Tried {
			f.Class, f.Text = TxMissing, "and the barrier has its try: either the coordinator has lost the transaction, or both were forged"
		}
		f.Text = fmt.Sprintf("hold %s %s, open since %d, is of a transaction that no region has ever heard of; %s", h.ID, h.posting, h.Since, f.Text)
		if f.Evidence, err = json.Marshal(h); err != nil {
			return err
		}
		rep.Findings = append(rep.Findings, f)
	}
	return nil
}
