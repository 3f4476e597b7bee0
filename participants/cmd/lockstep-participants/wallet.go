package main

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"strconv"
	"time"

	"github.com/lockstep-tx/lockstep/participants/barrier"
	"github.com/lockstep-tx/lockstep/participants/branch"
	"github.com/lockstep-tx/lockstep/participants/ledger"
	"github.com/lockstep-tx/lockstep/participants/money"
	"github.com/lockstep-tx/lockstep/participants/sqldb"
)

type walletCmd struct {
	Listen     string        `help:"Address to serve HTTP on; loopback only, it has no authentication." default:"127.0.0.1:0"`
	DB         string        `help:"Database of this region's wallets: postgres://USER:PASSWORD@HOST:PORT/NAME, mysql://…, or sqlite:FILE." name:"db" required:""`
	Schema     string        `help:"Schema of the barrier's tables. Wallets of two regions on one MySQL or MariaDB server need one each: without it, all databases of the server share dtm_barrier, and one region's epochs make the other's calls stale." name:"barrier-schema" placeholder:"NAME"`
	PortFile   string        `help:"File to write the port to once it is served." type:"path"`
	DrainLimit time.Duration `help:"How long open calls may take to end after SIGTERM." default:"10s"`
}

// Validate refuses to be reachable from outside.
func (c *walletCmd) Validate() error {
	host, _, err := net.SplitHostPort(c.Listen)
	if err != nil {
		return fmt.Errorf("--listen: %w", err)
	}
	if ip := net.ParseIP(host); host != "localhost" && (ip == nil || !ip.IsLoopback()) {
		return fmt.Errorf("--listen %s: only a loopback address will do: anybody who reaches it can move money", c.Listen)
	}
	return nil
}

// wallets is one region's wallets: branches wallet/pay and wallet/receive, which can be applied to copies and moved.
type wallets struct {
	barrier *barrier.Barrier
	kit     *branch.Participant
	book    ledger.Wallets
	log     *slog.Logger
}

func openWallets(ctx context.Context, address, schema string, log *slog.Logger) (*wallets, error) {
	b, _, err := database(ctx, address, barrier.Options{Schema: schema}, func(ctx context.Context, db *sql.DB, d sqldb.Dialect) error {
		return ledger.Migrate(ctx, db, d.Dialect, ledger.Options{})
	})
	if err != nil {
		return nil, err
	}
	book, err := ledger.New(b.Dialect(), ledger.Options{})
	if err != nil {
		return nil, errors.Join(err, b.DB().Close())
	}
	w := &wallets{barrier: b, kit: branch.New(b, branch.Options{Log: log}), book: ledger.Wallets{Ledger: book}, log: log}
	for name, d := range map[string]ledger.Direction{"wallet/pay": ledger.Pay, "wallet/receive": ledger.Receive} {
		branch.HandleTCC(w.kit, name, branch.TCC[money.Transfer]{
			Try: branch.Op[money.Transfer](w.book.Try(d)), Confirm: branch.Op[money.Transfer](w.book.Confirm(d)),
			Cancel: branch.Op[money.Transfer](w.book.Cancel(d)), Apply: branch.Op[money.Transfer](w.book.Apply(d)),
			Effect: func(t money.Transfer) ([]branch.Held, error) {
				t, err := t.Normal()
				return []branch.Held{{Account: t.Account, Amount: t.Minor, Currency: t.Currency, Debit: d == ledger.Pay}}, err
			},
		})
	}
	w.kit.Move(ledger.Slots{Ledger: book})
	return w, nil
}

// Close ends the calls under way and closes the database.
func (w *wallets) Close() error {
	w.kit.Close()
	return w.barrier.DB().Close()
}

// Run serves until ctx ends.
func (c *walletCmd) Run(ctx context.Context, log *slog.Logger) (err error) {
	w, err := openWallets(ctx, c.DB, c.Schema, log)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, w.Close()) }()
	l, err := net.Listen("tcp", c.Listen)
	if err != nil {
		return fmt.Errorf("--listen: %w", err)
	}
	srv := &http.Server{Handler: w.handler(), ReadHeaderTimeout: 10 * time.Second}
	done := make(chan error, 1)
	go func() { done <- srv.Serve(l) }()
	if c.PortFile != "" {
		if err := writeWhole(c.PortFile, strconv.Itoa(l.Addr().(*net.TCPAddr).Port)+"\n"); err != nil {
			return errors.Join(err, srv.Close())
		}
	}
	log.Info("wallets are served", "addr", l.Addr())
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		sctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), c.DrainLimit)
		defer cancel()
		return srv.Shutdown(sctx)
	}
}

// writeWhole writes a file that is never seen half written.
func writeWhole(path, text string) error {
	if err := os.WriteFile(path+".new", []byte(text), 0o600); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}

func (w *wallets) handler() http.Handler {
	mux := http.NewServeMux()
	mux.Handle("/", w.kit.Handler())
	mux.HandleFunc("GET /healthz", func(http.ResponseWriter, *http.Request) {})
	mux.HandleFunc("POST /accounts", func(rw http.ResponseWriter, r *http.Request) {
		var in struct {
			ID       string `json:"id"`
			Currency string `json:"currency"`
			Balance  int64  `json:"balance"`
			// GlobalOnly refuses debits of transactions that are not of durability global.
			GlobalOnly bool `json:"global_only"`
		}
		err := json.NewDecoder(http.MaxBytesReader(rw, r.Body, 1<<20)).Decode(&in)
		if err != nil {
			err = fmt.Errorf("%w: body: %w", barrier.ErrInvalid, err)
		} else if in.Currency == "" {
			in.Currency = money.DefaultCurrency
		}
		if err == nil {
			err = w.book.OpenWalletIn(r.Context(), w.barrier.DB(), ledger.Account{ID: in.ID, Currency: in.Currency, GlobalOnly: in.GlobalOnly}, in.Balance)
		}
		if err != nil {
			http.Error(rw, err.Error(), branch.Status(err))
		}
	})
	// What lockstep-participants check --state-url asks.
	mux.HandleFunc("GET /balances", func(rw http.ResponseWriter, r *http.Request) {
		s, err := w.book.State(r.Context(), w.barrier.DB())
		if err != nil {
			http.Error(rw, err.Error(), http.StatusInternalServerError)
			return
		}
		balances := map[string]int64{}
		for _, a := range s.Accounts {
			balances[a.ID] = a.Total()
		}
		rw.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(rw).Encode(map[string]any{"balances": balances}) // the caller has left, then
	})
	mux.HandleFunc("GET /state", func(rw http.ResponseWriter, r *http.Request) {
		s, err := w.book.State(r.Context(), w.barrier.DB())
		if err != nil {
			http.Error(rw, err.Error(), http.StatusInternalServerError)
			return
		}
		rw.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(rw).Encode(s) // the caller has left, then
	})
	return mux
}
