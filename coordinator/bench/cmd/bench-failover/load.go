package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/lockstep-tx/lockstep/coordinator/api/client"
	"github.com/lockstep-tx/lockstep/coordinator/bench/bed"
	"github.com/lockstep-tx/lockstep/region/slot"
)

const (
	accountsEach = 12 // with their home in each region
	deposit      = 1_000_000_000
	workers      = 12 // per region
	readyLimit   = 30 * time.Second
	answerLimit  = time.Second // what a client waits for a payment
	probeEvery   = 20 * time.Millisecond
	probesAtOnce = 100
	probeLimit   = 30 * time.Second
	// knowLimit is how long the heir may take to work off what it knows before a transaction counts as lost.
	knowLimit = 5 * time.Second
)

// told is a payment that a client was told is committed.
type told struct {
	gid    string
	global bool
	at     time.Time
}

// load pays between wallets in both regions.
type load struct {
	o        options
	clients  [2]*client.Client
	accounts [2][]string // by home
	cancel   [2]context.CancelFunc
	wg       sync.WaitGroup

	mu   sync.Mutex
	told [2][]told // by region
	next int
}

// newLoad opens the accounts, and waits until both regions make payments.
func newLoad(ctx context.Context, b *bed.Bed, o options) (*load, error) {
	l := &load{o: o}
	for i := 0; len(l.accounts[0]) < accountsEach || len(l.accounts[1]) < accountsEach; i++ {
		id := fmt.Sprintf("acct%d", i)
		home := slot.Of(id) % 2
		if len(l.accounts[home]) == accountsEach {
			continue
		}
		l.accounts[home] = append(l.accounts[home], id)
		for _, r := range b.Regions {
			if err := open(ctx, r, id); err != nil {
				return nil, err
			}
		}
	}
	for i, r := range b.Regions {
		var err error
		if l.clients[i], err = client.Dial(r.GRPC); err != nil {
			return l, err
		}
		for until := time.Now().Add(readyLimit); ; time.Sleep(50 * time.Millisecond) {
			if _, err = l.pay(ctx, i, l.accounts[i][0], l.accounts[1-i][0], true); err == nil {
				break
			}
			if time.Now().After(until) || ctx.Err() != nil {
				return l, fmt.Errorf("region %s makes no payment: %w", r.Name, err)
			}
		}
	}
	return l, nil
}

func open(ctx context.Context, r *bed.Region, id string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, r.Wallet+"/accounts", strings.NewReader(fmt.Sprintf(`{"id":%q,"balance":%d}`, id, deposit)))
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("open %s in %s: %s", id, r.Name, resp.Status)
	}
	return nil
}

// pay makes one payment, which lives in the payer's slot. An error when it is not known to be committed.
func (l *load) pay(ctx context.Context, at int, from, to string, global bool) (gid string, err error) {
	l.mu.Lock()
	l.next++
	gid = fmt.Sprintf("{%s}%d-%d", from, at, l.next)
	l.mu.Unlock()
	branch := func(id, account string) client.Branch {
		base := "lockstep://wallet/wallet/" + id
		return client.Branch{ID: id, Account: account, Try: base + "/try", Confirm: base + "/confirm", Cancel: base + "/cancel", Payload: fmt.Appendf(nil, `{"account":%q,"amount":1}`, account)}
	}
	d := client.Regional
	if global {
		d = client.Global
	}
	cctx, cancel := context.WithTimeout(ctx, answerLimit)
	defer cancel()
	s, err := l.clients[at].Execute(cctx, client.Tx{Gid: gid, Branches: []client.Branch{branch("pay", from), branch("receive", to)}, Options: client.Options{Durability: d}}, client.Decided)
	if err == nil && !s.Committed() {
		err = fmt.Errorf("it is %s: %s", s.GetPhase(), s.GetReason())
	}
	return gid, err
}

// start pays in both regions from accounts of their own.
func (l *load) start(ctx context.Context) {
	for i := range l.clients {
		var lctx context.Context
		lctx, l.cancel[i] = context.WithCancel(ctx)
		for range workers {
			l.wg.Go(func() { l.work(lctx, i) })
		}
	}
}

