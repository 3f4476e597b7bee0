package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"golang.org/x/sync/errgroup"

	"github.com/lockstep-tx/lockstep/coordinator/api/admin"
	"github.com/lockstep-tx/lockstep/coordinator/server"
	"github.com/lockstep-tx/lockstep/region/failover/conduct"
	"github.com/lockstep-tx/lockstep/region/place"
	"github.com/lockstep-tx/lockstep/region/registry"
	"github.com/lockstep-tx/lockstep/region/replica"
)

type regionDivergenceCmd struct {
	List   divergenceListCmd   `cmd:"" default:"withargs" help:"Show what a lost region says otherwise, per transaction, with a proposed settlement."`
	Settle divergenceSettleCmd `cmd:"" help:"Note that a transaction that two regions ended differently was settled outside of it."`
}

type divergenceListCmd struct {
	contextFile
	Output string `help:"table or json." enum:"table,json" default:"table" short:"o"`
}

// divergent is a transaction that a lost region has otherwise than the owner of its slot.
type divergent struct {
	Gid    string `json:"gid"`
	Slot   int    `json:"slot"`
	Origin string `json:"origin"`
	// Theirs is what the lost region decided, Ours how it stands at the owner: commit, abort, in doubt, unknown, open.
	Theirs string `json:"theirs"`
	Ours   string `json:"ours"`
	Owner  string `json:"owner"`
	// Legs are what a confirm does; Unsaid the branches whose participant does not say.
	Legs   []leg    `json:"legs,omitempty"`
	Unsaid []string `json:"unsaid,omitempty"`
	// Waits is why what both regions say alike is not worked off yet.
	Waits string `json:"waits,omitempty"`
	// Book is the proposed settlement, entry by entry; Next the command that follows.
	Book []string `json:"book,omitempty"`
	Next string   `json:"next,omitempty"`

	branches []replica.DivergedBranch
	ids      map[string][]int64 // of the events, by the region that lists them
}

// leg is a branch's effect on an account.
type leg struct {
	Branch string `json:"branch"`
	place.Effect
}

// divergences are what the regions say of each other's transactions, as -o json prints it.
type divergences struct {
	Transactions []*divergent `json:"transactions"`
	// Unheard says what is missing: regions that did not answer, and what is more than one answer holds.
	Unheard []string `json:"unheard,omitempty"`
}

// Run lists.
func (c *divergenceListCmd) Run(e *env) error { return c.with(e, c.run) }

func (c *divergenceListCmd) run(e *env, o *opened) error {
	ctx, cancel := c.within(e.ctx)
	defer cancel()
	all, err := c.divergences(ctx, e, o)
	if err != nil {
		return err
	}
	if c.Output == "json" {
		return json.NewEncoder(e.out).Encode(all)
	}
	for _, d := range all.Transactions {
		fmt.Fprintf(e.out, "%s  slot %d: %s says %s, %s says %s\n", shown(shellQuote(d.Gid)), d.Slot, d.Origin, d.Theirs, d.Owner, d.Ours)
		for _, line := range d.Book {
			fmt.Fprintf(e.out, "    %s\n", shown(line))
		}
		if len(d.Unsaid) > 0 {
			fmt.Fprintf(e.out, "    what branches %s do, their participants do not say: read their books\n", shown(strings.Join(d.Unsaid, ", ")))
		}
	}
	for _, text := range all.Unheard {
		fmt.Fprintln(e.out, shown(text))
	}
	if len(all.Transactions) == 0 {
		fmt.Fprintln(e.out, "no region that answers has a transaction otherwise than its owner")
		return nil
	}
	first := max(0, slices.IndexFunc(all.Transactions, func(d *divergent) bool { return d.Ours != d.Theirs })) // else nothing but waiting is left
	next(e.out, all.Transactions[first].Next)
	return nil
}

// divergenceMost bounds the events that a region is asked for; what was settled makes room for more.
const divergenceMost = 1000

