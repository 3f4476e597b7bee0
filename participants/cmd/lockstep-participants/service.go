package main

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"

	"github.com/lockstep-tx/lockstep/participants/barrier"
	"github.com/lockstep-tx/lockstep/participants/branch"
	"github.com/lockstep-tx/lockstep/participants/ledger"
	"github.com/lockstep-tx/lockstep/participants/merchant"
	"github.com/lockstep-tx/lockstep/participants/money"
	"github.com/lockstep-tx/lockstep/participants/points"
	"github.com/lockstep-tx/lockstep/region/slot"
)

type service struct {
	buyer, merchant *barrier.Barrier
	buyers          ledger.Buyers
	log             *slog.Logger
}

// open opens and migrates both databases.
func open(ctx context.Context, buyerFile, merchantFile string, allowUnfenced bool, log *slog.Logger) (*service, error) {
	if buyerFile == merchantFile {
		return nil, errors.New("--db-buyer and --db-merchant name the same file; a payment is between two databases")
	}
	book, err := ledger.New(barrier.SQLite, ledger.Options{})
	if err != nil {
		return nil, err
	}
	buyer, err := database(ctx, buyerFile, allowUnfenced, func(ctx context.Context, db *sql.DB) error {
		return ledger.Migrate(ctx, db, barrier.SQLite, ledger.Options{})
	})
	if err != nil {
		return nil, err
	}
	seller, err := database(ctx, merchantFile, allowUnfenced, merchant.Migrate, points.Migrate)
	if err != nil {
		return nil, errors.Join(err, buyer.DB().Close())
	}
	return &service{buyer: buyer, merchant: seller, buyers: ledger.Buyers{Ledger: book}, log: log}, nil
}

func database(ctx context.Context, file string, allowUnfenced bool, migrations ...func(context.Context, *sql.DB) error) (*barrier.Barrier, error) {
	db, err := barrier.OpenSQLite(ctx, file)
	if err != nil {
		return nil, err
	}
	err = barrier.Migrate(ctx, db, barrier.SQLite)
	for _, migrate := range migrations {
		if err == nil {
			err = migrate(ctx, db)
		}
	}
	if err != nil {
		return nil, errors.Join(err, db.Close())
	}
	return barrier.New(db, barrier.SQLite, barrier.Options{AllowUnfenced: allowUnfenced, GidTime: gidTime})
}

// gidTime is the time in a gid that a coordinator made: below the floor such a try is refused. The gids of other makers
// carry none.
func gidTime(gid string) (ms int64, ok bool) {
	t, ok := slot.TimeOf(gid)
	return t.UnixMilli(), ok
}

func (s *service) Close() error { return errors.Join(s.buyer.DB().Close(), s.merchant.DB().Close()) }

func (s *service) handler() http.Handler {
	mux := http.NewServeMux()
	transfer := func(path, op string, b *barrier.Barrier, f func(context.Context, *sql.Tx, *barrier.Call, money.Transfer) error) {
		mux.Handle(path, branch.HTTP(b, op, branch.Typed(f), s.log))
	}
	transfer("/buyer/try", barrier.OpTry, s.buyer, s.buyers.Freeze)
	transfer("/buyer/confirm", barrier.OpConfirm, s.buyer, s.buyers.Confirm)
	transfer("/buyer/cancel", barrier.OpCancel, s.buyer, s.buyers.Cancel)
	transfer("/merchant/try", barrier.OpTry, s.merchant, merchant.Book)
	transfer("/merchant/confirm", barrier.OpConfirm, s.merchant, merchant.Post)
	transfer("/merchant/cancel", barrier.OpCancel, s.merchant, merchant.Cancel)
	mux.Handle("/points/add", branch.HTTP(s.merchant, barrier.OpAction, branch.Typed(points.Add), s.log))
	// For messages whose local part was written to the buyers' or the merchants' database.
	mux.Handle("/buyer/query-prepared", branch.QueryPrepared(s.buyer, s.log))
	mux.Handle("/merchant/query-prepared", branch.QueryPrepared(s.merchant, s.log))
	mux.HandleFunc("POST /accounts", s.create)
	mux.HandleFunc("GET /state", s.state)
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
	return mux
}

// account is the body of POST /accounts.
type account struct {
	Kind     string `json:"kind"` // buyer or merchant
	ID       string `json:"id"`
	Currency string `json:"currency"` // empty means money.DefaultCurrency
	Balance  int64  `json:"balance"`  // buyer: the first deposit in minor units
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
	if err == nil {
		switch a.Kind {
		case "buyer":
			err = s.buyers.Create(r.Context(), s.buyer.DB(), a.ID, a.Currency, a.Balance)
		case "merchant":
			err = merchant.Create(r.Context(), s.merchant.DB(), a.ID, a.Currency)
		default:
			err = fmt.Errorf("%w: kind %q; buyer and merchant are possible", barrier.ErrInvalid, a.Kind)
		}
	}
	if err != nil {
		http.Error(w, err.Error(), branch.Status(err))
		return
	}
	w.WriteHeader(http.StatusNoContent)
}

// state is the answer to GET /state. Each database is read in one transaction, the two one after the other: Settled
// and the comparison between them mean something only while no payment is under way.
type state struct {
	Buyer    ledger.BuyersState   `json:"buyer"`
	Merchant merchant.State `json:"merchant"`
	Points   points.State   `json:"points"`
	Open     int64          `json:"open"`    // holds and bookings that are neither confirmed nor cancelled
	Settled  bool           `json:"settled"` // nothing is open
	Faults   []string       `json:"faults"`  // what is wrong with the sums, in words; empty if not a cent is off
}

func (s *service) state(w http.ResponseWriter, r *http.Request) {
	var st state
	var err error
	if st.Buyer, err = s.buyers.Read(r.Context(), s.buyer.DB()); err == nil {
		if st.Merchant, err = merchant.Read(r.Context(), s.merchant.DB()); err == nil {
			st.Points, err = points.Read(r.Context(), s.merchant.DB())
		}
	}
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	st.Open = st.Buyer.OpenHolds + st.Merchant.OpenBookings
	st.Settled = st.Open == 0
	st.Faults = append(append(append([]string{}, st.Buyer.Faults()...), st.Merchant.Faults()...), st.Points.Faults()...)
	if st.Settled && st.Buyer.Spent != st.Merchant.Posted {
		st.Faults = append(st.Faults, fmt.Sprintf("buyers spent %d, merchants were credited %d", st.Buyer.Spent, st.Merchant.Posted))
	}
	w.Header().Set("Content-Type", "application/json")
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	_ = enc.Encode(st)
}
