package fault

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/lockstep-tx/lockstep/chaos/check"
	"github.com/lockstep-tx/lockstep/chaos/netproxy"
	"github.com/lockstep-tx/lockstep/chaos/proc"
	"github.com/lockstep-tx/lockstep/chaos/seed"
)

// Topic alters what stands in the first region's topic while the other region cannot read it, and lets it read then.
type Topic struct {
	Title string
	alter func(a *altered, ctx context.Context) (what string, there bool, err error)
	off   bool
}

// eventsWanted are published while nobody can read them, before they are altered.
const eventsWanted = 60

// Disordered has the events in another order, and each of them twice (M4).
func Disordered() Fault { return Topic{Title: "events-disordered", alter: (*altered).shuffle} }

// HeadLost has the events before a moment away, read or not (K9).
func HeadLost() Fault { return Topic{Title: "topic-head-lost", alter: (*altered).truncate} }

// TailLost has the broker on the data of a while ago: offsets are given again (K9).
func TailLost() Fault { return Topic{Title: "topic-tail-lost", alter: (*altered).rewind} }

// Recreated deletes the topic; whoever misses it makes it anew (K9).
func Recreated() Fault { return Topic{Title: "topic-recreated", alter: (*altered).recreate} }

// Name is the fault's.
func (t Topic) Name() string { return t.Title }

// Available is always.
func (Topic) Available(Env) error { return nil }

func (t Topic) disabled() Fault { t.off = true; return t }

// Inject cuts the other region's reading, waits for events, and alters them.
func (t Topic) Inject(ctx context.Context, e Env) (Active, error) {
	a := &altered{t: t, e: e, of: e.Deployment.Regions[0], reader: e.Deployment.Regions[1], rnd: e.rand(4)}
	for _, k := range e.Deployment.Links {
		if k.Counters().Route == a.reader.Name+"-"+a.of.Name+"/kafka" {
			a.links = append(a.links, k)
		}
	}
	if t.off {
		return a, nil
	}
	for _, k := range a.links {
		if err := k.Cut(netproxy.Drop); err != nil {
			return a, err
		}
	}
	var err error
	a.what, a.there, err = t.alter(a, ctx)
	return a, err
}

type altered struct {
	t          Topic
	e          Env
	of, reader *proc.Region
	links      []*netproxy.Link
	rnd        *rand.Rand
	what       string
	there      bool
	before     coped
	gid        string // decided when nobody could read it
}

// coped is what the reader's region has done about a topic that was not as it should be.
type coped struct{ again, filled float64 }

func (a *altered) coped() coped {
	of := func(name string) float64 {
		return metric(a.reader.Admin[0], fmt.Sprintf("lockstep_replication_%s{origin=%q}", name, a.of.Name))
	}
	return coped{of("duplicates_total"), of("filled_total")}
}

// ends are the offsets after the last message of each partition, added up.
func (a *altered) ends(ctx context.Context) (sum int64, err error) {
	for part := range seed.Partitions {
		n, err := seed.End(ctx, a.of.BrokerAddr, a.of.Name, part)
		if err != nil {
			return 0, err
		}
		sum += n
	}
	return sum, nil
}

// more waits until so many messages have come to the topic.
func (a *altered) more(ctx context.Context) error {
	from, err := a.ends(ctx)
	if err != nil {
		return err
	}
	_, err = until(ctx, a.e.wait(15*time.Second), func() (Evidence, bool, error) {
		n, err := a.ends(ctx)
		return Evidence{What: fmt.Sprintf("%d messages have come", n-from)}, n-from >= eventsWanted, err
	})
	return err
}

func (a *altered) shuffle(ctx context.Context) (string, bool, error) {
	if err := a.more(ctx); err != nil {
		return "", false, err
	}
	moved, inverted, repeated := 0, 0, 0
	for part := range seed.Partitions {
		n, err := seed.Shuffle(ctx, a.of.BrokerAddr, a.of.Name, part, a.rnd)
		if err != nil {
			return "", false, err
		}
		i, r, err := seed.Disorder(ctx, a.of.BrokerAddr, a.of.Name, part)
		if err != nil {
			return "", false, err
		}
		moved, inverted, repeated = moved+n, inverted+i, repeated+r
	}
	return fmt.Sprintf("%d events of %s stand in its topic in another order: %d behind a later one of their slot, %d again", moved, a.of.Name, inverted, repeated), inverted >= eventsWanted/4 && repeated >= eventsWanted, nil
}