// divergences asks all regions, and for each transaction its owner; what agrees is left out.
func (c *contextFile) divergences(ctx context.Context, e *env, o *opened) (*divergences, error) {
	a := c.asker(e, o)
	owners, err := o.arbiter.Owners(ctx)
	if err != nil {
		return nil, err
	}
	table, err := registry.Load(ctx, o.arbiter)
	if err != nil {
		return nil, err
	}
	by, unheard := a.events(ctx)
	waits, more := a.waiting(ctx)
	all := &divergences{Transactions: []*divergent{}, Unheard: append(unheard, more...)}
	// The owner may be far away: side by side.
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(conduct.AsksAtOnce)
	for gid, d := range by {
		d.Owner, d.Waits = owners[d.Slot].Region, waits[gid]
		g.Go(func() (err error) {
			if d.Ours, err = a.standing(gctx, d.Owner, gid); err == nil && !d.agrees() {
				a.effects(gctx, table, d)
			}
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	for _, gid := range slices.Sorted(maps.Keys(by)) {
		if d := by[gid]; !d.agrees() {
			d.propose(hostOf(firstAdmin(o, d.Origin)), c.here())
			all.Transactions = append(all.Transactions, d)
		}
	}
	return all, nil
}

// agrees says that nothing is to be done: the transaction ended alike, or aborted where the other never knew of it. The record
// of the event stays.
func (d *divergent) agrees() bool {
	return d.Waits == "" && (d.Theirs == d.Ours || d.Theirs == "abort" && d.Ours == "unknown")
}

// events asks all regions for their divergence records, by gid.
func (a *asker) events(ctx context.Context) (by map[string]*divergent, unheard []string) {
	by = map[string]*divergent{}
	answers := a.askAll(ctx, "", fmt.Sprintf("/v1/region/divergence?limit=%d", divergenceMost), nil, nil)
	for _, region := range slices.Sorted(maps.Keys(answers)) {
		var list []replica.DivergenceInfo
		ans := answers[region]
		if ans.err == nil {
			ans.err = json.Unmarshal(ans.body, &list)
		}
		switch {
		case ans.err != nil:
			unheard = append(unheard, fmt.Sprintf("%s did not say what it has in its divergence record: %v", region, ans.err))
		case len(list) == divergenceMost:
			unheard = append(unheard, fmt.Sprintf("%s has more than the %d events that are shown: settle these, then ask again", region, divergenceMost))
		}
		for i := range list {
			gather(by, region, &list[i])
		}
	}
	return by, unheard
}

// gather adds an event to what is known of its transaction.
func gather(by map[string]*divergent, region string, info *replica.DivergenceInfo) {
	if info.Gid == "" || info.Decided == "" {
		return // no decision, so nobody was told of one
	}
	d := by[info.Gid]
	if d == nil {
		d = &divergent{Gid: info.Gid, Slot: info.Slot, Origin: info.Origin, ids: map[string][]int64{}}
		by[info.Gid] = d
	}
	d.Theirs = info.Decided
	d.ids[region] = append(d.ids[region], info.ID)
	if len(info.Branches) > 0 {
		d.branches = info.Branches
	}
}

// waiting asks all regions what they had when they were lost and have not worked off, and why, by gid.
func (a *asker) waiting(ctx context.Context) (why map[string]string, unheard []string) {
	why = map[string]string{}
	answers := a.askAll(ctx, "", "/v1/region/status", nil, nil)
	for _, region := range slices.Sorted(maps.Keys(answers)) {
		var st server.RegionStatus
		ans := answers[region]
		if ans.err == nil {
			ans.err = json.Unmarshal(ans.body, &st)
		}
		if ans.err != nil {
			unheard = append(unheard, fmt.Sprintf("%s did not say what it has not worked off: %v", region, ans.err))
		}
		for _, d := range st.Diverged {
			why[d.Gid] = d.Why
		}
	}
	return why, unheard
}

// standing asks a region how a transaction stands there.
func (a *asker) standing(ctx context.Context, region, gid string) (string, error) {
	var tx admin.Transaction
	err := a.ask(ctx, region, http.MethodGet, "/v1/transaction?"+url.Values{"gid": {gid}}.Encode(), &tx)
	var no *statusError
	switch {
	case errors.As(err, &no) && no.status == http.StatusNotFound:
		return "unknown", nil
	case err != nil:
		return "", fmt.Errorf("%s cannot be asked how %s stands: %w", region, shown(shellQuote(gid)), err)
	case tx.Status == "in-doubt":
		return "in doubt", nil
	case tx.Decided() == "":
		return "open", nil
	}
	return tx.Decided(), nil
}

// effects asks a participant of each branch what its confirm does; any region's will do.
func (a *asker) effects(ctx context.Context, table *registry.Table, d *divergent) {
	for _, b := range d.branches {
		part, rest := table.Split(b.Confirm)
		said := false
		if part != nil {
			for _, region := range slices.Sorted(maps.Keys(part.Endpoints)) {
				legs, err := place.Effects(ctx, a.client, part.Endpoints[region], rest, b.Payload)
				if err != nil {
					continue // another region's says the same
				}
				for _, l := range legs {
					d.Legs = append(d.Legs, leg{b.ID, l})
				}
				said = true
				break
			}
		}
		if !said {
			d.Unsaid = append(d.Unsaid, b.ID)
		}
	}
}

// suspense is how the house's account is called in proposals.
const suspense = "suspense"

// propose fills in the settlement. What nobody has ended yet is taken over as the lost region told its client; what stands both
// ways changes no more, and is evened out by entries against suspense, which sum to nothing where all legs are known.
func (d *divergent) propose(adminAddr, here string) {
	settle := fmt.Sprintf("lockstep region divergence settle %s --text 'settled as payment P' %s", shellQuote(d.Gid), here)
	switch {
	case d.Ours == d.Theirs:
		d.Book = append([]string{"both say the same, but it waits: " + d.Waits}, d.legLines()...)
		d.Book = append(d.Book, "an account that lacks the money is paid it from "+suspense+"; what waits is tried again by itself")
		d.Next = "lockstep region divergence " + here
	case d.Ours == "commit":
		d.Book = d.entries(true, "its client was told abort: take the payment back")
		d.Next = settle
	case d.Ours == "abort" && d.Theirs == "commit":
		d.Book = d.entries(false, "its client was told commit: make the payment again")
		d.Next = settle
	case d.Theirs == "commit":
		d.Book = []string{"its client was told commit: take it over, and its effects are posted from its record"}
		d.Book = append(d.Book, d.legLines()...)
		d.Book = append(d.Book, "an account that lacks the money is paid it from "+suspense+" first")
		d.Next = fmt.Sprintf("lockstep tx resolve %s --commit --reason REASON --admin-addr %s", shellQuote(d.Gid), adminAddr)
	default:
		d.Book = []string{"it aborted there: abort it"}
		d.Next = fmt.Sprintf("lockstep tx resolve %s --abort --reason REASON --admin-addr %s", shellQuote(d.Gid), adminAddr)
	}
}

func (d *divergent) legLines() (out []string) {
	for _, l := range d.Legs {
		sign := "+"
		if l.Debit {
			sign = "-"
		}
		out = append(out, fmt.Sprintf("%s %s%d %s", l.Account, sign, l.Amount, l.Currency))
	}
	return out
}

// entries lists what evens the legs out against suspense; back turns them round.
func (d *divergent) entries(back bool, why string) []string {
	out := []string{why}
	for _, l := range d.Legs {
		from, to := suspense, l.Account
		if l.Debit != back {
			from, to = to, from
		}
		out = append(out, fmt.Sprintf("%s -> %s %d %s", from, to, l.Amount, l.Currency))
	}
	return append(out, "then note it, with the payment's name")
}

type divergenceSettleCmd struct {
	contextFile
	dryRun
	Gid  string `arg:"" help:"The transaction."`
	Text string `help:"How it was settled, for the record: the payment that did it." required:"" placeholder:"TEXT"`
}

// Run notes the settlement in every region that has an event of the transaction.
func (c *divergenceSettleCmd) Run(e *env) error { return c.with(e, c.run) }

func (c *divergenceSettleCmd) run(e *env, o *opened) error {
	ctx, cancel := c.within(e.ctx)
	defer cancel()
	again := "lockstep region divergence " + c.here()
	all, err := c.divergences(ctx, e, o)
	if err != nil {
		return &failure{err, again}
	}
	at := slices.IndexFunc(all.Transactions, func(d *divergent) bool { return d.Gid == c.Gid })
	if at < 0 {
		err := fmt.Errorf("gid: %s is not among what diverges", shellQuote(c.Gid))
		if len(all.Unheard) > 0 {
			err = fmt.Errorf("%w; %s", err, strings.Join(all.Unheard, "; "))
		}
		return &failure{err, again}
	}
	d := all.Transactions[at]
	if d.Ours == d.Theirs {
		return &failure{fmt.Errorf("gid: %s is %s in both regions and is posted by itself: %s; nothing was noted", shellQuote(c.Gid), d.Ours, d.Waits), again}
	}
	if d.Ours != "commit" && d.Ours != "abort" {
		return &failure{fmt.Errorf("gid: %s is %s in %s: it can still be ended as %s told its client; nothing was noted", shellQuote(c.Gid), d.Ours, d.Owner, d.Origin), d.Next}
	}
	if c.DryRun {
		fmt.Fprintf(e.out, "%s would be noted as settled in %s; nothing was written\n", shellQuote(c.Gid), strings.Join(slices.Sorted(maps.Keys(d.ids)), ", "))
		next(e.out, "lockstep region divergence settle "+shellQuote(c.Gid)+" "+flagOf("text", c.Text)+whoFlag(c.Who)+" "+c.here())
		return nil
	}
	a := c.asker(e, o)
	err = o.audited(ctx, c.Who, "divergence settled", c.Gid+": "+c.Text, func() error {
		for _, region := range slices.Sorted(maps.Keys(d.ids)) {
			for _, id := range d.ids[region] {
				body, err := json.Marshal(replica.SettleRequest{ID: id, Text: c.Text})
				if err == nil {
					_, err = a.askAny(ctx, region, "/v1/region/divergence/settle", body)
				}
				if err != nil {
					return fmt.Errorf("region %s: %w", region, err)
				}
			}
		}
		return nil
	})
	if err != nil {
		return &failure{err, again}
	}
	fmt.Fprintf(e.out, "%s is noted as settled in %s\n", shellQuote(c.Gid), strings.Join(slices.Sorted(maps.Keys(d.ids)), ", "))
	next(e.out, "lockstep region status "+c.here())
	return nil
}
