package rig

import (
	"context"
	"crypto/rand"
	"database/sql"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/lockstep-tx/lockstep/coordinator/bench/load"
	"github.com/lockstep-tx/lockstep/coordinator/bench/payees"
	"github.com/lockstep-tx/lockstep/coordinator/bench/proc"
	"github.com/lockstep-tx/lockstep/participants/sqldb"
)

// Payees are the two ledgers of the payment benchmarks, served by a process of their own.
type Payees struct {
	Process                      *proc.Process
	Buyers, Merchants            string // host:port
	BuyerAccounts, MerchantsPaid int
	serverPID                    int
}

// PayeesPlan says how they are made.
type PayeesPlan struct {
	Style             string // payees.DTM or payees.Kit
	ServerURL         string // postgres://… or mysql://…
	Buyers, Merchants payees.Plan
	MerchantsPaid     int      // of the merchants; 0 is all
	Args              []string // more of bench-payees
}

// StartPayees makes two databases on the server, with their accounts, and starts the participants on them. The databases
// go with the rig.
func (r *Rig) StartPayees(ctx context.Context, p PayeesPlan) (*Payees, error) {
	var urls [2]string
	for i, plan := range []payees.Plan{p.Buyers, p.Merchants} {
		u, err := r.createDatabase(ctx, p.ServerURL)
		if err != nil {
			return nil, fmt.Errorf("make a database for the participants: %w", err)
		}
		if err := payees.Prepare(ctx, u, plan); err != nil {
			return nil, fmt.Errorf("make the accounts: %w", err)
		}
		urls[i] = u
	}
	addrs, err := proc.FreeAddrs(2)
	if err != nil {
		return nil, err
	}
	args := append([]string{"-style", p.Style, "-buyer-db", urls[0], "-buyer-addr", addrs[0], "-merchant-db", urls[1], "-merchant-addr", addrs[1]}, p.Args...)
	started, err := r.start(proc.Spec{Name: "payees-" + p.Style, Path: r.bin("bench-payees"), Args: args, Dir: r.Dir})
	if err != nil {
		return nil, err
	}
	out := &Payees{Process: started, Buyers: addrs[0], Merchants: addrs[1], BuyerAccounts: p.Buyers.N, MerchantsPaid: p.MerchantsPaid}
	if out.MerchantsPaid == 0 {
		out.MerchantsPaid = p.Merchants.N
	}
	if out.serverPID, err = serverPID(p.ServerURL, ""); err != nil {
		return nil, err
	}
	for _, a := range addrs {
		err = errors.Join(err, started.AwaitHTTP(ctx, "http://"+a+"/sums", readyLimit))
	}
	return out, err
}

// createDatabase makes an empty database on the server and gives its URL.
func (r *Rig) createDatabase(ctx context.Context, serverURL string) (string, error) {
	u, drop, err := CreateDatabase(ctx, serverURL)
	if err == nil {
		r.defers(drop)
	}
	return u, err
}

// CreateDatabase makes an empty database on the server and gives its URL and how it is dropped again.
func CreateDatabase(ctx context.Context, serverURL string) (string, func(context.Context) error, error) {
	u, err := url.Parse(serverURL)
	if err != nil {
		return "", nil, errors.New("the server's URL cannot be parsed")
	}
	name := "payees_" + strings.ToLower(rand.Text()[:12])
	db, _, err := sqldb.Open(ctx, serverURL)
	if err != nil {
		return "", nil, err
	}
	defer db.Close()
	if _, err := db.ExecContext(ctx, "CREATE DATABASE "+name); err != nil {
		return "", nil, err
	}
	drop := []string{"DROP DATABASE IF EXISTS " + name + " WITH (FORCE)"}
	if u.Scheme == "mysql" {
		drop = []string{"DROP DATABASE IF EXISTS " + name, "DROP DATABASE IF EXISTS " + name + "_b"}
	}
	dropped := func(ctx context.Context) error {
		db, _, err := sqldb.Open(ctx, serverURL)
		if err != nil {
			return err
		}
		defer db.Close()
		return execAll(ctx, db, drop)
	}
	u.Path = "/" + name
	return u.String(), dropped, nil
}

