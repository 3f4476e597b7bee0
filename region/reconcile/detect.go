package reconcile

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/lockstep-tx/lockstep/coordinator/engine"
	"github.com/lockstep-tx/lockstep/region/journal"
	"github.com/lockstep-tx/lockstep/region/registry"
	"github.com/lockstep-tx/lockstep/region/slot"
)

// Asker asks a region's coordinators.
type Asker interface {
	Get(ctx context.Context, region, path string) ([]byte, error)
	Post(ctx context.Context, region, path string, body []byte) ([]byte, error)
}

// Reconciler compares and repairs. Safe for one use at a time.
type Reconciler struct {
	Ask Asker
	// HTTP calls participants; nil is http.DefaultClient.
	HTTP *http.Client
	// Regions by index, from 1 on: Regions[0] has index 1.
	Regions []string
	Table   *registry.Table
	Owners  *slot.Map
	// StaleAfter is how long an event may be on its way to another region before that is a finding; 0 for ever.
	StaleAfter time.Duration
}

// Report is what a run has looked at: one that has looked at nothing has found nothing.
type Report struct {
	Findings []Finding `json:"findings"`
	// Chains compared (tier 1), slots whose sums were compared (tier 2), and their transactions, branches and participants'
	// books (tier 3).
	Chains int `json:"chains"`
	// ChainsMoving were not compared: one journal has events of theirs that the other does not have yet.
	ChainsMoving int    `json:"chains_moving"`
	Slots        int    `json:"slots"`
	Transactions uint64 `json:"transactions"`
	Branches     int    `json:"branches"`
	Books        int    `json:"books"`
	// Published events were looked for in their region's topic.
	Published int `json:"published"`
	// Open are records and effects that are on their way, and were not judged.
	Open int `json:"open"`
	// Bytes exchanged between the reconciler and the regions.
	Bytes int `json:"bytes"`
	// Skipped says what could not be looked at, and why.
	Skipped []string `json:"skipped,omitempty"`
	// Unread says whose books cannot be read at all, and why: no look judges them.
	Unread []string `json:"unread,omitempty"`

	horizon  int64
	branches map[string][]branchSeen // of one region, by participant
}

// Detect looks for drift among transactions that finished in [from, to) (unix ms). What is not reachable is skipped and
// said so.
func (r *Reconciler) Detect(ctx context.Context, from, to int64) (*Report, error) {
	rep := &Report{horizon: to}
	heads := r.tier1(ctx, rep)
	if err := r.tier2(ctx, rep, heads, from, to); err != nil {
		return rep, err
	}
	r.ownEnds(ctx, rep, heads)
	r.outboxes(ctx, rep, from, to)
	for _, region := range r.Regions {
		r.unread(rep, region)
		r.tier3(ctx, rep, region, from, to)
	}
	seen := map[string]bool{}
	for i := range rep.Findings {
		rep.Findings[i].identify()
	}
	rep.Findings = slices.DeleteFunc(rep.Findings, func(f Finding) bool {
		was := seen[f.ID]
		seen[f.ID] = true
		return was
	})
	return rep, nil
}

func (r *Reconciler) get(ctx context.Context, rep *Report, region, path string, out any) error {
	raw, err := r.Ask.Get(ctx, region, path)
	rep.Bytes += len(raw)
	if err != nil {
		return err
	}
	if b, ok := out.(*[]byte); ok {
		*b = raw
		return nil
	}
	return json.Unmarshal(raw, out)
}

func (rep *Report) skip(format string, args ...any) {
	rep.Skipped = append(rep.Skipped, fmt.Sprintf(format, args...))
}

// chainKey names a chain.
type chainKey struct{ origin, slot int }

// tier1 compares the heads of chains: where two journals stand at the same number, they must have the same chain.
func (r *Reconciler) tier1(ctx context.Context, rep *Report) map[string]map[chainKey]HeadAnswer {
	heads := map[string]map[chainKey]HeadAnswer{}
	for _, region := range r.Regions {
		var raw []byte
		err := r.get(ctx, rep, region, "/v1/drift/heads", &raw)
		if err == nil && len(raw)%headBytes != 0 {
			err = fmt.Errorf("%d bytes are no heads", len(raw))
		}
		if err != nil {
			rep.skip("region %s: %v", region, err)
			continue
		}
		heads[region] = map[chainKey]HeadAnswer{}
		for _, h := range decodeHeads(raw) {
			heads[region][chainKey{h.Origin, h.Slot}] = h
		}
	}
	for region, have := range heads {
		for origin, own := range heads {
			if origin == region {
				continue
			}
			for key, theirs := range own {
				if r.name(key.origin) == origin {
					rep.chain(region, origin, key, have[key], theirs)
				}
			}
		}
	}
	return heads
}

// chain compares a region's head of a chain with its origin's.
func (rep *Report) chain(region, origin string, key chainKey, here, there HeadAnswer) {
	if here.Seq != there.Seq {
		rep.ChainsMoving++ // the heads of different events tell nothing
		return
	}
	rep.Chains++
	if here.Chain != there.Chain {
		rep.Findings = append(rep.Findings, Finding{Class: ChainsDiffer, Region: region, Slot: key.slot,
			Text: fmt.Sprintf("the chain of %s in slot %d has another event %d in %s than at its origin", origin, key.slot, here.Seq, region)})
	}
}

