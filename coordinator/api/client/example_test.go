package client_test

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"sync"

	"google.golang.org/grpc"

	"github.com/lockstep-tx/lockstep/coordinator/api"
	"github.com/lockstep-tx/lockstep/coordinator/api/client"
	"github.com/lockstep-tx/lockstep/coordinator/clock"
	"github.com/lockstep-tx/lockstep/coordinator/dtmwire"
	"github.com/lockstep-tx/lockstep/coordinator/engine"
	"github.com/lockstep-tx/lockstep/coordinator/invoke"
	"github.com/lockstep-tx/lockstep/coordinator/store/memstore"
)

// coordinate runs a coordinator on the memory store. A real one is: lockstep serve --embedded --data-dir DIR.
func coordinate() (addr string, stop func()) {
	inv := invoke.New(invoke.Config{})
	clk := clock.New()
	run := engine.NewRunner(engine.Config{Self: engine.Member{ID: "example"}}, memstore.New(), memstore.NewJournal(), inv, nil, clk)
	wire := dtmwire.New(run, memstore.New().KV(), invoke.DefaultAllow(), dtmwire.Limits{}, clk.Now, nil)
	g := grpc.NewServer()
	api.New(api.Config{Engine: run, Rules: wire, CheckGid: dtmwire.CheckGid, NewGid: wire.NewGid}).RegisterGRPC(g)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		panic(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { _ = run.Run(ctx) })
	wg.Go(func() { _ = g.Serve(l) })
	return l.Addr().String(), func() { g.Stop(); cancel(); wg.Wait(); inv.Close() }
}

// One call runs a whole payment: freeze the buyer, book the merchant, and tell the points once it is committed.
func Example() {
	addr, stop := coordinate()
	defer stop()
	shop := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/poor/try" {
			w.WriteHeader(http.StatusConflict) // a refusal: not enough money
		}
	}))
	defer shop.Close()

	c, err := client.Dial(addr)
	if err != nil {
		fmt.Println(err)
		return
	}
	defer c.Close()
	branch := func(id string) client.Branch {
		u := shop.URL + "/" + id
		return client.Branch{ID: id, Try: u + "/try", Confirm: u + "/confirm", Cancel: u + "/cancel", Payload: []byte(`{"cents":3000}`)}
	}
	pay := func(order, buyer string) {
		tx, err := c.Execute(context.Background(), client.Tx{
			IdempotencyKey: order,
			Branches:       []client.Branch{branch(buyer), branch("merchant")},
			Messages:       []client.Message{{ID: "points", URL: shop.URL + "/points", Payload: []byte(`{"add":30}`)}},
		}, client.Decided)
		switch {
		case err != nil:
			fmt.Println("nothing is known:", err)
		case tx.Committed():
			fmt.Println(order, "is paid")
		default:
			fmt.Println(order, "is refused")
		}
	}
	pay("order-4711", "rich")
	pay("order-4711", "rich") // a repeat: the same answer, nothing done twice
	pay("order-4712", "poor")
	// Output:
	// order-4711 is paid
	// order-4711 is paid
	// order-4712 is refused
}