func (a *altered) truncate(ctx context.Context) (string, bool, error) {
	if err := a.more(ctx); err != nil {
		return "", false, err
	}
	gone := 0
	for part := range seed.Partitions {
		all, err := seed.Topic(ctx, a.of.BrokerAddr, a.of.Name, part)
		if err == nil && len(all) > 0 { // a region's slots are not in all partitions
			all, err = seed.Truncate(ctx, a.of.BrokerAddr, a.of.Name, part)
		}
		if err != nil {
			return "", false, err
		}
		gone += len(all)
	}
	return fmt.Sprintf("%d events of %s are away from its topic", gone, a.of.Name), gone >= eventsWanted/2, nil
}

// rewind takes a copy of the broker's data, lets events come, and starts the broker on the copy.
func (a *altered) rewind(ctx context.Context) (string, bool, error) {
	copied := a.of.BrokerDir + ".copy"
	a.of.Broker.Kill()
	if err := os.CopyFS(copied, os.DirFS(a.of.BrokerDir)); err != nil {
		return "", false, err
	}
	if err := a.of.Broker.Start(ctx); err != nil {
		return "", false, err
	}
	if err := a.more(ctx); err != nil {
		return "", false, err
	}
	last, err := a.ends(ctx)
	if err != nil {
		return "", false, err
	}
	a.of.Broker.Kill()
	if err := errors.Join(os.RemoveAll(a.of.BrokerDir), os.Rename(copied, a.of.BrokerDir)); err != nil {
		return "", false, err
	}
	if err := a.of.Broker.Start(ctx); err != nil {
		return "", false, err
	}
	now, err := a.ends(ctx)
	return fmt.Sprintf("%s's broker is on the data of a while ago (%s): its topic ends at %d messages, and ended at %d", a.of.Name, filepath.Base(a.of.BrokerDir), now, last), now < last, err
}

func (a *altered) recreate(ctx context.Context) (string, bool, error) {
	if err := a.more(ctx); err != nil {
		return "", false, err
	}
	last, err := a.ends(ctx)
	if err != nil {
		return "", false, err
	}
	if err := seed.Drop(ctx, a.of.BrokerAddr, a.of.Name); err != nil {
		return "", false, err
	}
	var now int64
	_, err = until(ctx, a.e.wait(20*time.Second), func() (Evidence, bool, error) {
		now, err = a.ends(ctx)
		return Evidence{What: "the topic is not there again"}, err == nil, err
	})
	return fmt.Sprintf("the topic of %s was deleted and is there anew: it ends at %d messages, and ended at %d", a.of.Name, now, last), now < last, err
}

// Effective wants the topic to be altered, as it is read again, while the other region lacks what stood in it.
func (a *altered) Effective(ctx context.Context) (Evidence, error) {
	a.before = a.coped()
	return until(ctx, a.e.wait(10*time.Second), func() (Evidence, bool, error) {
		behind, err := a.lacks(ctx)
		return Evidence{fmt.Sprintf("%s; %s lacks %d transactions of it", a.what, a.reader.Name, behind), map[string]int64{"behind": int64(behind)}}, a.there && behind > 0, err
	})
}

// lacks is how many transactions of the one region's journal the other's has not.
func (a *altered) lacks(ctx context.Context) (int, error) {
	own, _, err := check.ReadJournal(ctx, a.of.Name, a.of.Journal)
	if err != nil {
		return 0, err
	}
	far, _, err := check.ReadJournal(ctx, a.reader.Name, a.reader.Journal)
	has := map[string]bool{}
	for _, d := range far {
		has[d.Gid] = true
	}
	n := 0
	for _, d := range own {
		if !has[d.Gid] {
			n, a.gid = n+1, d.Gid
		}
	}
	return n, err
}

// Recover lets the other region read.
func (a *altered) Recover(context.Context) error { return a.Cleanup() }

// Recovered wants the other region to have dropped what came again, or to have asked for what was away; and the last that it lacked.
func (a *altered) Recovered(ctx context.Context) (Evidence, error) {
	return until(ctx, a.e.wait(30*time.Second), func() (Evidence, bool, error) {
		now := a.coped()
		now.again, now.filled = now.again-a.before.again, now.filled-a.before.filled
		d, _, err := check.ReadJournal(ctx, a.reader.Name, a.reader.Journal)
		there := false
		for i := range d {
			there = there || d[i].Gid == a.gid
		}
		did := now.filled
		if strings.HasPrefix(a.t.Title, "events-") {
			did = now.again
		}
		time.Sleep(100 * time.Millisecond) // to look is a load too
		return Evidence{fmt.Sprintf("%s dropped %.0f events that came again, and asked %s's journal for %.0f; it has what it lacked: %v", a.reader.Name, now.again, a.of.Name, now.filled, there),
			map[string]int64{"again": int64(now.again), "filled": int64(now.filled)}}, there && did > 0, err
	})
}

// Cleanup heals the links.
func (a *altered) Cleanup() error {
	for _, k := range a.links {
		k.Heal()
	}
	return nil
}
