package applier

import (
	"context"
	"fmt"
	"maps"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/lockstep-tx/lockstep/coordinator/engine"
	"github.com/lockstep-tx/lockstep/coordinator/record"
	"github.com/lockstep-tx/lockstep/coordinator/txn"
	"github.com/lockstep-tx/lockstep/region/journal"
	"github.com/lockstep-tx/lockstep/region/registry"
	"github.com/lockstep-tx/lockstep/region/slot"
)

// copies is a participant's copies: an effect takes effect once; what is in refuse is refused as often as it says.
type copies struct {
	mu      sync.Mutex
	applied map[string]int
	calls   map[string]int
	refuse  map[string]int
	urls    map[string]bool
	slots   map[string]int
}

// Start is engine.Invoker's.
func (c *copies) Start(call *engine.Call, done func(engine.CallResult)) {
	go func() {
		c.mu.Lock()
		key := string(call.Gid) + "/" + string(call.Branch)
		c.calls[key]++
		c.urls[call.URL] = true
		c.slots[key] = call.AccountSlot
		outcome := txn.Done
		if c.refuse[key] > 0 {
			c.refuse[key]--
			outcome = txn.Unknown
		} else if c.applied[key]++; c.applied[key] > 1 {
			c.applied[key] = 1 // its barrier
		}
		c.mu.Unlock()
		done(engine.CallResult{Call: call, Outcome: outcome})
	}()
}

type rig struct {
	t     *testing.T
	j     *journal.Journal
	c     *copies
	heads map[int]record.Head
	rows  []engine.Row
	epoch uint64       // of what is added; 0 means 101
	mu    sync.Mutex   // of heads
	reads atomic.Int64 // of the journal
}

// counting is a journal that counts what is read of it.
type counting struct {
	*journal.Journal
	reads *atomic.Int64
}

func (c *counting) EventsAfter(ctx context.Context, origin, n int, after uint64, limit int) ([]record.Event, error) {
	c.reads.Add(1)
	return c.Journal.EventsAfter(ctx, origin, n, after, limit)
}

func (c *counting) Get(ctx context.Context, gid txn.Gid) (*record.Tx, error) {
	c.reads.Add(1)
	return c.Journal.Get(ctx, gid)
}

func newRig(t *testing.T) *rig {
	t.Helper()
	j, err := journal.Open(t.Context(), "sqlite:"+t.TempDir()+"/j.db")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := j.Close(); err != nil {
			t.Error(err)
		}
	})
	return &rig{t: t, j: j, heads: map[int]record.Head{}, c: &copies{applied: map[string]int{}, calls: map[string]int{}, refuse: map[string]int{}, urls: map[string]bool{}, slots: map[string]int{}}}
}

// add journals a finished transaction with branches at the wallets and at a participant that keeps no copies.
func (r *rig) add(gid string, mode txn.Mode, commit bool) {
	r.t.Helper()
	epoch := max(101, r.epoch)
	phase := txn.PhaseAborted
	if commit {
		phase = txn.PhaseCommitted
	}
	tx := record.Tx{State: txn.State{Gid: txn.Gid(gid), Mode: mode, Phase: phase, Epoch: epoch, BegunAt: 1, DecidedAt: 2, UpdatedAt: 3, FinishedAt: 3}}
	for i, u := range []string{"lockstep://wallet/pay/confirm", "http://east-w:1/receive/confirm?x=1", "http://other:1/confirm"} {
		tx.State.Branches = append(tx.State.Branches, txn.Branch{ID: txn.BranchID(fmt.Sprint(i)), Confirm: u, Cancel: u, Account: []string{"ann", "", ""}[i],
			Payload: []byte(`{"account":"bob"}`), Two: txn.OpState{Status: txn.OpDone, Attempts: 1, DoneAt: 3}})
	}
	if err := tx.Close(); err != nil {
		r.t.Fatal(err)
	}
	n := slot.Of(gid)
	row := engine.Row{Gid: tx.State.Gid, Slot: n, Mode: mode, Phase: phase, BegunAt: 1, DecidedAt: 2, FinishedAt: 3, Closed: tx.Closed, Progress: tx.Progress, DecisionEpoch: epoch, FinishEpoch: 101}
	row.Decision = r.heads[n].Next(n, epoch, record.KindDecision, row.Gid, row.Closed)
	row.Finish = row.Decision.Next(n, epoch, record.KindFinish, row.Gid, row.Progress)
	r.rows = append(r.rows, row)
	if err := r.j.Append(r.t.Context(), []engine.Row{row}); err != nil {
		r.t.Fatal(err)
	}
	r.mu.Lock()
	r.heads[n] = row.Finish
	r.mu.Unlock()
}

func (r *rig) start() (*Applier, func()) { return r.startWith(nil, nil) }

