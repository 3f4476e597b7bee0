package reconcile

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"reflect"
	"slices"
)

func escape(s string) string { return url.QueryEscape(s) }

// inspectAtOnce bounds one question to a participant.
const inspectAtOnce = 500

// asked is a branch that is looked up at a participant.
type asked struct {
	tx   *Finished
	b    *FinishedBranch
	rest string // of the branch's URL, behind the participant's base
}

// tier3 compares a region's decisions with what its participants have: barrier rows, books, and the books in themselves.
func (r *Reconciler) tier3(ctx context.Context, rep *Report, region string, from, to int64) {
	parts := r.participants(region)
	if len(parts) == 0 {
		return
	}
	seen, begin, horizon := map[string]bool{}, from, to
	rep.branches = nil
	for from < to {
		var page FinishedAnswer
		if err := r.get(ctx, rep, region, fmt.Sprintf("/v1/drift/finished?from=%d&to=%d", from, to), &page); err != nil {
			rep.skip("decisions of %s: %v", region, err)
			return
		}
		if !last(&page) {
			r.decisions(ctx, rep, region, parts, page.List, seen)
		}
		if page.Next == 0 {
			break
		}
		from = page.Next
	}
	r.setBack(rep, region)
	for name, endpoint := range parts {
		if err := r.check(ctx, rep, region, name, endpoint); err != nil {
			rep.skip("books of %s in %s: %v", name, region, err)
		}
		if err := r.holds(ctx, rep, region, name, endpoint, openHolds, horizon, nil); err != nil {
			rep.skip("open holds of %s in %s: %v", name, region, err)
		}
		if err := r.holds(ctx, rep, region, name, endpoint, begin, horizon, seen); err != nil {
			rep.skip("what %s has posted in %s: %v", name, region, err)
		}
	}
}

// decisions compares one page of a region's decisions with its participants; seen are those that were.
func (r *Reconciler) decisions(ctx context.Context, rep *Report, region string, parts map[string]string, list []Finished, seen map[string]bool) {
	by := map[string][]asked{}
	for i := range list {
		tx := &list[i]
		if seen[tx.Gid] {
			continue
		}
		seen[tx.Gid] = true
		if !tx.Applied && !arrived() {
			r.notApplied(rep, region, tx)
			continue
		}
		for k := range tx.Branches {
			if p, rest := r.Table.Split(tx.Branches[k].URL); p != nil && parts[p.Name] != "" {
				by[p.Name] = append(by[p.Name], asked{tx, &tx.Branches[k], rest})
			}
		}
	}
	for name, endpoint := range parts {
		for part := range slices.Chunk(by[name], inspectAtOnce) {
			if err := r.inspect(ctx, rep, region, name, endpoint, part); err != nil {
				rep.skip("participant %s in %s: %v", name, region, err)
				break
			}
		}
	}
}

// notApplied counts an effect that this region's copies lack; where it was decided long ago, its slot is an alarm (D19). The
// applier goes on by itself when what keeps it is gone.
func (r *Reconciler) notApplied(rep *Report, region string, tx *Finished) {
	if r.StaleAfter == 0 || rep.horizon-tx.At < r.StaleAfter.Milliseconds() {
		rep.Open++
		return
	}
	f := Finding{Class: Stale, Region: region, Gid: tx.Gid, Slot: tx.Slot,
		Text: fmt.Sprintf("%s has finished transaction %s as event %d at %d, and it is not applied to the accounts of %s", r.name(tx.Origin), tx.Gid, tx.Seq, tx.At, region)}
	f.proposes("", unapplied{tx.At})
	rep.Findings = append(rep.Findings, f)
}

func (r *Reconciler) inspect(ctx context.Context, rep *Report, region, name, endpoint string, part []asked) error {
	question := make([]map[string]string, len(part))
	for i, a := range part {
		question[i] = map[string]string{"gid": a.tx.Gid, "branch": a.b.ID}
	}
	body, err := json.Marshal(question)
	if err != nil {
		return err
	}
	raw, _, err := r.call(ctx, rep, http.MethodPost, endpoint+"/lockstep/inspect", body, nil)
	if err != nil {
		return err
	}
	var got []inspected
	if err := json.Unmarshal(raw, &got); err != nil || len(got) != len(part) {
		return fmt.Errorf("%d answers to %d questions (%v)", len(got), len(part), err)
	}
	effects, err := r.effects(ctx, rep, endpoint, part)
	if err != nil {
		return err
	}
	for i := range part {
		rep.Branches++
		f := r.judge(region, name, &part[i], &got[i], &effects[i])
		if f != nil && r.altered(ctx, rep, region, part[i].tx.Gid) {
			rep.Open++
			continue
		}
		if f != nil {
			rep.Findings = append(rep.Findings, *f)
		}
		rep.seen(name, &part[i], &got[i], f != nil)
	}
	return nil
}

// altered says whether it is the region's own record of a transaction that is wrong: it does not continue its chain, and
// another region has another one that does. Such a record is no authority over books (tier 2 names and restores it; the books
// are looked at against what it says then). A record that nobody contradicts stays what it is, sound or trimmed.
func (r *Reconciler) altered(ctx context.Context, rep *Report, region, gid string) bool {
	path := "/v1/drift/row?gid=" + escape(gid)
	var own RowAnswer
	if err := r.get(ctx, rep, region, path, &own); err != nil || own.Row == nil || own.Sound {
		return false
	}
	for _, other := range r.Regions {
		var theirs RowAnswer
		if other == region || r.get(ctx, rep, other, path, &theirs) != nil { // a region that does not answer contradicts nobody
			continue
		}
		if theirs.Row != nil && theirs.Sound && !reflect.DeepEqual(own.Row, theirs.Row) {
			return true
		}
	}
	return false
}

// effects asks what the payloads do to accounts; a participant that cannot be asked says nothing of any.
func (r *Reconciler) effects(ctx context.Context, rep *Report, endpoint string, part []asked) ([]effects, error) {
	question := make([]map[string]any, len(part))
	for i, a := range part {
		question[i] = map[string]any{"path": a.rest, "payload": a.b.Payload}
	}
	body, err := json.Marshal(question)
	if err != nil {
		return nil, err
	}
	raw, status, err := r.call(ctx, rep, http.MethodPost, endpoint+"/lockstep/effects", body, nil)
	if status == http.StatusNotFound || status == http.StatusBadRequest {
		return make([]effects, len(part)), nil
	}
	if err != nil {
		return nil, err
	}
	var got []effects
	if err := json.Unmarshal(raw, &got); err != nil || len(got) != len(part) {
		return nil, fmt.Errorf("%d answers to %d payloads (%v)", len(got), len(part), err)
	}
	return got, nil
}
