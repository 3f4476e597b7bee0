package demo

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/lockstep-tx/lockstep/coordinator/api/client"
	"github.com/lockstep-tx/lockstep/region/slot"
)

const (
	wallets     = 24 // accounts, spread over the regions
	loadWorkers = 4  // per region
	callLimit   = 10 * time.Second
	acrossLimit = 3 * time.Second // of a payment asked for across the cut
)

// outcome of a payment as its client knows it.
type outcome int

const (
	inDoubt outcome = iota // no answer, or none that says how it was decided
	paid
	notPaid
)

// transferred is one payment between wallets.
type transferred struct {
	gid, from, to string
	amount        int64
	region        string // whose coordinator was asked
	at            time.Time
	outcome       outcome
}

// load pays between wallets in every region until it is halted.
type load struct {
	accounts []string
	regions  []*region
	every    time.Duration // between two payments of a worker, at the most frequent
	cancel   context.CancelFunc
	wg       sync.WaitGroup
	// apart: payments stay in the region that they are begun in, as they have to while the link is cut.
	apart    atomic.Bool
	crossing atomic.Int64             // payments under way that were chosen while the regions were not apart
	made     map[string]*atomic.Int64 // by region, answered as paid

	mu    sync.Mutex
	home  map[string]string // region by account, as the arbiter said last
	away  map[string]bool   // regions that their clients do not ask any more
	pays  []*transferred
	fresh int // how many of pays have had their outcome looked at
	fault error
}

func newLoad(perSecond int) *load {
	l := &load{made: map[string]*atomic.Int64{}, home: map[string]string{}, away: map[string]bool{}, every: time.Second * loadWorkers / time.Duration(max(1, perSecond))}
	for i := range wallets {
		l.accounts = append(l.accounts, fmt.Sprintf("wallet-%02d", i))
	}
	return l
}

// part keeps payments in their regions from now on, and waits until those under way that touch several have ended: a client that
// waits for the other side of a cut has no time for its own.
func (l *load) part(ctx context.Context) {
	l.mu.Lock()
	l.apart.Store(true)
	l.mu.Unlock()
	for end := time.Now().Add(callLimit); l.crossing.Load() > 0 && time.Now().Before(end) && ctx.Err() == nil; {
		time.Sleep(5 * time.Millisecond)
	}
}

// settle writes down where the accounts have their homes.
func (l *load) settle(owner func(slot int) string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, a := range l.accounts {
		l.home[a] = owner(slot.Of(a))
	}
}

// start begins to pay. Some payments of a region's wish durability global: global says how many of a hundred.
func (l *load) start(ctx context.Context, regions []*region, global int) {
	ctx, l.cancel = context.WithCancel(ctx)
	l.regions = regions
	for i, r := range regions {
		l.made[r.name] = &atomic.Int64{}
		for w := range loadWorkers {
			rnd := rand.New(rand.NewPCG(uint64(i), uint64(w)))
			l.wg.Go(func() { l.work(ctx, r, rnd, global) })
		}
	}
}

// halt ends the load and waits for the payments under way.
func (l *load) halt() {
	if l.cancel != nil {
		l.cancel()
	}
	l.wg.Wait()
}

func (l *load) work(ctx context.Context, r *region, rnd *rand.Rand, global int) {
	tick := time.NewTicker(l.every)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		t, across := l.choose(r, rnd)
		if t == nil {
			continue // no two accounts have their home here, or nobody asks here
		}
		durability := client.Regional
		if rnd.IntN(100) < global {
			durability = client.Global
		}
		err := l.pay(ctx, r, t, durability, callLimit)
		if across {
			l.crossing.Add(-1)
		}
		if err != nil && ctx.Err() == nil {
			select { // a coordinator that is down is not hammered
			case <-ctx.Done():
			case <-time.After(200 * time.Millisecond):
			}
		}
	}
}

