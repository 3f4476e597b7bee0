package proc

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"net/http"

	"github.com/lockstep-tx/lockstep/region/slot"
)

// accounts opens accounts with their homes in both regions, alike in both; half of east's are of slots below Moving.
func (d *Deployment) accounts(ctx context.Context) error {
	var moving, staying, west []string
	per := cmp.Or(d.cfg.Accounts, AccountsPer)
	for i := 0; len(moving) < per/2 || len(staying) < per/2 || len(west) < per; i++ {
		id := fmt.Sprintf("acct%d", i)
		into, most := &west, per
		switch n := slot.Of(id); {
		case n%2 == 0 && n < Moving:
			into, most = &moving, per/2
		case n%2 == 0:
			into, most = &staying, per/2
		}
		if len(*into) == most {
			continue
		}
		*into = append(*into, id)
		d.Opened += Deposit
		for _, r := range d.Regions {
			if err := d.openAccount(ctx, r, id); err != nil {
				return err
			}
		}
	}
	d.Regions[0].Accounts, d.Regions[1].Accounts = append(moving, staying...), west
	return nil
}

// OpenAccounts opens all accounts once more at a region whose wallets have none.
func (d *Deployment) OpenAccounts(ctx context.Context, r *Region) error {
	for _, of := range d.Regions {
		for _, id := range of.Accounts {
			if err := d.openAccount(ctx, r, id); err != nil {
				return err
			}
		}
	}
	return nil
}

func (d *Deployment) openAccount(ctx context.Context, r *Region, id string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, r.Tap.URL()+d.Participant.OpenPath, bytes.NewReader(fill(d.Participant.Open, id, Deposit)))
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode/100 != 2 {
		return fmt.Errorf("open %s in %s: %s", id, r.Name, resp.Status)
	}
	return nil
}
