package main

import (
	"fmt"
	"net/url"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/lockstep-tx/lockstep/coordinator/api/admin"
	"github.com/lockstep-tx/lockstep/coordinator/engine"
)

type txCmd struct {
	List  txListCmd  `cmd:"" help:"List transactions, newest first."`
	Show  txShowCmd  `cmd:"" help:"Show one transaction with every call that was made for it."`
	Retry txRetryCmd `cmd:"" help:"Make everything that a transaction owes due now; undoes a stop."`
	Stop  txStopCmd  `cmd:"" help:"Stop a transaction: its decision stays, nothing is called until a retry."`

	Resolve txResolveCmd `cmd:"" help:"End a transaction in doubt on your word, or take over one that a lost region had committed."`
}

type txListCmd struct {
	target
	Status    []string      `help:"prepared, running, committing, aborting, committed, aborted, stopped, in-doubt." placeholder:"STATUS"`
	InDoubt   bool          `help:"Only those of a lost region that nobody knows the decision of."`
	Mode      string        `help:"tcc, saga, msg, xa or workflow."`
	OlderThan time.Duration `help:"Begun at least so long ago." placeholder:"1h"`
	NewerThan time.Duration `help:"Begun at most so long ago." placeholder:"1h"`
	Slot      int           `help:"Only this slot." default:"-1"`
	Prefix    string        `help:"Only gids that begin so."`
	Stuck     bool          `help:"Only those with a call that keeps failing."`
	Limit     int           `help:"Rows of a page." default:"50"`
	Cursor    string        `help:"The place where the page before ended."`
	All       bool          `help:"All pages."`
}

// Run lists transactions.
func (c *txListCmd) Run(e *env) error {
	q := url.Values{"limit": {strconv.Itoa(c.Limit)}}
	for _, s := range c.Status {
		q.Add("status", s)
	}
	if c.InDoubt {
		q.Add("status", "in-doubt")
	}
	set := func(key, v string, on bool) {
		if on {
			q.Set(key, v)
		}
	}
	now := time.Now()
	set("mode", c.Mode, c.Mode != "")
	set("begun_before", strconv.FormatInt(now.Add(-c.OlderThan).UnixMilli(), 10), c.OlderThan > 0)
	set("begun_after", strconv.FormatInt(now.Add(-c.NewerThan).UnixMilli(), 10), c.NewerThan > 0)
	set("slot", strconv.Itoa(c.Slot), c.Slot >= 0)
	set("gid_prefix", c.Prefix, c.Prefix != "")
	set("stuck", strconv.Itoa(engine.StuckFails), c.Stuck)
	set("cursor", c.Cursor, c.Cursor != "")
	p := c.printer(e)
	w := tabwriter.NewWriter(e.out, 0, 0, 2, ' ', 0)
	if !p.json {
		fmt.Fprintln(w, "GID\tMODE\tSTATUS\tSLOT\tBEGUN\tAGE\tFAILS\tREASON")
	}
	act := "" // what the first transaction that needs an act needs
	for {
		var page admin.List
		if err := c.get(e, "/v1/transactions", q, &page); err != nil {
			return err
		}
		for i := range page.Transactions {
			t := &page.Transactions[i]
			t.Next = c.pasteable(t.Next)
			if act == "" {
				act = t.Next
			}
			if p.json && !c.All {
				continue
			}
			if p.json {
				if err := p.line(t); err != nil {
					return err
				}
				continue
			}
			row(w, t.Gid, t.Mode, t.Status, t.Slot, stamp(t.BegunAt), age(t.BegunAt), t.Fails, cut(t.Reason, 60))
		}
		if p.json && !c.All {
			return p.object(page)
		}
		if page.NextCursor == "" || !c.All {
			w.Flush()
			c.advise(e, act, page.NextCursor)
			return nil
		}
		w.Flush()
		q.Set("cursor", page.NextCursor)
	}
}

// advise prints what the first transaction that needs an act needs, and the next page's command.
func (c *txListCmd) advise(e *env, act, cursor string) {
	if c.printer(e).json {
		return
	}
	if act != "" {
		next(e.out, act)
	}
	if cursor != "" {
		next(e.out, "lockstep tx list "+strings.Join(append(c.flags(), flagOf("cursor", cursor)), " "))
	}
}

// flags repeats the filters and the target for the next page's command.
func (c *txListCmd) flags() []string {
	var out []string
	add := func(name, v string) {
		if v != "" {
			out = append(out, flagOf(name, v))
		}
	}
	for _, s := range c.Status {
		add("status", s)
	}
	add("mode", c.Mode)
	add("prefix", c.Prefix)
	if c.OlderThan > 0 {
		add("older-than", c.OlderThan.String())
	}
	if c.NewerThan > 0 {
		add("newer-than", c.NewerThan.String())
	}
	if c.Slot >= 0 {
		add("slot", strconv.Itoa(c.Slot))
	}
	if c.Stuck {
		out = append(out, "--stuck")
	}
	if c.InDoubt {
		out = append(out, "--in-doubt")
	}
	if c.Limit != 50 {
		add("limit", strconv.Itoa(c.Limit))
	}
	return append(out, c.target.flags()...)
}

