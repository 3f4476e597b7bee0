package main

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/lockstep-tx/lockstep/participants/barrier"
	"github.com/lockstep-tx/lockstep/participants/branch"
	"github.com/lockstep-tx/lockstep/participants/inventory"
	"github.com/lockstep-tx/lockstep/participants/ledger"
	"github.com/lockstep-tx/lockstep/participants/merchant"
	"github.com/lockstep-tx/lockstep/participants/money"
	"github.com/lockstep-tx/lockstep/participants/payment"
	"github.com/lockstep-tx/lockstep/participants/points"
	"github.com/lockstep-tx/lockstep/participants/sqldb"
	"github.com/lockstep-tx/lockstep/region/slot"
)

// service is the reference participants on their two databases: the buyers' ledger, and everything else.
type service struct {
	buyer, merchant   *barrier.Barrier
	buyerKit, sellKit *branch.Participant
	sell              sqldb.Dialect
	buyers            ledger.Buyers
	shops             *merchant.Merchants
	grants            *points.Points
	stock             *inventory.Inventory
	payments          *payment.Service // nil without a coordinator
	log               *slog.Logger
}

// settings of a service.
type settings struct {
	buyer, merchant string // databases' addresses
	allowUnfenced   bool
	log             *slog.Logger
}

// open opens and migrates both databases.
func open(ctx context.Context, c settings) (*service, error) {
	if c.buyer == c.merchant && strings.HasPrefix(c.buyer, "sqlite:") {
		return nil, errors.New("--db-buyer and --db-merchant name the same file; a payment is between two databases")
	}
	s := &service{log: c.log}
	var err error
	o := barrier.Options{AllowUnfenced: c.allowUnfenced}
	if s.buyer, _, err = database(ctx, c.buyer, o, func(ctx context.Context, db *sql.DB, d sqldb.Dialect) error {
		return ledger.Migrate(ctx, db, d.Dialect, ledger.Options{})
	}); err != nil {
		return nil, err
	}
	if s.merchant, s.sell, err = database(ctx, c.merchant, o, merchant.Migrate, points.Migrate, inventory.Migrate, payment.Migrate); err != nil {
		return nil, errors.Join(err, s.buyer.DB().Close())
	}
	book, err := ledger.New(s.buyer.Dialect(), ledger.Options{})
	if err != nil {
		return nil, errors.Join(err, s.Close())
	}
	s.buyers, s.shops, s.grants, s.stock = ledger.Buyers{Ledger: book}, merchant.New(s.sell, nil), points.New(s.sell), inventory.New(s.sell, nil)
	s.buyerKit = branch.New(s.buyer, branch.Options{Log: c.log})
	s.sellKit = branch.New(s.merchant, branch.Options{Log: c.log})
	s.branches()
	return s, nil
}

// database opens and migrates one database with its barrier; of the options, GidTime is set here.
func database(ctx context.Context, address string, o barrier.Options, migrations ...func(context.Context, *sql.DB, sqldb.Dialect) error) (*barrier.Barrier, sqldb.Dialect, error) {
	db, d, err := sqldb.Open(ctx, address)
	if err != nil {
		return nil, d, err
	}
	if d.Dialect != barrier.SQLite {
		db.SetMaxOpenConns(32)
		db.SetMaxIdleConns(32)
	}
	err = barrier.MigrateSchema(ctx, db, d.Dialect, o.Schema)
	for _, migrate := range migrations {
		if err == nil {
			err = migrate(ctx, db, d)
		}
	}
	if err != nil {
		return nil, d, errors.Join(err, db.Close())
	}
	o.GidTime = gidTime
	b, err := barrier.New(db, d.Dialect, o)
	return b, d, err
}

// gidTime is the time in a gid that a coordinator made: below the floor such a try is refused. The gids of other makers
// carry none.
func gidTime(gid string) (ms int64, ok bool) {
	t, ok := slot.TimeOf(gid)
	return t.UnixMilli(), ok
}

// Close ends the calls under way and closes the databases.
func (s *service) Close() error {
	for _, k := range []*branch.Participant{s.buyerKit, s.sellKit} {
		if k != nil {
			k.Close()
		}
	}
	return errors.Join(s.buyer.DB().Close(), s.merchant.DB().Close())
}

