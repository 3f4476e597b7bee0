// Package payees is the participants of the payment benchmarks: a buyers' and a merchants' ledger, each behind a barrier
// in a database of its own on a real server, served in one of two styles. The business is the same in both: package
// participants/ledger.
//
//	dtm  handlers with DTM's SDK and its barrier, one local transaction per call
//	kit  participants/branch with our barrier: calls share local transactions, and batches are offered
//
// Each database is served on an address of its own: POST /leg/{try,confirm,cancel} with an Order, GET /sums with Sums, and GET
// /audit, which recounts the book.
package payees

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"

	"github.com/dtm-labs/dtm/client/dtmcli"
	"github.com/dtm-labs/dtm/client/dtmcli/dtmimp"
	"golang.org/x/sync/errgroup"

	"github.com/lockstep-tx/lockstep/participants/barrier"
	"github.com/lockstep-tx/lockstep/participants/branch"
	"github.com/lockstep-tx/lockstep/participants/ledger"
	"github.com/lockstep-tx/lockstep/participants/sqldb"
)

// The styles.
const (
	DTM = "dtm"
	Kit = "kit"
)

// Accounts that every database has beside the numbered ones.
const (
	World    = "world"    // where deposits come from
	Clearing = "clearing" // between the two databases: credited by the buyers', debited by the merchants'
)

// Account names the n-th account of a kind.
func Account(kind string, n int) string { return fmt.Sprintf("%s-%06d", kind, n) }

// Order is the payload of the three calls: one leg.
type Order struct {
	Debit  string `json:"debit"`
	Credit string `json:"credit"`
	Minor  int64  `json:"minor"`
}

func (o Order) transfer(call *barrier.Call) ledger.Transfer {
	return ledger.Of(call, ledger.Leg{Debit: o.Debit, Credit: o.Credit, Minor: o.Minor})
}

// Options of a served database.
type Options struct {
	Style    string
	URL      string // postgres://… or mysql://…
	Addr     string
	Conns    int // of the pool
	Together int // kit: calls that share a local transaction at most; 0 is the kit's default, 1 is none
	Workers  int // kit: local transactions at once
}

// Payee serves one database.
type Payee struct {
	db      *sql.DB
	dialect barrier.Dialect
	ledger  *ledger.Ledger
	options Options
	kit     *branch.Participant
}

// New opens the database, whose tables Prepare has made. Close ends it.
func New(ctx context.Context, o Options) (*Payee, error) {
	db, d, err := sqldb.Open(ctx, o.URL)
	if err != nil {
		return nil, err
	}
	if o.Conns > 0 {
		db.SetMaxOpenConns(o.Conns)
		db.SetMaxIdleConns(o.Conns)
	}
	l, err := ledger.New(d.Dialect, ledger.Options{})
	if err != nil {
		return nil, errors.Join(err, db.Close())
	}
	p := &Payee{db: db, dialect: d.Dialect, ledger: l, options: o}
	if o.Style == Kit {
		b, err := barrier.New(db, d.Dialect, barrier.Options{Schema: schemaOf(o.URL)})
		if err != nil {
			return nil, errors.Join(err, db.Close())
		}
		p.kit = branch.New(b, branch.Options{BatchMax: o.Together, Workers: o.Workers, Log: slog.Default()})
		branch.HandleTCC(p.kit, "leg", branch.TCC[Order]{
			Try: func(ctx context.Context, tx *sql.Tx, c *barrier.Call, o Order) error {
				return l.Hold(ctx, tx, o.transfer(c))
			},
			Confirm: func(ctx context.Context, tx *sql.Tx, c *barrier.Call, o Order) error {
				return l.Post(ctx, tx, o.transfer(c))
			},
			Cancel: func(ctx context.Context, tx *sql.Tx, c *barrier.Call, o Order) error {
				return l.Void(ctx, tx, o.transfer(c))
			},
			TryAll:     together(l.HoldAll),
			ConfirmAll: together(l.PostAll),
			CancelAll:  together(l.VoidAll),
		})
	}
	return p, nil
}

func together(f func(context.Context, *sql.Tx, []ledger.Transfer) error) branch.OpAll[Order] {
	return func(ctx context.Context, tx *sql.Tx, calls []*barrier.Call, orders []Order) error {
		all := make([]ledger.Transfer, len(calls))
		for i := range calls {
			all[i] = orders[i].transfer(calls[i])
		}
		return f(ctx, tx, all)
	}
}

