//go:build servers

package ledger_test

import (
	"context"
	"database/sql"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/lockstep-tx/lockstep/participants/barrier"
	"github.com/lockstep-tx/lockstep/participants/ledger"
)

// What a payment costs at the ledger alone: a hold and a post, 64 to a local transaction (as the kit does, but for its
// savepoints) or each in its own from 16 connections, to one shop in each mode or spread over two hundred.
//
//	bin/devctl run -- go test -tags servers -run '^$' -bench Payments -benchtime 3000x ./participants/ledger/
func BenchmarkPayments(b *testing.B) {
	for _, d := range []barrier.Dialect{barrier.PostgreSQL, barrier.MySQL} {
		for _, shop := range []ledger.Account{{ID: "spread"}, {ID: "direct"}, {ID: "buffered", Mode: ledger.Buffered}, {ID: "aggregated", Mode: ledger.Aggregated}, {ID: "split", Mode: ledger.Split, Shards: 16}} {
			for _, batch := range []int{1, 64} {
				b.Run(fmt.Sprintf("%s/%s/batch=%d", d, shop.ID, batch), func(b *testing.B) { benchPayments(b, d, shop, batch) })
			}
		}
	}
}

const shops = 200

func benchPayments(b *testing.B, d barrier.Dialect, shop ledger.Account, batch int) {
	k := openServer(b, d)
	if shop.ID != "spread" {
		k.open(b, shop)
	}
	k.open(b, ledger.Account{ID: "suspense", Mode: ledger.Buffered, Overdraft: true})
	for i := range shops {
		if shop.ID == "spread" {
			k.open(b, ledger.Account{ID: fmt.Sprint("spread", i)})
		}
	}
	var next atomic.Int64
	workers := 16
	if batch > 1 {
		workers = 1 // as the kit has
	}
	run, stop := context.WithCancel(ctx)
	done := make(chan error)
	go func() { done <- ledger.Poster{Ledger: k.Ledger, DB: k.db}.Run(run) }()
	b.ResetTimer()
	var wg sync.WaitGroup
	for range workers {
		wg.Go(func() {
			for {
				last := int(next.Add(int64(batch)))
				if last-batch >= b.N {
					return
				}
				set := make([]ledger.Transfer, 0, batch)
				for i := last - batch; i < last; i++ {
					to := shop.ID
					if to == "spread" {
						to = fmt.Sprint("spread", i%shops)
					}
					set = append(set, ledger.Transfer{Gid: fmt.Sprint("g", i), Branch: "01", Legs: []ledger.Leg{leg("suspense", to, 1)}})
				}
				for _, f := range []func(context.Context, *sql.Tx, []ledger.Transfer) error{k.HoldAll, k.PostAll} {
					if err := k.InTx(ctx, k.db, func(tx *sql.Tx) error { return f(ctx, tx, set) }); err != nil {
						b.Error(err)
						return
					}
				}
			}
		})
	}
	wg.Wait()
	b.StopTimer()
	stop()
	k.must(b, <-done)
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "payments/s")
}
