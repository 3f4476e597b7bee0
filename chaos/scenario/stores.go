package scenario

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/lockstep-tx/lockstep/chaos/check"
	"github.com/lockstep-tx/lockstep/chaos/proc"
	"github.com/lockstep-tx/lockstep/coordinator/api/client"
)

const (
	// openAtEnd are transactions that are begun when all else has ended, so that what is live can be compared.
	openAtEnd  = 12
	agreeLimit = 8 * time.Second
)

// clusters are the etcds that can be asked from outside: a coordinator's own cannot.
func (r *running) clusters() map[string][]string {
	out := map[string][]string{}
	add := func(name string, nodes []*proc.Node) {
		for _, n := range nodes {
			out[name] = append(out[name], n.Addr)
		}
	}
	add("arbiter", r.d.Arbiter)
	for _, region := range r.d.Regions {
		add("etcd-"+region.Name, region.Etcd)
	}
	return out
}

// terms are the clusters' raft terms: those of members that answer.
func (r *running) terms(ctx context.Context) map[string]uint64 {
	out := map[string]uint64{}
	for name, endpoints := range r.clusters() {
		for _, e := range endpoints {
			if m, err := check.ReadMembers(ctx, name, []string{e}); err == nil {
				out[name] = max(out[name], m[0].Term)
			}
		}
	}
	return out
}

// stores looks at the etcds until they agree, and with who reads them, or should: what they do not agree in then is for the
// checker.
func (r *running) stores(ctx context.Context) (s check.Stores, err error) {
	if err := r.begin(ctx); err != nil {
		return s, err
	}
	for end := time.Now().Add(r.scaled(agreeLimit)); ; {
		if s, err = r.lookAtStores(ctx); err == nil {
			if bad, _ := s.Differences(); len(bad) == 0 {
				break
			}
		}
		if time.Now().After(end) || !sleep(ctx, 200*time.Millisecond) {
			break
		}
	}
	for name, term := range r.terms(ctx) {
		if before := r.before[name]; term > before {
			s.Elections += int(term - before)
		}
	}
	s.Relisted = r.relisted
	var oerr error
	s.Owners, oerr = check.ReadOwners(ctx, r.d.Arbiter[0].Addr)
	return s, errors.Join(err, oerr)
}

func (r *running) lookAtStores(ctx context.Context) (s check.Stores, err error) {
	for name, endpoints := range r.clusters() {
		m, merr := check.ReadMembers(ctx, name, endpoints)
		s.Members, err = append(s.Members, m...), errors.Join(err, merr)
	}
	for _, region := range r.d.Regions {
		if len(region.Etcd) == 0 {
			continue
		}
		for i, c := range region.Coordinators {
			v, verr := check.ReadView(ctx, c.Name, region.Admin[i])
			s.Views, err = append(s.Views, v), errors.Join(err, verr)
		}
		var rerr error
		s.Slots, s.Live, rerr = check.ReadRegion(ctx, region.Etcd[0].Addr)
		err = errors.Join(err, rerr)
	}
	return s, err
}

// begin begins transactions in a region whose etcd can be asked, and leaves them open.
func (r *running) begin(ctx context.Context) error {
	region := r.d.Regions[0]
	if len(region.Etcd) == 0 {
		return nil
	}
	c, err := client.Dial(region.GRPC[0])
	if err != nil {
		return err
	}
	defer c.Close()
	for n := range openAtEnd {
		account := region.Accounts[n%len(region.Accounts)]
		const at = "lockstep://wallet"
		pay := r.d.Participant.Pay
		_, err := c.Begin(ctx, client.Tx{Gid: fmt.Sprintf("{%s}open-%d-%d", account, r.o.Seed, n), Options: client.Options{Timeout: time.Hour}, Branches: []client.Branch{
			{ID: "pay", Account: account, Confirm: at + pay.Confirm, Cancel: at + pay.Cancel, Payload: r.d.Participant.Body(account, 1)}}})
		if err != nil { // what is live is compared nevertheless; a coordinator that cannot begin any more differs in more than this
			r.o.Say("%s: begin a transaction at the end: %v", r.s.ID, err)
			return nil
		}
	}
	return nil
}