// table is the wallets, with copies in both regions, and a participant that keeps none.
func table() *registry.Table {
	return registry.NewTable([]registry.Participant{
		{Name: "wallet", Endpoints: map[string]string{"east": "http://east-w:1", "west": "http://west-w:1"}, AccountField: "account", Can: &registry.Capabilities{Fenced: true, Apply: true}},
		{Name: "other", Endpoints: map[string]string{"east": "http://other:1", "west": "http://other:2"}, Can: &registry.Capabilities{}},
	})
}

// startWith starts an applier that was told of events before; change, where set, changes its configuration.
func (r *rig) startWith(events []record.Event, change func(*Config)) (*Applier, func()) {
	t := table()
	var owners slot.Map
	cfg := Config{Self: "west", Journal: &counting{Journal: r.j, reads: &r.reads}, Invoker: r.c, Table: func() *registry.Table { return t }, Owners: func() *slot.Map { return &owners },
		Every: time.Millisecond, Ends: func(each func(origin, slot int, seq uint64)) {
			r.mu.Lock()
			heads := maps.Clone(r.heads)
			r.mu.Unlock()
			for n, h := range heads {
				each(1, n, h.Seq)
			}
		}}
	if change != nil {
		change(&cfg)
	}
	a := New(cfg)
	a.Told(events)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); a.Run(ctx) }()
	stop := func() { cancel(); <-done }
	r.t.Cleanup(stop)
	return a, stop
}

func (r *rig) until(what string, ok func() bool) {
	r.t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			r.t.Fatalf("waited 20 s: %s", what)
		}
	}
}

func (r *rig) count(key string) (applied, calls int) {
	r.c.mu.Lock()
	defer r.c.mu.Unlock()
	return r.c.applied[key], r.c.calls[key]
}

func TestEveryCommittedEffectIsAppliedHereWhereCopiesAreKept(t *testing.T) {
	r := newRig(t)
	r.add("{s}1", txn.ModeTCC, true)
	r.add("{s}2", txn.ModeTCC, false)
	r.add("{s}3", txn.ModeMsg, true)
	r.add("{s}4", txn.ModeTCC, true)
	a, _ := r.start()
	r.until("all of it is applied", func() bool { return a.Lag() == 0 })
	for _, gid := range []string{"{s}1", "{s}4"} {
		for b, want := range []int{1, 1, 0} {
			if got, _ := r.count(fmt.Sprintf("%s/%d", gid, b)); got != want {
				t.Errorf("%s branch %d was applied %d times, want %d", gid, b, got, want)
			}
		}
	}
	for _, gid := range []string{"{s}2", "{s}3"} {
		if _, calls := r.count(gid + "/0"); calls != 0 {
			t.Errorf("%s was applied: it is no committed TCC transaction", gid)
		}
	}
	if r.c.slots["{s}1/0"] != slot.Of("ann") || r.c.slots["{s}1/1"] != slot.Of("bob") {
		t.Errorf("accounts' slots %v", r.c.slots)
	}
	for u := range r.c.urls {
		if !strings.HasPrefix(u, "http://west-w:1/") || !strings.Contains(u, "/apply") || strings.Contains(u, "receive") != strings.HasSuffix(u, "?x=1") {
			t.Errorf("called %s", u)
		}
	}
}

// One effect that is not taken holds up the number, not the others: the one behind it may be what it waits for.
func TestAnEffectThatIsRefusedHoldsUpTheNumberAndNotTheOthers(t *testing.T) {
	r := newRig(t)
	for i := range 5 {
		r.add(fmt.Sprintf("{s}%d", i), txn.ModeTCC, true)
	}
	r.c.refuse["{s}1/0"] = 1 << 30
	a, stop := r.start()
	r.until("the last one is applied", func() bool { n, _ := r.count("{s}4/1"); return n == 1 })
	r.until("it was tried again", func() bool { _, calls := r.count("{s}1/0"); return calls > 2 })
	applied, err := r.j.Applied(t.Context())
	if err != nil || applied[[2]int{1, slot.Of("{s}1")}] >= 4 || a.Lag() == 0 {
		t.Fatalf("%v, lag %d, %v", applied, a.Lag(), err)
	}
	stop()
	r.c.mu.Lock()
	r.c.refuse["{s}1/0"] = 0
	r.c.mu.Unlock()
	again, _ := r.start() // another process, from what is written
	r.until("all of it is applied", func() bool { return again.Lag() == 0 })
	for i := range 5 {
		if n, _ := r.count(fmt.Sprintf("{s}%d/0", i)); n != 1 {
			t.Errorf("effect %d was applied %d times", i, n)
		}
	}
	if _, calls := r.count("{s}0/0"); calls != 1 {
		t.Errorf("what was noted as applied was sent again, %d times", calls)
	}
}

