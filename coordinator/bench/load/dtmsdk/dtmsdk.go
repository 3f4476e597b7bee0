// Package dtmsdk drives a coordinator with DTM's own Go SDK, unchanged, over HTTP and gRPC.
package dtmsdk

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"time"

	"github.com/dtm-labs/dtm/client/dtmcli"
	"github.com/dtm-labs/dtm/client/dtmgrpc"
	"github.com/dtm-labs/logger"
	"github.com/go-resty/resty/v2"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/lockstep-tx/lockstep/coordinator/bench/load"
	"github.com/lockstep-tx/lockstep/coordinator/bench/noop"
)

// body is what the tries and confirms carry over HTTP.
type body struct {
	Account string `json:"account"`
	Amount  int64  `json:"amount"`
}

// httpDriver is DTM's Go SDK over HTTP, unchanged.
type httpDriver struct{ dtm, try, confirm, cancel string }

// NewHTTP returns a driver that runs transactions over HTTP.
func NewHTTP(c load.Config) (load.Driver, error) {
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
			for range load.Branches {
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

// NewGRPC returns a driver that runs transactions over gRPC.
func NewGRPC(c load.Config) (load.Driver, error) {
	quiet()
	base := c.ParticipantsGRPC + "/" + noop.Service
	return &grpcDriver{dtm: c.Coordinator, try: base + "/Try", confirm: base + "/Confirm", cancel: base + "/Cancel"}, nil
}

func (d *grpcDriver) Run(context.Context) (err error) {
	defer recovered(&err)
	gid := dtmgrpc.MustGenGid(d.dtm)
	return dtmgrpc.TccGlobalTransaction2(d.dtm, gid, func(t *dtmgrpc.TccGrpc) { t.WaitResult = true },
		func(t *dtmgrpc.TccGrpc) error {
			for range load.Branches {
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
