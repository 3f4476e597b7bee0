// Package load is the client side of the benchmarks: a number of clients, each running one global transaction after the
// other against a coordinator, two branches, waiting for the end. cmd/bench-load makes a process of it.
package load

import (
	"context"
	"fmt"
	"maps"
	"net"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/dtm-labs/dtm/client/dtmcli"
	"github.com/dtm-labs/dtm/client/dtmgrpc"
	"github.com/dtm-labs/logger"
	"github.com/go-resty/resty/v2"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/lockstep-tx/lockstep/coordinator/bench/noop"
)

// Branches is the number of branches of every transaction.
const Branches = 2

// Driver runs transactions through one API. Run is called by many clients at once.
type Driver interface {
	// Run runs one transaction and returns nil when the coordinator said that it is committed and confirmed.
	Run(ctx context.Context) error
}

// Config says where the coordinator and the participants are.
type Config struct {
	Coordinator      string // in the form that the API's clients take
	ParticipantsHTTP string // host:port
	ParticipantsGRPC string // host:port
}

// drivers are the APIs by name. Our native API joins with one line here and a file that implements Driver with
// coordinator/api/client: one call with two branches on the HTTP participants, answered when finished.
var drivers = map[string]func(Config) (Driver, error){
	"http": newHTTP,
	"grpc": newGRPC,
}

// APIs returns the names of the drivers there are, sorted.
func APIs() []string { return slices.Sorted(maps.Keys(drivers)) }

// NewDriver returns the driver for an API.
func NewDriver(api string, c Config) (Driver, error) {
	make, ok := drivers[api]
	if !ok {
		return nil, fmt.Errorf("no driver for the api %q; there are %s", api, strings.Join(APIs(), ", "))
	}
	return make(c)
}

// body is what the tries and confirms carry over HTTP.
type body struct {
	Account string `json:"account"`
	Amount  int64  `json:"amount"`
}

// httpDriver is DTM's Go SDK over HTTP, unchanged.
type httpDriver struct{ dtm, try, confirm, cancel string }

func newHTTP(c Config) (Driver, error) {
	quiet()
	// The SDK's client keeps three idle connections per host and would open a new one for nearly every call of 64
	// clients. Its transport can be set from outside, and is, for all contenders alike.
	dtmcli.GetRestyClient().SetTransport(&http.Transport{
		DialContext:         (&net.Dialer{Timeout: 10 * time.Second, KeepAlive: 30 * time.Second}).DialContext,
		MaxIdleConnsPerHost: 2048,
		IdleConnTimeout:     90 * time.Second,
	})
	base := "http://" + c.ParticipantsHTTP
	return &httpDriver{dtm: c.Coordinator, try: base + "/try", confirm: base + "/confirm", cancel: base + "/cancel"}, nil
}

func (d *httpDriver) Run(context.Context) (err error) {
	defer recovered(&err)
	gid := dtmcli.MustGenGid(d.dtm)
	return dtmcli.TccGlobalTransaction2(d.dtm, gid, func(t *dtmcli.Tcc) { t.WaitResult = true },
		func(t *dtmcli.Tcc) (resp *resty.Response, err error) {
			for range Branches {
				resp, err = t.CallBranch(&body{Account: "alice", Amount: 30}, d.try, d.confirm, d.cancel)
				if err != nil {
					return resp, err
				}
			}
			return resp, nil
		})
}

// grpcDriver is DTM's Go SDK over gRPC, unchanged.
type grpcDriver struct{ dtm, try, confirm, cancel string }

func newGRPC(c Config) (Driver, error) {
	quiet()
	base := c.ParticipantsGRPC + "/" + noop.Service
	return &grpcDriver{dtm: c.Coordinator, try: base + "/Try", confirm: base + "/Confirm", cancel: base + "/Cancel"}, nil
}

func (d *grpcDriver) Run(context.Context) (err error) {
	defer recovered(&err)
	gid := dtmgrpc.MustGenGid(d.dtm)
	return dtmgrpc.TccGlobalTransaction2(d.dtm, gid, func(t *dtmgrpc.TccGrpc) { t.WaitResult = true },
		func(t *dtmgrpc.TccGrpc) error {
			for range Branches {
				var reply emptypb.Empty
				if err := t.CallBranch(&emptypb.Empty{}, d.try, d.confirm, d.cancel, &reply); err != nil {
					return err
				}
			}
			return nil
		})
}

// quiet keeps the SDK from printing a line per gRPC call. (It formats that line all the same: its business.)
func quiet() { logger.InitLog2("error", "stderr", 0, "") }

// recovered turns a panic of the SDK's (MustGenGid) into an error.
func recovered(err *error) {
	if x := recover(); x != nil {
		*err = fmt.Errorf("panic in the SDK: %v", x)
	}
}
