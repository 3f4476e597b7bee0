package main

import (
	"errors"
	"fmt"
	"net/url"
	"text/tabwriter"

	"github.com/lockstep-tx/lockstep/coordinator/api/admin"
	"github.com/lockstep-tx/lockstep/coordinator/dtmimport"
)

type importCmd struct {
	target
	From        string `help:"Store of the stopped DTM server: postgres://…, mysql://… or redis://…." required:"" placeholder:"URL"`
	RedisPrefix string `help:"Prefix of DTM's keys in Redis." default:"{a}"`
	Schema      string `help:"Schema of DTM's tables in PostgreSQL." default:"public"`
	DryRun      bool   `help:"Show what would be adopted and change nothing."`
	Force       bool   `help:"Read the store although somebody seems to be using it. DTM itself must be stopped all the same."`
}

// imported is what became of one transaction.
type imported struct {
	Gid    string `json:"gid"`
	Mode   string `json:"mode"`
	Status string `json:"dtm_status"`
	// Result is adopted, known, adoptable (with --dry-run) or not adopted.
	Result string `json:"result"`
	Reason string `json:"reason,omitempty"`
}

// Run reads DTM's open transactions and hands them to a coordinator one by one. It may be repeated: what is known
// already is left as it is.
func (c *importCmd) Run(e *env) error {
	fmt.Fprintln(e.err, "every DTM server on this store must be stopped, and stay so: two coordinators would drive the same transactions")
	list, err := dtmimport.Read(e.ctx, dtmimport.Source{URL: c.From, RedisPrefix: c.RedisPrefix, Schema: c.Schema, Force: c.Force})
	if errors.Is(err, dtmimport.ErrInUse) {
		return &failure{fmt.Errorf("read DTM's transactions: %w", err), c.again("--force") + "  # if it is not DTM that uses the store"}
	}
	if err != nil {
		return &failure{fmt.Errorf("read DTM's transactions: %w", err), "lockstep import-dtm --help"}
	}
	p := c.printer(e)
	w := tabwriter.NewWriter(e.out, 0, 0, 2, ' ', 0)
	if !p.json {
		fmt.Fprintln(w, "GID\tMODE\tDTM'S STATUS\tRESULT\tREASON")
	}
	count := map[string]int{}
	for i := range list {
		one, err := c.one(e, &list[i])
		if err != nil {
			w.Flush()
			return err
		}
		count[one.Result]++
		if p.json {
			if err := p.line(one); err != nil {
				return err
			}
			continue
		}
		row(w, one.Gid, one.Mode, one.Status, one.Result, one.Reason)
	}
	w.Flush()
	if !p.json {
		fmt.Fprintf(e.out, "open: %d, adopted: %d, known already: %d, adoptable: %d, not adopted: %d\n",
			len(list), count["adopted"], count["known"], count["adoptable"], count["not adopted"])
	}
	switch {
	case count["not adopted"] > 0:
		return &failure{fmt.Errorf("not adopted: %d transactions; DTM's store still has them", count["not adopted"]),
			c.again() + "  # again, when the reasons above are mended; what was adopted is left as it is"}
	case p.json:
	case c.DryRun:
		next(e.out, c.again()+"  # without --dry-run")
	default:
		next(e.out, c.command("tx", "list", "--status prepared --status running --status committing --status aborting"))
	}
	return nil
}

// again is the command once more, without --dry-run. An address with a password in it is not repeated on the terminal.
func (c *importCmd) again(more ...string) string {
	from := "--from URL"
	if u, err := url.Parse(c.From); err == nil {
		if _, secret := u.User.Password(); !secret && u.RawQuery == "" {
			from = flagOf("from", c.From)
		}
	}
	words := append([]string{"import-dtm", from}, more...)
	if c.RedisPrefix != "{a}" {
		words = append(words, flagOf("redis-prefix", c.RedisPrefix))
	}
	if c.Schema != "public" {
		words = append(words, flagOf("schema", c.Schema))
	}
	return c.command(words...)
}

// one hands one transaction over. An error ends the command: the coordinator could not be asked, or not as we are.
func (c *importCmd) one(e *env, t *dtmimport.Transaction) (imported, error) {
	row := imported{Gid: t.Gid, Mode: t.Mode, Status: t.Status, Result: "adopted"}
	refuse := func(err error) (imported, error) {
		row.Result, row.Reason = "not adopted", err.Error()
		return row, nil
	}
	raw, err := t.Record()
	if err != nil {
		return refuse(err)
	}
	if c.DryRun {
		row.Result = "adoptable"
		return row, nil
	}
	var out admin.Transaction
	var ae *admin.Error
	switch err = c.post(e, "/v1/adopt", url.Values{}, raw, &out); {
	case err == nil && out.FinishedAt != 0:
		row.Result = "known" // it has ended here, and only its outcome is kept
	case err == nil:
	case !errors.As(err, &ae):
		return row, err
	case ae.Code == "mismatch":
		row.Result = "known"
	case ae.Code == "invalid":
		return refuse(err)
	default:
		return row, err
	}
	return row, nil
}
