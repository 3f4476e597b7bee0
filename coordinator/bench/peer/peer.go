// Package peer builds DTM's own server (coordinator/bench/dtmpeer), prepares a store for it and runs it as a process:
// the benchmarks measure against it, and the tests of import-dtm adopt transactions from it.
//
//	store, drop, err := peer.CreateStore(ctx, os.Getenv("LOCKSTEP_TEST_POSTGRES_URL"))
//	defer drop(context.WithoutCancel(ctx))
//	dtm, err := peer.StartDTM(ctx, store, t.TempDir())
//	defer dtm.Stop()
//
// DTM can only listen on all addresses, in the clear and without authentication: run it on a machine of your own.
package peer

import (
	"context"
	"fmt"
	"os"
	"time"

	"github.com/lockstep-tx/lockstep/coordinator/bench/build"
	"github.com/lockstep-tx/lockstep/coordinator/bench/proc"
)

// Version is the release of DTM that dtmpeer is built from.
const Version = "v1.19.0"

// readyLimit is how long DTM may take to answer after its start.
const readyLimit = 30 * time.Second

// Options are what StartDTM lets a caller choose. The zero value is for measurements.
type Options struct {
	HTTPPort, GRPCPort int      // 0 means a free one; set them to start again where a killed server was
	LogLevel           string   // DTM's; "" means warn: at info it would print every transaction
	Env                []string // more of DTM's configuration, e.g. "RETRY_INTERVAL=10"
}

// DTM is a running server. Its Process holds Stop, Kill, Done and PID.
type DTM struct {
	*proc.Process
	Store    StoreConfig
	Dir      string
	HTTPBase string // what DTM's HTTP clients take: http://127.0.0.1:PORT/api/dtmsvr
	GRPCAddr string // what its gRPC clients take: 127.0.0.1:PORT
	opts     Options
}

// StartDTM starts DTM on store with dir as its working directory (the boltdb store lives there) and free ports, and
// returns once it answers over HTTP and gRPC. dir must exist. The caller ends it with Stop or Kill; the store outlives it.
func StartDTM(ctx context.Context, store StoreConfig, dir string) (*DTM, error) {
	return StartDTMWith(ctx, store, dir, Options{})
}

// StartDTMWith is StartDTM with options.
func StartDTMWith(ctx context.Context, store StoreConfig, dir string, o Options) (*DTM, error) {
	bin, err := Binary(ctx)
	if err != nil {
		return nil, err
	}
	ports, err := proc.FreePorts(2)
	if err != nil {
		return nil, err
	}
	for i, p := range []*int{&o.HTTPPort, &o.GRPCPort} {
		if *p == 0 {
			*p = ports[i]
		}
	}
	if o.LogLevel == "" {
		o.LogLevel = "warn"
	}
	p, err := proc.Start(Spec(bin, "dtm-"+store.Driver, store, dir, o))
	if err != nil {
		return nil, err
	}
	d := &DTM{
		Process: p, Store: store, Dir: dir, opts: o,
		HTTPBase: fmt.Sprintf("http://127.0.0.1:%d/api/dtmsvr", o.HTTPPort),
		GRPCAddr: fmt.Sprintf("127.0.0.1:%d", o.GRPCPort),
	}
	err = p.AwaitHTTP(ctx, d.HTTPBase+"/version", readyLimit)
	if err == nil {
		err = p.AwaitTCP(ctx, d.GRPCAddr, readyLimit)
	}
	if err != nil {
		p.Kill()
		return nil, err
	}
	return d, nil
}

// Spec describes DTM's server, the binary at bin, on store for whoever starts it himself; o must name its ports and its log
// level. It is called name, and dir is its working directory.
func Spec(bin, name string, store StoreConfig, dir string, o Options) proc.Spec {
	env := append(store.env(),
		fmt.Sprintf("HTTP_PORT=%d", o.HTTPPort),
		fmt.Sprintf("GRPC_PORT=%d", o.GRPCPort),
		// Released versions write branch results late unless told otherwise; main has this as its default.
		"UPDATE_BRANCH_SYNC=1",
		"LOG_LEVEL="+o.LogLevel,
		"IS_DOCKER=", // would rewrite 127.0.0.1
	)
	return proc.Spec{Name: name, Path: bin, Dir: dir, Env: append(env, o.Env...)}
}

// Restart starts DTM again on the same store, directory and ports. d must have ended; it is not changed.
func (d *DTM) Restart(ctx context.Context) (*DTM, error) {
	return StartDTMWith(ctx, d.Store, d.Dir, d.opts)
}

// Binary builds dtmpeer into bin/ of our module and returns its path. The working directory must be inside our module,
// unless LOCKSTEP_DTMPEER names a binary built before.
func Binary(ctx context.Context) (string, error) {
	if path := os.Getenv("LOCKSTEP_DTMPEER"); path != "" {
		return path, nil
	}
	return build.DTM(ctx)
}
