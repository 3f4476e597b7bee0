// Command dtm-wallet is a participant as DTM's users write it: accounts in one database of PostgreSQL or MariaDB, and DTM's
// own SDK with its own barrier around each call. The chaos suite runs it when DTM is what is tested (docs/dtm-under-test.md).
//
// Its law: it uses nothing of Lockstep, and the business trusts the barrier: it does not look whether it was there before. With
// --no-barrier there is none, which the suite's checkers must notice. Its tables are named as those of our wallets, so that
// the same checkers read them; each effect and its entries are written in the barrier's own transaction.
//
//	POST /pay/{try,confirm,cancel}, /receive/{try,confirm,cancel}   {"account":"a","amount":5}, and DTM's query parameters
//	POST /sulk?share=0.3        confirms and cancels of that share of transactions are answered 409, 425 or 500, and do nothing
//	GET  /healthz
package main

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"hash/fnv"
	"net/http"
	"os"
	"os/signal"
	"strconv"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/dtm-labs/dtm/client/dtmcli"
)

type options struct {
	listen, db, schema string
	accounts           string
	deposit            int64
	noBarrier          bool
}

func main() {
	var o options
	flag.StringVar(&o.listen, "listen", "127.0.0.1:0", "HOST:PORT to listen on")
	flag.StringVar(&o.db, "db", "", "database: postgres://… or mysql://…")
	flag.StringVar(&o.schema, "barrier-schema", "dtm_barrier", "schema of the barrier's table; on MySQL and MariaDB it is the whole server's")
	flag.StringVar(&o.accounts, "accounts", "", "accounts to open, separated by commas")
	flag.Int64Var(&o.deposit, "deposit", 0, "what each of them has at first, in minor units")
	flag.BoolVar(&o.noBarrier, "no-barrier", false, "call the business without DTM's barrier: a test of the suite itself")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := serve(ctx, o); err != nil {
		fmt.Fprintln(os.Stderr, "dtm-wallet:", err)
		os.Exit(1)
	}
}

const shutdownLimit = 5 * time.Second

func serve(ctx context.Context, o options) error {
	b, err := openBook(ctx, o)
	if err != nil {
		return err
	}
	defer b.db.Close()
	w := &wallet{book: b, bare: o.noBarrier}
	mux := http.NewServeMux()
	mux.HandleFunc("POST /pay/{op}", func(rw http.ResponseWriter, r *http.Request) { w.call(rw, r, pay) })
	mux.HandleFunc("POST /receive/{op}", func(rw http.ResponseWriter, r *http.Request) { w.call(rw, r, receive) })
	mux.HandleFunc("POST /sulk", w.sulk)
	mux.HandleFunc("GET /healthz", func(http.ResponseWriter, *http.Request) {})
	srv := &http.Server{Addr: o.listen, Handler: mux, ReadHeaderTimeout: 10 * time.Second}
	done := make(chan error, 1)
	go func() { done <- srv.ListenAndServe() }()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		end, cancel := context.WithTimeout(context.WithoutCancel(ctx), shutdownLimit)
		defer cancel()
		return srv.Shutdown(end)
	}
}

// wallet answers the calls.
type wallet struct {
	book *book
	bare bool
	// sulks is the share of transactions, in thousandths, whose confirms and cancels are refused.
	sulks atomic.Int64
}

// sulk sets the share.
func (w *wallet) sulk(rw http.ResponseWriter, r *http.Request) {
	share, err := strconv.ParseFloat(r.URL.Query().Get("share"), 64)
	if err != nil || share < 0 || share > 1 {
		http.Error(rw, "share: 0 to 1", http.StatusBadRequest)
		return
	}
	w.sulks.Store(int64(share * 1000))
}

// refuses gives the answer of a call that is not carried out, or 0: 409 is DTM's FAILURE, 425 its ONGOING, 500 anything else.
func (w *wallet) refuses(gid, op string) int {
	if op == "try" {
		return 0
	}
	h := fnv.New32a()
	_, _ = h.Write([]byte(gid)) // it never fails
	if n := h.Sum32(); int64(n%1000) < w.sulks.Load() {
		return []int{http.StatusConflict, http.StatusTooEarly, http.StatusInternalServerError}[n/1000%3]
	}
	return 0
}

// order is the payload of a call.
type order struct {
	Account string `json:"account"`
	Amount  int64  `json:"amount"`
}

// call carries one call out, in a transaction that DTM's barrier makes.
func (w *wallet) call(rw http.ResponseWriter, r *http.Request, s side) {
	op := r.PathValue("op")
	do := s.effect(op)
	var o order
	if err := json.NewDecoder(r.Body).Decode(&o); do == nil || err != nil || o.Account == "" || o.Amount <= 0 {
		http.Error(rw, "an account and an amount are wanted, and try, confirm or cancel", http.StatusBadRequest)
		return
	}
	bb, err := dtmcli.BarrierFromQuery(r.URL.Query())
	if err != nil {
		http.Error(rw, err.Error(), http.StatusBadRequest)
		return
	}
	if code := w.refuses(bb.Gid, op); code != 0 {
		http.Error(rw, "not now", code)
		return
	}
	m := &move{book: w.book, side: s, gid: bb.Gid, branch: bb.BranchID, order: o}
	if w.bare {
		err = w.book.within(func(tx *sql.Tx) error { return do(m, tx) })
	} else {
		bb.DBType, bb.BarrierTableName = w.book.kind, w.book.barrier
		err = bb.CallWithDB(w.book.db, func(tx *sql.Tx) error { return do(m, tx) })
	}
	switch {
	case errors.Is(err, dtmcli.ErrFailure):
		http.Error(rw, err.Error(), http.StatusConflict)
	case err != nil:
		http.Error(rw, err.Error(), http.StatusInternalServerError)
	}
}
