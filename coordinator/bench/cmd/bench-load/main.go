// Command bench-load runs transactions against a coordinator and prints, as lines of JSON on standard output, when its
// measured window begins and ends and what it measured:
//
//	{"event":"begin"}
//	{"event":"end"}
//	{"event":"result","result":{…}}
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"maps"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/lockstep-tx/lockstep/coordinator/bench/load"
	"github.com/lockstep-tx/lockstep/coordinator/bench/load/dtmsdk"
	"github.com/lockstep-tx/lockstep/coordinator/bench/load/native"
	"github.com/lockstep-tx/lockstep/coordinator/bench/load/pay"
)

// drivers are the APIs there are a client for.
var drivers = map[string]func(load.Config) (load.Driver, error){
	load.HTTP:        dtmsdk.NewHTTP,
	load.GRPC:        dtmsdk.NewGRPC,
	load.Native:      native.New,
	load.NativeBatch: native.NewBatched,
	load.PayDTM:      pay.NewDTM,
	load.PayNative:   pay.NewNative,
}

func main() {
	var c load.Config
	var p load.Plan
	api := flag.String("api", "http", "one of "+strings.Join(slices.Sorted(maps.Keys(drivers)), ", "))
	flag.StringVar(&c.Coordinator, "coordinator", "http://127.0.0.1:36789/api/dtmsvr", "as the api's clients take it")
	flag.StringVar(&c.ParticipantsHTTP, "participants-http", "", "host:port of bench-participants")
	flag.StringVar(&c.ParticipantsGRPC, "participants-grpc", "", "host:port of bench-participants")
	flag.StringVar(&c.Buyers, "buyers", "", "payments: host:port of the buyers' ledger")
	flag.StringVar(&c.Merchants, "merchants", "", "payments: host:port of the merchants' ledger")
	flag.IntVar(&c.BuyerAccounts, "buyer-accounts", 1000, "payments: accounts of the buyers")
	flag.IntVar(&c.MerchantsPaid, "merchants-paid", 1000, "payments: merchants who are paid, at random")
	flag.IntVar(&p.Clients, "clients", 64, "concurrent clients")
	flag.DurationVar(&p.WarmUp, "warm-up", time.Second, "load before the measured window")
	flag.DurationVar(&p.Duration, "duration", 0, "length of the window")
	flag.IntVar(&p.Count, "count", 0, "or the number of transactions in it")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	out := json.NewEncoder(os.Stdout)
	newDriver, ok := drivers[*api]
	if !ok {
		fmt.Fprintf(os.Stderr, "bench-load: there is no driver for the api %q yet\n", *api)
		os.Exit(2)
	}
	d, err := newDriver(c)
	var r load.Result
	if err == nil {
		r, err = load.Run(ctx, d, p, func(event string) { _ = out.Encode(map[string]string{"event": event}) })
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench-load:", err)
		os.Exit(1)
	}
	_ = out.Encode(map[string]any{"event": "result", "result": r})
}