func execAll(ctx context.Context, db *sql.DB, stmts []string) error {
	var errs []error
	for _, s := range stmts {
		_, err := db.ExecContext(ctx, s)
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// MeasurePayments runs payments through c between p's ledgers, and then counts the money: ErrIncomplete says that the two
// databases disagree, with each other or with what the coordinator answered.
func (r *Rig) MeasurePayments(ctx context.Context, c *Contender, api string, p *Payees, plan load.Plan) (Sample, error) {
	before, err := p.sums(ctx)
	if err != nil {
		return Sample{}, err
	}
	meters, err := p.meters()
	if err != nil {
		return Sample{}, err
	}
	s, err := r.load(ctx, c, api, plan, "-buyers", p.Buyers, "-merchants", p.Merchants,
		"-buyer-accounts", strconv.Itoa(p.BuyerAccounts), "-merchants-paid", strconv.Itoa(p.MerchantsPaid))
	if err != nil {
		return s, err
	}
	if n := float64(s.TotalOK); n > 0 {
		end, err := p.meters()
		if err != nil {
			return s, err
		}
		s.PayeesCPUMicros = float64(end.own.Sub(meters.own).CPU.Microseconds()) / n
		s.LedgerCPUMicros = float64(end.server.Sub(meters.server).CPU.Microseconds()) / n
	}
	deadline := time.Now().Add(readyLimit)
	for {
		after, err := p.sums(ctx)
		if err != nil {
			return s, err
		}
		err = paid(s.Result, before, after)
		if err == nil || time.Now().After(deadline) {
			return s, err
		}
		time.Sleep(settle) // what failed for its client may still be under way
	}
}

func (p *Payees) meters() (m meters, err error) {
	if m.own, err = proc.ReadUsage(p.Process.PID); err == nil {
		m.server, err = proc.ReadTreeUsage(p.serverPID)
	}
	return m, err
}

// twoSums are the buyers' and the merchants'.
type twoSums struct{ buyers, merchants payees.Sums }

func (p *Payees) sums(ctx context.Context) (s twoSums, err error) {
	err = errors.Join(CallJSON(ctx, http.MethodGet, "http://"+p.Buyers+"/sums", &s.buyers), CallJSON(ctx, http.MethodGet, "http://"+p.Merchants+"/sums", &s.merchants))
	return s, err
}

// Audit recounts both books; it reads every entry.
func (p *Payees) Audit(ctx context.Context) error {
	for _, at := range []string{p.Buyers, p.Merchants} {
		if err := CallJSON(ctx, http.MethodGet, "http://"+at+"/audit", &struct{}{}); err != nil {
			return fmt.Errorf("%w: %w", ErrIncomplete, err)
		}
	}
	return nil
}

func paid(r load.Result, before, after twoSums) error {
	left := after.buyers.Clearing - before.buyers.Clearing
	arrived := before.merchants.Clearing - after.merchants.Clearing
	switch low, high := int64(r.TotalOK)*payees.PaymentMinor, int64(r.TotalOK+r.TotalFailed)*payees.PaymentMinor; {
	case after.buyers.Pending != 0 || after.merchants.Pending != 0:
		return fmt.Errorf("%w: %d are pending with the buyers, %d with the merchants", ErrIncomplete, after.buyers.Pending, after.merchants.Pending)
	case left != arrived:
		return fmt.Errorf("%w: %d left the buyers, %d arrived at the merchants", ErrIncomplete, left, arrived)
	case before.buyers.Accounts-after.buyers.Accounts != left || after.merchants.Accounts-before.merchants.Accounts != arrived:
		return fmt.Errorf("%w: %d left the buyers' accounts and %d arrived on the merchants', but %d and %d went through clearing", ErrIncomplete,
			before.buyers.Accounts-after.buyers.Accounts, after.merchants.Accounts-before.merchants.Accounts, left, arrived)
	case left < low || left > high:
		return fmt.Errorf("%w: %d payments were answered as made and %d were not, but %d moved", ErrIncomplete, r.TotalOK, r.TotalFailed, left)
	}
	return nil
}
