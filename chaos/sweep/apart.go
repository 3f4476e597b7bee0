package sweep

import (
	"context"
	"encoding/binary"
	"fmt"
	"slices"
	"time"

	"github.com/lockstep-tx/lockstep/chaos/seed"
	"github.com/lockstep-tx/lockstep/chaos/workload"
)

// find gives a class by its id.
func find(id seed.Class) *class {
	return &classes[slices.IndexFunc(classes, func(c class) bool { return c.id == id })]
}

// truncations empties partitions of the regions' topics (D22), each of another place, and has the product find that; then again
// until there were so many.
func (w *world) truncations(ctx context.Context, n int) error {
	for n > 0 {
		var places [][2]int // region, partition; even slots are the first region's, odd ones the second's
		for part := range seed.Partitions {
			places = append(places, [2]int{part % 2, part})
		}
		w.rnd.Shuffle(len(places), func(i, k int) { places[i], places[k] = places[k], places[i] })
		places = places[:min(n, len(places))]
		n -= len(places)
		for _, at := range places {
			if err := w.truncate(ctx, at[0], at[1]); err != nil {
				return err
			}
		}
		if err := w.until(ctx); err != nil {
			return err
		}
	}
	return nil
}

func (w *world) truncate(ctx context.Context, region, part int) error {
	r := w.d.Regions[region]
	s := &Seed{Class: d22, class: find(d22), Region: r.Name, Engine: "Lockstep's broker", Slot: -1, partition: part, Variant: fmt.Sprintf("partition %d", part), Fault: w.faulty()}
	gone, err := seed.Truncate(ctx, r.BrokerAddr, r.Name, part)
	if err != nil {
		return err
	}
	s.Injected = time.Now()
	s.Planted = seed.Planted{Class: d22, Was: fmt.Sprintf("%d events", len(gone)), Is: "0 events"}
	s.keys = w.young(gone, s.Injected)
	w.take(s)
	w.o.Say("planted %s in %s: %d events gone, %d of them young", s.ID, s.Region, len(gone), len(s.keys))
	return nil
}

// young are the events that a look is to have back: none older than it looks back. What a repair has published anew has the time of
// that, and is as old as it was: it counts with the seed that took it first.
func (w *world) young(gone []seed.Message, now time.Time) (keys []string) {
	for _, m := range gone {
		if now.Sub(m.At) < ageMax && !w.truncated[m.Key] {
			keys = append(keys, m.Key)
		}
	}
	for _, m := range gone {
		w.truncated[m.Key] = true
	}
	return keys
}

// lacking is how many of the events of a D22 the topic lacks.
func (w *world) lacking(ctx context.Context, s *Seed) (int, error) {
	is, err := seed.Topic(ctx, w.d.Regions[w.index(s.Region)].BrokerAddr, s.Region, s.partition)
	there := map[string]bool{}
	for _, m := range is {
		there[m.Key] = true
	}
	n := 0
	for _, key := range s.keys {
		if !there[key] && len(key) == 12 && int(binary.BigEndian.Uint32([]byte(key)))%seed.Partitions == s.partition {
			n++
		}
	}
	return n, err
}

// until goes on with rounds until nothing is awaited any more.
func (w *world) until(ctx context.Context) error {
	for w.awaited() {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if _, err := w.round(ctx, nil, false); err != nil {
			return err
		}
	}
	return nil
}

// rewinds sets books of wallets back to a backup (D21), first one in each region at once, then again. What the product has
// again for other regions' accounts it repairs; the own tail is a person's, whom this plays: everything is confirmed again, since
// nobody has spent it meanwhile.
func (w *world) rewinds(ctx context.Context, n int, load **workload.Load) error {
	for n > 0 {
		both := min(n, len(w.d.Regions))
		n -= both
		at := w.rnd.Perm(len(w.d.Regions))[:both]
		var backups [2]*seed.Backup
		var err error
		for _, i := range at {
			if backups[i], err = seed.BackUp(ctx, w.wallets[i].db, w.wallets[i].d, w.d.Regions[i].Barrier); err != nil {
				return err
			}
		}
		if !sleep(ctx, backupAge) {
			return ctx.Err()
		}
		// What is under way at the restore would be a question to its client, and stay open: it ends first.
		(*load).Stop()
		if _, err := w.rest(ctx); err != nil {
			return err
		}
		w.remember()
		for _, i := range at {
			s := &Seed{Class: d21, class: find(d21), Region: w.d.Regions[i].Name, Engine: w.engine(i, false), Slot: -1}
			if s.gids, err = seed.Rewind(ctx, w.wallets[i].db, w.wallets[i].d, w.d.Regions[i].Barrier, backups[i]); err != nil {
				return err
			}
			s.Injected, s.Variant = time.Now(), fmt.Sprintf("%d transactions lost", len(s.gids))
			s.Planted = seed.Planted{Class: d21}
			w.take(s)
			w.o.Say("planted %s in %s: %s", s.ID, s.Region, s.Variant)
		}
		w.generation++
		if *load, err = w.load(ctx, lanes, think); err != nil {
			return err
		}
		if err := w.until(ctx); err != nil {
			return err
		}
	}
	return nil
}

// decide plays the person for what a restore has lost of the own accounts: every transaction of it is confirmed again.
func (w *world) decide(ctx context.Context) error {
	for s, found := range w.found {
		if s.class.id != d21 {
			continue
		}
		at := w.index(s.Region)
		for _, f := range found {
			own := w.home[f.Account] == at
			switch {
			case f.Class == "D21" && own != (f.Repair == ""):
				s.Wrong = fmt.Sprintf("%s of the region's own account (%v) has the repair %q", f.Gid, own, f.Repair)
			case f.Class == "D21" && own && f.Status == "quarantined":
				if out, err := w.d.Tool(ctx, "drift", "decide", f.ID, "--context", w.d.Regions[0].File, "--repair", "confirm", "--reason", "the restored wallets have the money"); err != nil {
					w.o.Say("drift decide %s: %v: %s", f.ID, err, out)
				}
				s.Decided++
			}
		}
		s.applied = true
	}
	return ctx.Err()
}