// branches registers what coordinators call.
func (s *service) branches() {
	branch.HandleTCC(s.buyerKit, "buyer", branch.TCC[money.Transfer]{Try: s.buyers.Freeze, Confirm: s.buyers.Confirm, Cancel: s.buyers.Cancel})
	branch.HandleTCC(s.buyerKit, "leg", branch.TCC[payment.Leg]{
		Try: one(s.buyers.Hold), Confirm: one(s.buyers.Post), Cancel: one(s.buyers.Void),
		TryAll: all(s.buyers.HoldAll), ConfirmAll: all(s.buyers.PostAll), CancelAll: all(s.buyers.VoidAll),
	})
	branch.HandleTCC(s.sellKit, "merchant", branch.TCC[money.Transfer]{Try: s.shops.Book, Confirm: s.shops.Post, Cancel: s.shops.Cancel})
	branch.HandleTCC(s.sellKit, "refund", branch.TCC[money.Transfer]{Try: s.shops.HoldBack, Confirm: s.shops.Return, Cancel: s.shops.Keep})
	branch.HandleTCC(s.sellKit, "stock", branch.TCC[inventory.Request]{Try: s.stock.Reserve, Confirm: s.stock.Deduct, Cancel: s.stock.Release})
	branch.HandleMessage(s.sellKit, "points", s.grants.Add)
	branch.HandleMessage(s.sellKit, "notice", s.shops.Notify)
	branch.HandleMessage(s.sellKit, "sales", s.shops.Count)
	branch.HandleMessage(s.sellKit, "insurance", s.shops.Insure)
}

type ledgerOp func(context.Context, *sql.Tx, ledger.Transfer) error

func one(f ledgerOp) branch.Op[payment.Leg] {
	return func(ctx context.Context, tx *sql.Tx, call *barrier.Call, l payment.Leg) error {
		return f(ctx, tx, l.Transfer(call))
	}
}

func all(f func(context.Context, *sql.Tx, []ledger.Transfer) error) branch.OpAll[payment.Leg] {
	return func(ctx context.Context, tx *sql.Tx, calls []*barrier.Call, legs []payment.Leg) error {
		ts := make([]ledger.Transfer, len(calls))
		for i := range calls {
			ts[i] = legs[i].Transfer(calls[i])
		}
		return f(ctx, tx, ts)
	}
}

// pay makes the service serve payments; base is where the coordinator reaches it.
func (s *service) pay(c payment.Coordinator, base string) {
	at := func(name string) payment.Branch { return payment.Branch{Base: base + "/" + name} }
	s.payments = payment.New(payment.Config{
		DB: s.merchant.DB(), Dialect: s.sell, Coordinator: c,
		Buyers: at("leg"), Merchants: at("merchant"), MerchantRefunds: at("refund"), Stock: at("stock"),
		Points: base + "/points/action", Notice: base + "/notice/action", Sales: base + "/sales/action", Insurance: base + "/insurance/action",
		Held:        s.held,
		HasMerchant: func(ctx context.Context, id string) (bool, error) { return s.shops.Has(ctx, s.merchant.DB(), id) },
		Inventory:   s.stock, InventoryDB: s.merchant.DB(), Log: s.log,
	})
}

// held is what the buyers' ledger has of a hold.
func (s *service) held(ctx context.Context, hold string) (string, error) {
	state, _, _, err := s.buyers.TransferState(ctx, s.buyer.DB(), hold)
	if errors.Is(err, sql.ErrNoRows) {
		return "", nil
	}
	return state, err
}

// background posts what buffered accounts have accepted, settles payments that were left open and forgets barrier rows,
// until stop.
func (s *service) background(ctx context.Context, coordinators []string) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	if s.payments != nil {
		wg.Go(func() { s.payments.Settle(ctx, 2*time.Second, 10*time.Second) })
	}
	wg.Go(func() { _ = ledger.Poster{Ledger: s.buyers.Ledger, DB: s.buyer.DB(), Log: s.log}.Run(ctx) }) // nil when ctx ends
	if len(coordinators) > 0 {
		floors := barrier.FloorsFrom(coordinators, os.Getenv("LOCKSTEP_TOKEN"), nil)
		wg.Go(func() {
			for {
				again := time.Hour
				for _, b := range []*barrier.Barrier{s.buyer, s.merchant} {
					if done, err := b.Clean(ctx, barrier.CleanOptions{Floors: floors}); err != nil && ctx.Err() == nil {
						s.log.Warn("barrier rows were not cleaned; it is tried again in a minute", "err", err)
						again = time.Minute
					} else if done.Timed+done.Untimed > 0 {
						s.log.Info("barrier rows cleaned", "timed", done.Timed, "untimed", done.Untimed, "floors", done.Raised)
					}
				}
				select {
				case <-time.After(again):
				case <-ctx.Done():
					return
				}
			}
		})
	}
	return func() { cancel(); wg.Wait() }
}

func (s *service) handler() http.Handler {
	mux := http.NewServeMux()
	mux.Handle("/", branch.Handler(s.buyerKit, s.sellKit))
	// For messages whose local part was written to the buyers' or the merchants' database.
	mux.Handle("/buyer/query-prepared", branch.QueryPrepared(s.buyer, s.log))
	mux.Handle("/merchant/query-prepared", branch.QueryPrepared(s.merchant, s.log))
	if s.payments != nil {
		mux.Handle("/v1/", s.payments.Handler())
	}
	mux.HandleFunc("POST /accounts", s.create)
	mux.HandleFunc("GET /merchants/{id}/days", s.days)
	mux.HandleFunc("GET /state", s.state)
	mux.HandleFunc("GET /balances", s.balances)
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
	return mux
}

