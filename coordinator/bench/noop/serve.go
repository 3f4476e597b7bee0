package noop

import (
	"context"
	"errors"
	"net"
	"net/http"

	"google.golang.org/grpc"
)

// Serve listens on both addresses and serves h and g until ctx ends. It is shared by the processes of the benchmarks.
func Serve(ctx context.Context, httpAddr string, h http.Handler, grpcAddr string, g *grpc.Server) error {
	hl, err := net.Listen("tcp", httpAddr)
	if err != nil {
		return err
	}
	defer hl.Close()
	gl, err := net.Listen("tcp", grpcAddr)
	if err != nil {
		return err
	}
	hs := &http.Server{Handler: h}
	failed := make(chan error, 2)
	go func() { failed <- hs.Serve(hl) }()
	go func() { failed <- g.Serve(gl) }()
	running := 2
	select {
	case err = <-failed:
		running--
	case <-ctx.Done():
	}
	_ = hs.Close()
	g.Stop()
	for range running {
		<-failed
	}
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return err
}