// TestWhatWasToldIsNotRead: events told in the order in which they became durable, which is not that of the chain, are
// applied without a look into the journal; where some are lost, the journal fills in, and each takes effect once.
func TestWhatWasToldIsNotRead(t *testing.T) {
	for name, lost := range map[string]func(i int) bool{
		"all told":       func(int) bool { return false },
		"some lost":      func(i int) bool { return i%7 == 3 },
		"decisions lost": func(i int) bool { return i%2 == 1 && i > 20 },
		"all lost":       func(int) bool { return true },
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			for i := range 40 {
				r.add(fmt.Sprintf("{s%d}%d", i%3, i), txn.ModeTCC, i%5 != 4)
			}
			var events []record.Event
			for i := len(r.rows) - 1; i >= 0; i-- { // the latest transaction first
				row := &r.rows[i]
				events = append(events, record.Event{Slot: row.Slot, Kind: record.KindDecision, Gid: row.Gid, Epoch: 101, Head: row.Decision, Body: row.Closed},
					record.Event{Slot: row.Slot, Kind: record.KindFinish, Gid: row.Gid, Epoch: 101, Head: row.Finish, Body: row.Progress})
			}
			var kept []record.Event
			for i, e := range events {
				if !lost(i) {
					kept = append(kept, e)
				}
			}
			a, stop := r.startWith(kept, nil)
			r.until("all of it is applied", func() bool { return a.Lag() == 0 })
			stop()
			for i := range 40 {
				want := 1
				if i%5 == 4 {
					want = 0
				}
				if n, calls := r.count(fmt.Sprintf("{s%d}%d/0", i%3, i)); n != want || calls != want {
					t.Errorf("effect %d was applied %d times by %d calls, want %d", i, n, calls, want)
				}
			}
			if reads := r.reads.Load(); (reads == 0) != (len(kept) == len(events)) {
				t.Errorf("the journal was read %d times, %d of %d events were told", reads, len(kept), len(events))
			}
			if a.told.events != 0 || a.told.bytes != 0 && len(kept) == len(events) {
				t.Errorf("%d events of %d bytes are kept still", a.told.events, a.told.bytes)
			}
			applied, err := r.j.Applied(t.Context())
			if err != nil || len(applied) != 3 {
				t.Fatal(applied, err)
			}
			for at, seq := range applied {
				if seq != r.heads[at[1]].Seq {
					t.Errorf("chain %v is noted as applied up to %d of %d", at, seq, r.heads[at[1]].Seq)
				}
			}
		})
	}
}

// TestNobodyKnownIsNotNobody: before the arbiter was heard of the participants nothing is taken for applied, and what names a
// participant that is not registered waits for it.
func TestNobodyKnownIsNotNobody(t *testing.T) {
	r := newRig(t)
	r.add("{s}1", txn.ModeTCC, true)
	var now atomic.Pointer[registry.Table]
	var asked atomic.Int64
	a, _ := r.startWith(nil, func(c *Config) { c.Table = func() *registry.Table { asked.Add(1); return now.Load() } })
	r.until("it looks for the participants", func() bool { return asked.Load() > 20 })
	if a.Lag() == 0 {
		t.Fatal("it was taken for applied before anybody was known")
	}
	now.Store(registry.NewTable(nil)) // wallet is not registered: branch 0 names it, branch 1 is a URL of nobody's
	r.until("the effect waits", func() bool { return a.Waiting() == 1 })
	if a.Lag() == 0 {
		t.Fatal("an effect of a participant that is not registered was taken for applied")
	}
	now.Store(table())
	r.until("all of it is applied", func() bool { return a.Lag() == 0 })
	if n, _ := r.count("{s}1/0"); n != 1 {
		t.Fatalf("applied %d times", n)
	}
}

// TestAnEndpointThatChangesIsCalled: what was tried at the old one is tried at the new one.
func TestAnEndpointThatChangesIsCalled(t *testing.T) {
	r := newRig(t)
	r.add("{s}1", txn.ModeTCC, true)
	r.c.refuse["{s}1/0"] = 3
	var now atomic.Pointer[registry.Table]
	now.Store(table())
	a, _ := r.startWith(nil, func(c *Config) { c.Table = now.Load })
	r.until("it was tried", func() bool { _, calls := r.count("{s}1/0"); return calls > 0 })
	now.Store(registry.NewTable([]registry.Participant{{Name: "wallet", Endpoints: map[string]string{"east": "http://east-w:1", "west": "http://new-w:1"}, AccountField: "account", Can: &registry.Capabilities{Apply: true}}}))
	r.until("all of it is applied", func() bool { return a.Lag() == 0 })
	r.c.mu.Lock()
	defer r.c.mu.Unlock()
	if !r.c.urls["http://new-w:1/pay/apply"] {
		t.Fatalf("called %v", r.c.urls)
	}
}

