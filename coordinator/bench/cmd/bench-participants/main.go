// Command bench-participants runs the no-op participants of the benchmarks (package coordinator/bench/noop) until it is
// told to stop.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/lockstep-tx/lockstep/coordinator/bench/noop"
)

func main() {
	httpAddr := flag.String("http-addr", "127.0.0.1:0", "HTTP address")
	grpcAddr := flag.String("grpc-addr", "127.0.0.1:0", "gRPC address")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	p := noop.New()
	if err := noop.Serve(ctx, *httpAddr, p.Handler(), *grpcAddr, p.GRPCServer()); err != nil {
		fmt.Fprintln(os.Stderr, "bench-participants:", err)
		os.Exit(1)
	}
}