type txShowCmd struct {
	target
	Gid string `arg:"" help:"The transaction."`
}

// Run shows one transaction.
func (c *txShowCmd) Run(e *env) error {
	var t admin.Transaction
	if err := c.get(e, "/v1/transaction", url.Values{"gid": {c.Gid}}, &t); err != nil {
		return err
	}
	return c.show(e, &t)
}

func (c *target) show(e *env, t *admin.Transaction) error {
	t.Next = c.pasteable(t.Next)
	p := c.printer(e)
	if p.json {
		return p.object(t)
	}
	w := tabwriter.NewWriter(e.out, 0, 0, 2, ' ', 0)
	row(w, "gid", t.Gid)
	row(w, "mode", t.Mode)
	row(w, "status", t.Status)
	row(w, "slot", fmt.Sprintf("%d, epoch %d", t.Slot, t.Epoch))
	row(w, "begun", stamp(t.BegunAt))
	for _, moment := range []struct {
		name string
		at   int64
	}{{"decided", t.DecidedAt}, {"finished", t.FinishedAt}, {"due next", t.NextAt}} {
		if moment.at != 0 {
			row(w, moment.name, stamp(moment.at))
		}
	}
	if t.Reason != "" {
		row(w, "reason", t.Reason)
	}
	if len(t.Branches) > 0 {
		fmt.Fprintln(w, "\nBRANCH\tOP\tSTATUS\tATTEMPTS\tFAILS\tDUE\tURL\tLAST ERROR")
		for _, b := range t.Branches {
			due := ""
			if b.NextAt > 0 && b.Status == "pending" {
				due = stamp(b.NextAt)
			}
			row(w, b.ID, b.Op, b.Status, b.Attempts, b.Fails, due, b.URL, cut(b.LastError, 80))
		}
	}
	fmt.Fprintln(w, "\nTIME\tWHAT\tBRANCH\tOP\tATTEMPT\tTOOK\tANSWER")
	for _, m := range t.Timeline {
		attempt, took := "", ""
		if m.Attempt > 0 {
			attempt = strconv.Itoa(m.Attempt)
		}
		if m.What == "called" {
			took = (time.Duration(m.TookUS) * time.Microsecond).String()
		}
		row(w, stamp(m.At), m.What, m.Branch, m.Op, attempt, took, strings.TrimSpace(m.Outcome+" "+cut(m.Text, 100)))
	}
	if !t.Bodies {
		fmt.Fprintln(w, "\nonly the outcome is still kept (--keep-finished)")
	}
	w.Flush()
	if t.Next != "" {
		next(e.out, t.Next)
	}
	return nil
}

type txRetryCmd struct {
	target
	Gid string `arg:"" help:"The transaction."`
}

// Run retries one transaction.
func (c *txRetryCmd) Run(e *env) error { return c.act(e, "retry", c.Gid) }

type txStopCmd struct {
	target
	Gid string `arg:"" help:"The transaction."`
}

// Run stops one transaction.
func (c *txStopCmd) Run(e *env) error { return c.act(e, "stop", c.Gid) }

type txResolveCmd struct {
	target
	Gid    string `arg:"" help:"The transaction."`
	Commit bool   `help:"It takes effect." xor:"decision" required:""`
	Abort  bool   `help:"It takes no effect." xor:"decision" required:""`
	Reason string `help:"On whose word, for the audit: a ticket, a name." required:"" placeholder:"TEXT"`
}

// Run resolves one transaction.
func (c *txResolveCmd) Run(e *env) error {
	decision := "abort"
	if c.Commit {
		decision = "commit"
	}
	var t admin.Transaction
	if err := c.post(e, "/v1/transaction/resolve", url.Values{"gid": {c.Gid}, "decision": {decision}, "reason": {c.Reason}}, nil, &t); err != nil {
		return err
	}
	return c.show(e, &t)
}

func (c *target) act(e *env, act, gid string) error {
	var t admin.Transaction
	if err := c.post(e, "/v1/transaction/"+act, url.Values{"gid": {gid}}, nil, &t); err != nil {
		return err
	}
	return c.show(e, &t)
}

type statusCmd struct {
	target
}

// Run shows the region's coordinators.
func (c *statusCmd) Run(e *env) error {
	var st admin.Status
	if err := c.get(e, "/v1/status", nil, &st); err != nil {
		return err
	}
	p := c.printer(e)
	if p.json {
		return p.object(st)
	}
	w := tabwriter.NewWriter(e.out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "MEMBER\tSLOTS\tHTTP\tGRPC\tADMIN")
	for _, m := range st.Members {
		row(w, m.ID, m.Slots, m.HTTP, m.GRPC, m.Admin)
	}
	w.Flush()
	if st.Unheld > 0 {
		fmt.Fprintf(e.out, "%d slots have no live holder\n", st.Unheld)
		next(e.out, c.command("status")+"  # again in some seconds; if it stays, look at the coordinators' logs")
	}
	return nil
}

func stamp(ms int64) string { return time.UnixMilli(ms).Format("2006-01-02 15:04:05.000") }

func age(ms int64) string { return time.Since(time.UnixMilli(ms)).Truncate(time.Second).String() }