// choose makes up a payment. Its gid names the payer's account, so that it lives in that account's home.
// across says that it may touch other regions; whoever pays it takes it off l.crossing afterwards.
func (l *load) choose(r *region, rnd *rand.Rand) (t *transferred, across bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.away[r.name] {
		return nil, false
	}
	var here []string
	for _, a := range l.accounts {
		if l.home[a] == r.name {
			here = append(here, a)
		}
	}
	from, to := here, l.accounts
	if across = !l.apart.Load(); !across {
		to = here
	} else if rnd.IntN(10) == 0 {
		from = l.accounts // one in ten is handed on to the payer's home
	}
	if len(from) == 0 || len(to) < 2 {
		return nil, false
	}
	if across {
		l.crossing.Add(1)
	}
	t = &transferred{from: from[rnd.IntN(len(from))], to: to[rnd.IntN(len(to))], amount: 1 + rnd.Int64N(500), region: r.name, at: time.Now()}
	for t.to == t.from {
		t.to = to[rnd.IntN(len(to))]
	}
	t.gid = fmt.Sprintf("{%s}%s-%d", t.from, r.name, len(l.pays))
	l.pays = append(l.pays, t)
	return t, across
}

// tx is a payment between wallets as the native API takes it: each branch is called in its account's home.
func (t *transferred) tx(durability client.Durability) client.Tx {
	branch := func(id, account string) client.Branch {
		body, err := json.Marshal(transfer{account, t.amount})
		if err != nil {
			panic(err) // a struct of a string and a number
		}
		base := "lockstep://wallet/wallet/" + id
		return client.Branch{ID: id, Try: base + "/try", Confirm: base + "/confirm", Cancel: base + "/cancel", Payload: body, Account: account}
	}
	return client.Tx{Gid: t.gid, Branches: []client.Branch{branch("pay", t.from), branch("receive", t.to)}, Options: client.Options{Durability: durability}}
}

// pay makes the payment and notes what was answered. A payment that has begun ends also when the load is halted.
func (l *load) pay(ctx context.Context, r *region, t *transferred, durability client.Durability, limit time.Duration) error {
	cctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), limit)
	defer cancel()
	st, err := r.native.Execute(cctx, t.tx(durability), client.Decided)
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case err == nil && st.Committed():
		t.outcome = paid
		l.made[r.name].Add(1)
	case err == nil && st.Aborted():
		t.outcome = notPaid
	case status.Code(err) == codes.InvalidArgument || status.Code(err) == codes.Unimplemented:
		l.fault = fmt.Errorf("payment %s: %w", t.gid, err)
	}
	return err
}

// resolve asks for what became of the payments whose answers were lost, and gives how many there were.
func (l *load) resolve(ctx context.Context, patience time.Duration) (doubtful int, err error) {
	deadline := time.Now().Add(patience)
	for _, t := range l.pays { // the load is halted: nobody else writes
		if t.outcome != inDoubt {
			continue
		}
		doubtful++
		for {
			o, err := l.lookUp(ctx, t)
			if err == nil {
				t.outcome = o
				break
			}
			if ctx.Err() != nil || time.Now().After(deadline) {
				return doubtful, fmt.Errorf("nobody knows what became of payment %s: %w", t.gid, err)
			}
			time.Sleep(200 * time.Millisecond)
		}
	}
	return doubtful, nil
}

func (l *load) lookUp(ctx context.Context, t *transferred) (outcome, error) {
	ctx, cancel := context.WithTimeout(ctx, callLimit)
	defer cancel()
	st, err := l.regions[0].native.Get(ctx, t.gid)
	switch {
	case status.Code(err) == codes.NotFound:
		return notPaid, nil // it never came to be; its client has left long ago
	case err != nil:
		return inDoubt, err
	case st.Committed():
		return paid, nil
	case st.Aborted():
		return notPaid, nil
	}
	return inDoubt, fmt.Errorf("it is still %s", st.GetPhase())
}