// account is the body of POST /accounts.
type account struct {
	Kind     string `json:"kind"` // buyer, merchant or article
	ID       string `json:"id"`
	Currency string `json:"currency"` // empty means money.DefaultCurrency
	Balance  int64  `json:"balance"`  // buyer: the first deposit in minor units; article: the first delivery
	// Mode is how a buyer's account is kept, for those that many payments go to or come from; empty means direct.
	Mode   ledger.Mode `json:"mode"`
	Shards int         `json:"shards"` // of the mode split
}

func (s *service) create(w http.ResponseWriter, r *http.Request) {
	var a account
	dec := json.NewDecoder(http.MaxBytesReader(w, r.Body, 1<<16))
	dec.DisallowUnknownFields()
	err := dec.Decode(&a)
	if err != nil {
		err = fmt.Errorf("%w: %w", barrier.ErrInvalid, err)
	}
	if a.Currency == "" {
		a.Currency = money.DefaultCurrency
	}
	if err == nil && a.Kind != "buyer" && (a.Mode != "" || a.Shards != 0) {
		err = fmt.Errorf("%w: mode and shards are of buyers' accounts", barrier.ErrInvalid)
	}
	if err == nil {
		switch a.Kind {
		case "buyer":
			err = s.buyers.CreateIn(r.Context(), s.buyer.DB(), ledger.Account{ID: a.ID, Currency: a.Currency, Mode: a.Mode, Shards: a.Shards}, a.Balance)
		case "merchant":
			err = s.shops.Create(r.Context(), s.merchant.DB(), a.ID, a.Currency)
		case "article":
			err = s.stock.Stock(r.Context(), s.merchant.DB(), "first:"+a.ID, a.ID, a.Balance)
		default:
			err = fmt.Errorf("%w: kind %q; buyer, merchant and article are possible", barrier.ErrInvalid, a.Kind)
		}
	}
	if err != nil {
		http.Error(w, err.Error(), branch.Status(err))
		return
	}
	w.WriteHeader(http.StatusNoContent)
}

// days is a merchant's daily summary.
func (s *service) days(w http.ResponseWriter, r *http.Request) {
	d, err := s.shops.Days(r.Context(), s.merchant.DB(), r.PathValue("id"), 366)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(map[string]any{"days": d})
}

// state is the answer to GET /state. Each part is read in one transaction, one after the other: Settled
// and the comparisons between them mean something only while no payment is under way.
type state struct {
	Buyer     ledger.BuyersState `json:"buyer"`
	Merchant  merchant.State     `json:"merchant"`
	Points    points.State       `json:"points"`
	Inventory inventory.State    `json:"inventory"`
	Messages  merchant.Messages  `json:"messages"`
	Open      int64              `json:"open"`    // holds and bookings that are neither confirmed nor cancelled
	Settled   bool               `json:"settled"` // nothing is open
	Faults    []string           `json:"faults"`  // what is wrong with the sums, in words; empty if not a cent is off
}

func (s *service) read(ctx context.Context) (st state, err error) {
	db := s.merchant.DB()
	if st.Buyer, err = s.buyers.Read(ctx, s.buyer.DB()); err != nil {
		return st, err
	}
	if st.Merchant, err = s.shops.Read(ctx, db); err != nil {
		return st, err
	}
	if st.Points, err = s.grants.Read(ctx, db); err != nil {
		return st, err
	}
	if st.Inventory, err = s.stock.Read(ctx, db); err != nil {
		return st, err
	}
	if st.Messages, err = s.shops.Messages(ctx, db); err != nil {
		return st, err
	}
	st.Open = st.Buyer.OpenHolds + st.Merchant.OpenBookings + st.Inventory.OpenHolds
	st.Settled = st.Open == 0
	st.Faults = []string{}
	for _, f := range [][]string{st.Buyer.Faults(), st.Merchant.Faults(), st.Points.Faults(), st.Inventory.Faults()} {
		st.Faults = append(st.Faults, f...)
	}
	if st.Settled && st.Buyer.Spent != st.Merchant.Posted {
		st.Faults = append(st.Faults, fmt.Sprintf("buyers spent %d, merchants were credited %d", st.Buyer.Spent, st.Merchant.Posted))
	}
	if st.Settled && st.Buyer.Refunded != st.Merchant.Refunded {
		st.Faults = append(st.Faults, fmt.Sprintf("buyers got %d back, merchants gave %d", st.Buyer.Refunded, st.Merchant.Refunded))
	}
	return st, nil
}

func (s *service) state(w http.ResponseWriter, r *http.Request) {
	st, err := s.read(r.Context())
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	_ = enc.Encode(st)
}
