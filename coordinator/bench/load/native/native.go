// Package native drives Lockstep through its own API: one call per transaction, the coordinator makes the tries.
package native

import (
	"context"
	"fmt"

	"github.com/lockstep-tx/lockstep/coordinator/api/client"
	"github.com/lockstep-tx/lockstep/coordinator/bench/load"
)

type driver struct {
	c        *client.Client
	branches []client.Branch
}

// New returns a driver; its Coordinator is the gRPC address, its participants speak HTTP.
func New(c load.Config) (load.Driver, error) { return newDriver(c, "") }

// NewBatched returns a driver whose participants take native batches.
func NewBatched(c load.Config) (load.Driver, error) { return newDriver(c, "/batched") }

func newDriver(c load.Config, prefix string) (load.Driver, error) {
	cl, err := client.Dial(c.Coordinator)
	if err != nil {
		return nil, err
	}
	d := &driver{c: cl}
	base := "http://" + c.ParticipantsHTTP + prefix
	for i := range load.Branches {
		d.branches = append(d.branches, client.Branch{
			ID: fmt.Sprintf("%02d", i+1), Try: base + "/try", Confirm: base + "/confirm", Cancel: base + "/cancel", Payload: []byte(`{"account":"alice","amount":30}`),
		})
	}
	return d, nil
}

// Run is load.Driver's.
func (d *driver) Run(ctx context.Context) error {
	st, err := d.c.Execute(ctx, client.Tx{Branches: d.branches}, client.Finished)
	if err == nil && !st.Committed() {
		err = fmt.Errorf("%s: %s", st.GetPhase(), st.GetReason())
	}
	return err
}