func (l *load) work(ctx context.Context, at int) {
	tick := time.NewTicker(time.Duration(workers / l.o.rate * float64(time.Second)))
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		own := l.accounts[at]
		from := rand.IntN(len(own))
		to := own[(from+1+rand.IntN(len(own)-1))%len(own)]
		if rand.IntN(2) == 0 {
			to = l.accounts[1-at][rand.IntN(accountsEach)]
		}
		global := rand.IntN(100) < l.o.global
		gid, err := l.pay(ctx, at, own[from], to, global)
		if err == nil {
			l.mu.Lock()
			l.told[at] = append(l.told[at], told{gid, global, time.Now()})
			l.mu.Unlock()
		}
	}
}

// leave ends the load of a region: its clients have nobody to ask.
func (l *load) leave(at int) { l.cancel[at]() }

func (l *load) close() {
	for i, c := range l.clients {
		if l.cancel[i] != nil {
			l.cancel[i]()
		}
		if c != nil {
			defer c.Close()
		}
	}
	l.wg.Wait()
}

// probe has new clients come all the time that ask west for a payment from an account of east's, until each of the accounts has
// paid. What it gives waits for that, and says when the first one and the last one did.
func (l *load) probe(ctx context.Context) func() (first, last time.Time, err error) {
	ctx, cancel := context.WithTimeout(ctx, probeLimit)
	var mu sync.Mutex
	var wg sync.WaitGroup
	paid := map[string]time.Time{}
	var failed error
	one := func(from string) {
		_, err := l.pay(ctx, 1, from, l.accounts[1][rand.IntN(accountsEach)], false)
		mu.Lock()
		defer mu.Unlock()
		if _, again := paid[from]; err == nil && !again {
			paid[from] = time.Now()
		} else if err != nil && ctx.Err() == nil {
			failed = err
		}
		if len(paid) == accountsEach {
			cancel()
		}
	}
	wg.Go(func() {
		atOnce := make(chan struct{}, probesAtOnce)
		for i := 0; ctx.Err() == nil; i++ {
			select {
			case atOnce <- struct{}{}:
				wg.Go(func() { one(l.accounts[0][i%accountsEach]); <-atOnce })
			default: // all of them wait
			}
			time.Sleep(probeEvery)
		}
	})
	return func() (first, last time.Time, err error) {
		defer cancel()
		wg.Wait()
		for _, at := range paid {
			if first.IsZero() || at.Before(first) {
				first = at
			}
			if at.After(last) {
				last = at
			}
		}
		if len(paid) < accountsEach {
			err = errors.Join(fmt.Errorf("of %d accounts of east %d have paid in west after %v", accountsEach, len(paid), probeLimit), failed)
		}
		return first, last, err
	}
}

// recovered asks west for everything that clients of east were told is committed.
func (l *load) recovered(ctx context.Context, killed time.Time) map[bool]recovered {
	l.mu.Lock()
	open := l.told[0]
	l.mu.Unlock()
	out := map[bool]recovered{}
	for _, t := range open {
		r := out[t.global]
		r.told++
		out[t.global] = r
	}
	for until := time.Now().Add(knowLimit); len(open) > 0 && time.Now().Before(until); time.Sleep(50 * time.Millisecond) {
		open = l.unknown(ctx, open)
	}
	for _, t := range open {
		r := out[t.global]
		r.lost, r.age = r.lost+1, max(r.age, killed.Sub(t.at))
		out[t.global] = r
	}
	return out
}

// unknown gives those that west does not call committed.
func (l *load) unknown(ctx context.Context, list []told) (out []told) {
	var mu sync.Mutex
	var wg sync.WaitGroup
	queue := make(chan told)
	for range 8 {
		wg.Go(func() {
			for t := range queue {
				cctx, cancel := context.WithTimeout(ctx, answerLimit)
				s, err := l.clients[1].Get(cctx, t.gid)
				cancel()
				if err != nil || !s.Committed() {
					mu.Lock()
					out = append(out, t)
					mu.Unlock()
				}
			}
		})
	}
	for _, t := range list {
		queue <- t
	}
	close(queue)
	wg.Wait()
	return out
}
