// Command bench-ceiling runs the coordinator that stores nothing (package coordinator/bench/ceiling) until it is told to
// stop.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/lockstep-tx/lockstep/coordinator/bench/ceiling"
	"github.com/lockstep-tx/lockstep/coordinator/bench/noop"
)

func main() {
	httpAddr := flag.String("http-addr", "127.0.0.1:36789", "HTTP address")
	grpcAddr := flag.String("grpc-addr", "127.0.0.1:36790", "gRPC address")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	c := ceiling.New()
	if err := noop.Serve(ctx, *httpAddr, c.Handler(), *grpcAddr, c.GRPCServer()); err != nil {
		fmt.Fprintln(os.Stderr, "bench-ceiling:", err)
		os.Exit(1)
	}
}
