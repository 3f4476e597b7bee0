// Command bench-payees runs the participants of the payment benchmarks (package coordinator/bench/payees) until it is told
// to stop.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/dtm-labs/logger"

	"github.com/lockstep-tx/lockstep/coordinator/bench/payees"
)

func main() {
	logger.InitLog2("error", "stderr", 0, "") // DTM's SDK would print every statement
	var buyer, merchant payees.Options
	style := flag.String("style", payees.Kit, "kit or dtm")
	conns := flag.Int("conns", 40, "connections to each database")
	together := flag.Int("together", 0, "kit: calls that share a local transaction at most; 0 is the kit's default")
	workers := flag.Int("workers", 0, "kit: local transactions at once; 0 is the kit's default")
	flag.StringVar(&buyer.URL, "buyer-db", "", "database of the buyers")
	flag.StringVar(&buyer.Addr, "buyer-addr", "127.0.0.1:0", "where it is served")
	flag.StringVar(&merchant.URL, "merchant-db", "", "database of the merchants")
	flag.StringVar(&merchant.Addr, "merchant-addr", "127.0.0.1:0", "where it is served")
	flag.Parse()
	for _, o := range []*payees.Options{&buyer, &merchant} {
		o.Style, o.Conns, o.Together, o.Workers = *style, *conns, *together, *workers
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := payees.Serve(ctx, buyer, merchant); err != nil {
		fmt.Fprintln(os.Stderr, "bench-payees:", err)
		os.Exit(1)
	}
}