// schemaOf is where the barrier's tables are: MySQL's are in a database of their own beside the participant's, so that
// two participants on one server share nothing.
func schemaOf(rawURL string) string {
	if !strings.HasPrefix(rawURL, "mysql://") {
		return barrier.DefaultSchema
	}
	return rawURL[strings.LastIndexByte(rawURL, '/')+1:] + "_b"
}

// Close closes the database.
func (p *Payee) Close() error {
	if p.kit != nil {
		p.kit.Close()
	}
	return p.db.Close()
}

// Handler serves the database in its style.
func (p *Payee) Handler() http.Handler {
	mux := http.NewServeMux()
	if p.kit != nil {
		mux.Handle("/", p.kit.Handler())
	} else {
		for op, f := range map[string]func(context.Context, *sql.Tx, ledger.Transfer) error{
			"try": p.ledger.Hold, "confirm": p.ledger.Post, "cancel": p.ledger.Void,
		} {
			mux.HandleFunc("/leg/"+op, func(w http.ResponseWriter, r *http.Request) { p.serveDTM(w, r, f) })
		}
	}
	mux.HandleFunc("GET /sums", p.sums)
	mux.HandleFunc("GET /audit", p.audit)
	return mux
}

// serveDTM answers as the SDK's examples do.
func (p *Payee) serveDTM(w http.ResponseWriter, r *http.Request, f func(context.Context, *sql.Tx, ledger.Transfer) error) {
	var o Order
	err := json.NewDecoder(r.Body).Decode(&o)
	var bb *dtmcli.BranchBarrier
	if err == nil {
		bb, err = dtmcli.BarrierFromQuery(r.URL.Query())
	}
	if err == nil {
		bb.DBType, bb.BarrierTableName = dtmimp.DBTypePostgres, schemaOf(p.options.URL)+".barrier"
		if p.dialect == barrier.MySQL {
			bb.DBType = dtmimp.DBTypeMysql
		}
		call := &barrier.Call{Gid: bb.Gid, BranchID: bb.BranchID, Op: bb.Op, TransType: bb.TransType}
		err = bb.CallWithDB(p.db, func(tx *sql.Tx) error { return f(r.Context(), tx, o.transfer(call)) })
	}
	w.Header().Set("Content-Type", "application/json")
	switch {
	case errors.Is(err, barrier.ErrRefused):
		w.WriteHeader(http.StatusConflict)
		fmt.Fprint(w, `{"dtm_result":"FAILURE"}`)
	case err != nil:
		slog.Error("branch call", "err", err)
		w.WriteHeader(http.StatusInternalServerError)
		fmt.Fprintf(w, "%q", err.Error())
	default:
		fmt.Fprint(w, `{"dtm_result":"SUCCESS"}`)
	}
}

// Serve serves databases, each on its address, until ctx ends.
func Serve(ctx context.Context, all ...Options) error {
	g, ctx := errgroup.WithContext(ctx)
	for _, o := range all {
		p, err := New(ctx, o)
		if err != nil {
			return err
		}
		l, err := net.Listen("tcp", o.Addr)
		if err != nil {
			return errors.Join(err, p.Close())
		}
		s := &http.Server{Handler: p.Handler()}
		var once sync.Once
		g.Go(func() error {
			err := s.Serve(l)
			if errors.Is(err, http.ErrServerClosed) {
				err = nil
			}
			once.Do(func() { err = errors.Join(err, p.Close()) })
			return err
		})
		g.Go(func() error { <-ctx.Done(); return s.Close() })
	}
	return g.Wait()
}

// Call makes one call in this process, in the style Kit.
func (p *Payee) Call(ctx context.Context, path string, call *barrier.Call, payload []byte) error {
	return p.kit.Call(ctx, path, call, payload)
}

// Post posts buffered accounts at the default rate until ctx ends.
func (p *Payee) Post(ctx context.Context) error {
	return ledger.Poster{Ledger: p.ledger, DB: p.db}.Run(ctx)
}

// Sums reads what went through the database.
func (p *Payee) Sums(ctx context.Context) (Sums, error) { return p.read(ctx) }
