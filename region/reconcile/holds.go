package reconcile

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"

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
	// Posted: it is not open any more, and Since is when it was posted.
	Posted bool `json:"posted,omitempty"`
}

// openHolds stands for no time from which on holds were posted.
const openHolds = -1

// wasPosted says whether a finding is of a hold that was posted.
func (f *Finding) wasPosted() bool {
	var h openHold
	return json.Unmarshal(f.Evidence, &h) == nil && h.Posted
}

// holds looks for holds of transactions that nobody knows, made before a time: open ones, or, where postedFrom is a time, those
// posted from then on; seen are gids that need not be asked for. A coordinator that has lost the transaction and a hold that nobody asked for look alike from here: neither
// is ever ended by a guess. Where one region does not answer nothing is said, for it may be its transaction.
func (r *Reconciler) holds(ctx context.Context, rep *Report, region, name, endpoint string, postedFrom, before int64, seen map[string]bool) error {
	which := fmt.Sprintf("before=%d", before)
	if postedFrom != openHolds {
		which += fmt.Sprintf("&posted_from=%d", postedFrom)
	}
	after := ""
	for {
		raw, status, err := r.call(ctx, rep, http.MethodGet, fmt.Sprintf("%s/lockstep/holds?%s&after=%s", endpoint, which, escape(after)), nil, nil)
		if status == http.StatusBadRequest || status == http.StatusNotFound {
			rep.notRead("books of %s in %s: its holds cannot be asked for", name, region)
			return nil
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
		after = page[len(page)-1].ID
		for i := range page {
			page[i].Posted = postedFrom != openHolds
		}
		page = slices.DeleteFunc(page, func(h openHold) bool { return seen[h.Gid] })
		if err := r.unknownHolds(ctx, rep, region, name, postedFrom, page); err != nil {
			return err
		}
	}
}

func (r *Reconciler) unknownHolds(ctx context.Context, rep *Report, region, name string, postedFrom int64, page []openHold) error {
	var gids []string
	if len(page) == 0 {
		return nil
	}
	for i := range page {
		if page[i].Gid != "" {
			gids = append(gids, page[i].Gid)
		}
	}
	body, err := json.Marshal(gids)
	if err != nil {
		return err
	}
	path := "/v1/drift/known"
	if postedFrom != openHolds { // what has ended is known for a time only
		path += fmt.Sprintf("?since=%d", postedFrom)
	}
	known := map[string]string{}
	for _, asked := range r.Regions {
		raw, err := r.Ask.Post(ctx, asked, path, body)
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
		how := "open since"
		if h.Posted {
			how = "posted at"
		}
		f.Text = fmt.Sprintf("hold %s %s, %s %d, is of a transaction that no region has ever heard of; %s", h.ID, h.posting, how, h.Since, f.Text)
		if f.Evidence, err = json.Marshal(h); err != nil {
			return err
		}
		f.guess()
		rep.Findings = append(rep.Findings, f)
	}
	return nil
}