func (r *Reconciler) name(index int) string {
	if index < 1 || index > len(r.Regions) {
		return ""
	}
	return r.Regions[index-1]
}

// tier2 compares the journals: sums by slot, then the slot's fingerprints, then the record.
func (r *Reconciler) tier2(ctx context.Context, rep *Report, heads map[string]map[chainKey]HeadAnswer, from, to int64) error {
	sums := map[string][]byte{}
	var have []string
	for _, region := range r.Regions {
		var raw []byte
		if err := r.get(ctx, rep, region, fmt.Sprintf("/v1/drift/sums?from=%d&to=%d", from, to), &raw); err != nil || len(raw) != slot.Count*journal.SumBytes {
			rep.skip("journal of %s: %v", region, err)
			continue
		}
		sums[region], have = raw, append(have, region)
	}
	if len(have) < 2 {
		return nil
	}
	first := have[0]
	for n := range slot.Count {
		rep.Slots++
		mine := sums[first][n*journal.SumBytes : (n+1)*journal.SumBytes]
		rep.Transactions += journal.SumOf(mine).Count
		for _, region := range have[1:] {
			if !bytes.Equal(mine, sums[region][n*journal.SumBytes:(n+1)*journal.SumBytes]) {
				if err := r.drill(ctx, rep, heads, first, region, n, from, to); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// drill finds the records of a slot that differ between two regions.
func (r *Reconciler) drill(ctx context.Context, rep *Report, heads map[string]map[chainKey]HeadAnswer, a, b string, n int, from, to int64) error {
	prints := map[string]map[string]string{}
	for _, region := range []string{a, b} {
		m := map[string]string{}
		if err := r.get(ctx, rep, region, fmt.Sprintf("/v1/drift/prints?slot=%d&from=%d&to=%d", n, from, to), &m); err != nil {
			return fmt.Errorf("fingerprints of slot %d in %s: %w", n, region, err)
		}
		prints[region] = m
	}
	var gids []string
	for gid, p := range prints[a] {
		if prints[b][gid] != p {
			gids = append(gids, gid)
		}
	}
	for gid := range prints[b] {
		if _, ok := prints[a][gid]; !ok {
			gids = append(gids, gid)
		}
	}
	slices.Sort(gids)
	for _, gid := range gids {
		f, err := r.differ(ctx, rep, heads, a, b, gid)
		if err != nil {
			return err
		}
		if f != nil {
			rep.Findings = append(rep.Findings, *f)
		}
	}
	return nil
}

// differ judges one record that two regions have differently.
func (r *Reconciler) differ(ctx context.Context, rep *Report, heads map[string]map[chainKey]HeadAnswer, a, b, gid string) (*Finding, error) {
	var rows [2]RowAnswer
	for i, region := range []string{a, b} {
		if err := r.get(ctx, rep, region, "/v1/drift/row?gid="+escape(gid), &rows[i]); err != nil {
			return nil, fmt.Errorf("record of %q in %s: %w", gid, region, err)
		}
	}
	for i, region := range []string{a, b} {
		other := rows[1-i]
		missing := rows[i].Row == nil || rows[i].Row.Finish.Seq == 0
		if !missing || other.Row == nil || other.Row.Finish.Seq == 0 {
			continue
		}
		origin := slot.Epoch(other.Row.FinishEpoch).Region()
		h := heads[region][chainKey{origin, other.Row.Slot}]
		switch {
		case r.name(origin) == region:
			// No region lags behind itself: what another has it had before. It is asked again, for it may have been asked first.
			var again RowAnswer
			if err := r.get(ctx, rep, region, "/v1/drift/row?gid="+escape(gid), &again); err != nil {
				return nil, fmt.Errorf("record of %q in %s: %w", gid, region, err)
			}
			if again.Row != nil && again.Row.Finish.Seq > 0 {
				rep.Open++
				return nil, nil
			}
		case h.Seq < other.Row.Finish.Seq && !arrived():
			return r.onItsWay(rep, region, origin, other.Row, h.Seq), nil
		}
		f := &Finding{Class: EventMissing, Region: region, Gid: gid, Slot: other.Row.Slot,
			Text: fmt.Sprintf("%s has passed event %d of %s in slot %d and has no record of it", region, other.Row.Finish.Seq, r.name(origin), other.Row.Slot)}
		if r.name(origin) == region {
			f.Class, f.Text = TxMissing, fmt.Sprintf("%s has finished transaction %s as its event %d of slot %d, which %s has, and has no record of it", region, gid, other.Row.Finish.Seq, other.Row.Slot, []string{a, b}[1-i])
		}
		return f, f.restoredFrom(other, []string{a, b}[1-i])
	}
	if rows[0].Row == nil || rows[1].Row == nil {
		return nil, nil // trimmed meanwhile
	}
	if reflect.DeepEqual(rows[0].Row, rows[1].Row) {
		rep.Open++ // it has arrived since the fingerprints were taken
		return nil, nil
	}
	f := &Finding{Class: differing(rows[0].Row, rows[1].Row), Gid: gid, Slot: rows[0].Row.Slot}
	switch {
	case rows[0].Sound && !rows[1].Sound:
		f.Region, f.Text = b, fmt.Sprintf("%s's record does not continue its chain, %s's does", b, a)
		return f, f.restoredFrom(rows[0], a)
	case rows[1].Sound && !rows[0].Sound:
		f.Region, f.Text = a, fmt.Sprintf("%s's record does not continue its chain, %s's does", a, b)
		return f, f.restoredFrom(rows[1], b)
	}
	f.Region, f.Text = a+" or "+b, fmt.Sprintf("the records in %s and %s differ, and the chain proves neither", a, b)
	return f, nil
}

// onItsWay counts an event that a region does not have yet; one that was finished long ago is a finding of its slot (D19).
func (r *Reconciler) onItsWay(rep *Report, region string, origin int, row *engine.Row, has uint64) *Finding {
	if r.StaleAfter == 0 || rep.horizon-row.FinishedAt < r.StaleAfter.Milliseconds() {
		rep.Open++
		return nil
	}
	f := &Finding{Class: Stale, Region: region, Slot: row.Slot,
		Text: fmt.Sprintf("%s has finished event %d of slot %d at %d, and %s still stands at event %d", r.name(origin), row.Finish.Seq, row.Slot, row.FinishedAt, region, has)}
	f.proposes("let the slot go on, if it is stopped", resume{Origin: r.name(origin), Slot: row.Slot, Gid: string(row.Gid)})
	return f
}

// resume is the evidence of a slot that does not go on.
type resume struct {
	Origin string `json:"origin"`
	Slot   int    `json:"slot"`
	Gid    string `json:"gid"` // of the transaction that has not come
}

// differing names how two records of a transaction differ.
func differing(a, b *engine.Row) Class {
	switch {
	case a.Phase != b.Phase:
		return StatusFlipped
	case a.Decision.Seq != b.Decision.Seq, a.Finish.Seq != b.Finish.Seq, a.DecisionEpoch != b.DecisionEpoch, a.FinishEpoch != b.FinishEpoch:
		return Overwritten
	}
	return RecordAltered
}

// restoredFrom makes the sound record the finding's repair; one that is not sound is no authority.
func (f *Finding) restoredFrom(row RowAnswer, region string) error {
	if !row.Sound {
		return nil
	}
	raw, err := json.Marshal(row.Row)
	f.Evidence, f.Repair = raw, "restore the record from "+region+", whose chain proves it"
	return err
}

// participants of a region that can be asked, with their endpoints there.
func (r *Reconciler) participants(region string) map[string]string {
	out := map[string]string{}
	for _, p := range r.Table.All() {
		if e := p.Endpoints[region]; p.Can != nil && p.Can.Apply && strings.HasPrefix(e, "http") {
			out[p.Name] = strings.TrimSuffix(e, "/")
		}
	}
	return out
}

// unread says which of a region's participants cannot be asked.
func (r *Reconciler) unread(rep *Report, region string) {
	for _, p := range r.Table.All() {
		why := ""
		switch e := p.Endpoints[region]; {
		case e == "":
		case p.Can == nil:
			why = "it was never probed (lockstep participant probe)"
		case !p.Can.Apply:
			why = "it does not speak the reconciler's questions (it has no apply)"
		case !strings.HasPrefix(e, "http"):
			why = "its endpoint is gRPC, and the reconciler asks over HTTP"
		}
		if why != "" {
			rep.notRead("participant %s in %s: %s", p.Name, region, why)
		}
	}
}

func (rep *Report) notRead(format string, args ...any) {
	if s := fmt.Sprintf(format, args...); !slices.Contains(rep.Unread, s) {
		rep.Unread = append(rep.Unread, s)
	}
}

func (r *Reconciler) call(ctx context.Context, rep *Report, method, url string, body []byte, headers map[string]string) ([]byte, int, error) {
	req, err := http.NewRequestWithContext(ctx, method, url, bytes.NewReader(body))
	if err != nil {
		return nil, 0, err
	}
	for k, v := range headers {
		req.Header.Set(k, v)
	}
	cli := r.HTTP
	if cli == nil {
		cli = http.DefaultClient
	}
	resp, err := cli.Do(req)
	if err != nil {
		return nil, 0, err
	}
	defer resp.Body.Close()
	raw, err := io.ReadAll(io.LimitReader(resp.Body, 64<<20))
	if rep != nil {
		rep.Bytes += len(raw) + len(body)
	}
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s: %s", url, resp.Status, strings.ToValidUTF8(string(raw[:min(len(raw), 300)]), "?"))
		if resp.StatusCode == http.StatusConflict || resp.StatusCode == http.StatusUnprocessableEntity {
			err = fmt.Errorf("%w: %w", ErrRefused, err)
		}
	}
	return raw, resp.StatusCode, err
}