// TestAChainThatAnotherProcessAppliedGoesOnFromThere: also where what the other has applied was trimmed.
func TestAChainThatAnotherProcessAppliedGoesOnFromThere(t *testing.T) {
	r := newRig(t)
	r.add("{s}1", txn.ModeTCC, true)
	n := slot.Of("{s}1")
	var mine atomic.Bool
	a, _ := r.startWith(nil, func(c *Config) { c.Mine = func(int) bool { return mine.Load() } })
	if err := r.j.SetApplied(t.Context(), map[[2]int]uint64{{1, n}: 0}); err != nil {
		t.Fatal(err)
	}
	future := time.Now().UnixMilli()
	if k, err := r.j.Trim(t.Context(), future, 0, 100); err != nil || k != 0 {
		t.Fatalf("trimmed %d, %v: the copies do not have them", k, err)
	}
	if err := r.j.SetApplied(t.Context(), map[[2]int]uint64{{1, n}: r.heads[n].Seq}); err != nil {
		t.Fatal(err)
	}
	if k, err := r.j.Trim(t.Context(), future, 0, 100); err != nil || k != 1 {
		t.Fatalf("trimmed %d, %v", k, err)
	}
	r.until("it is known what the other has applied", func() bool { return a.Lag() == 0 })
	mine.Store(true) // the other has died
	r.add("{s}2", txn.ModeTCC, true)
	r.until("the next is applied", func() bool { k, _ := r.count("{s}2/0"); return k == 1 })
	if _, calls := r.count("{s}1/0"); calls != 0 {
		t.Errorf("what the other has applied was sent again, %d times", calls)
	}
}

// TestAParticipantThatIsDownHoldsUpItsOwnEffectsAlone: more chains wait for it than are worked at at once.
func TestAParticipantThatIsDownHoldsUpItsOwnEffectsAlone(t *testing.T) {
	r := newRig(t)
	var gids []string
	seen := map[int]bool{}
	for i := 0; len(gids) < 2*roundsAtOnce; i++ {
		if gid := fmt.Sprint("x", i); !seen[slot.Of(gid)] {
			seen[slot.Of(gid)] = true
			gids = append(gids, gid)
			r.add(gid, txn.ModeTCC, true)
			r.c.refuse[gid+"/0"] = 1 << 30
		}
	}
	r.start()
	r.until("every other effect is applied", func() bool {
		for _, gid := range gids {
			if n, _ := r.count(gid + "/1"); n != 1 {
				return false
			}
		}
		return true
	})
}

// TestAChainThatWasCutIsAppliedAgainFromTheCut: the next epoch has the numbers of what was taken out (ADR 9). The applier is
// told, or finds out by what the journal has noted.
func TestAChainThatWasCutIsAppliedAgainFromTheCut(t *testing.T) {
	for _, told := range []bool{true, false} {
		t.Run(fmt.Sprint("told ", told), func(t *testing.T) {
			r := newRig(t)
			n := slot.Of("{a}1")
			r.j.Applier(journal.ApplyConfig{Own: 1})
			for i := range 2 {
				r.add(fmt.Sprintf("{a}%d", i), txn.ModeTCC, true)
			}
			at := r.heads[n]
			seal := *slot.SealOf(101, at.Seq, at.Chain[:])
			seal.Forced = true
			for i := range 5 {
				r.add(fmt.Sprintf("{a}lost%d", i), txn.ModeTCC, true)
			}
			a, stop := r.start()
			defer stop()
			until := func(what string, ok func() bool) {
				t.Helper()
				for end := time.Now().Add(10 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
					if time.Now().After(end) {
						t.Fatal(what)
					}
				}
			}
			noted := func(seq uint64) func() bool {
				return func() bool {
					seqs, err := r.j.Applied(t.Context())
					return err == nil && seqs[[2]int{1, n}] == seq
				}
			}
			until("all is applied", noted(14))
			a.Told([]record.Event{{Slot: n, Kind: record.KindDecision, Gid: "{a}stale", Epoch: 101, Head: record.Head{Seq: 15}}})
			r.mu.Lock()
			r.heads[n] = at
			r.mu.Unlock()
			if _, err := r.j.Cut(t.Context(), n, seal); err != nil {
				t.Fatal(err)
			}
			if told {
				a.Back(1, n, seal.Seq)
			}
			until("the cut is known", func() bool { return a.have([2]int{1, n}) == seal.Seq })
			r.epoch = 301
			for i := range 3 {
				r.add(fmt.Sprintf("{a}next%d", i), txn.ModeTCC, true)
			}
			until("what is new under the old numbers is applied", noted(10))
			r.c.mu.Lock()
			defer r.c.mu.Unlock()
			for i := range 3 {
				if r.c.applied[fmt.Sprintf("{a}next%d/0", i)] != 1 {
					t.Fatalf("%v", r.c.applied)
				}
			}
		})
	}
}
