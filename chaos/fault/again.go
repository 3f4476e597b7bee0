package fault

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/lockstep-tx/lockstep/chaos/check"
	"github.com/lockstep-tx/lockstep/chaos/proc"
	"github.com/lockstep-tx/lockstep/chaos/seed"
	"github.com/lockstep-tx/lockstep/region/slot"
)

// firstRegion is how journals number the first region.
const firstRegion = 1

// Replayed kills the second region's coordinator, sets back to 0 how far it has read the first one's topic, and starts it again: it
// reads all of it once more (M5).
type Replayed struct{ off bool }

// Name is the fault's.
func (Replayed) Name() string { return "topic-read-from-its-beginning" }

// Available is always.
func (Replayed) Available(Env) error { return nil }

func (r Replayed) disabled() Fault { r.off = true; return r }

// Inject kills, sets back, and starts.
func (r Replayed) Inject(ctx context.Context, e Env) (Active, error) {
	a := &replayed{e: e, of: e.Deployment.Regions[0], reader: e.Deployment.Regions[1]}
	if r.off {
		return a, nil
	}
	for part := range seed.Partitions {
		all, err := seed.Topic(ctx, a.of.BrokerAddr, a.of.Name, part)
		if err != nil {
			return a, err
		}
		a.events += len(all)
	}
	n := a.reader.Coordinators[0]
	n.Kill()
	if err := a.setBack(ctx); err != nil {
		return a, err
	}
	return a, n.Start(ctx)
}

type replayed struct {
	e          Env
	of, reader *proc.Region
	events     int   // in the topic
	was, is    int64 // the offsets that the journal had, added up
}

func (a *replayed) setBack(ctx context.Context) (err error) {
	db, d, err := seed.Open(ctx, a.reader.Journal)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	sum := func(into *int64) error {
		var n sql.NullInt64
		err := db.QueryRowContext(ctx, d.Q("SELECT sum(next_offset) FROM lockstep_offset WHERE origin = ?"), firstRegion).Scan(&n)
		*into = n.Int64
		return err
	}
	if err := sum(&a.was); err != nil {
		return err
	}
	if _, err := db.ExecContext(ctx, d.Q("UPDATE lockstep_offset SET next_offset = 0 WHERE origin = ?"), firstRegion); err != nil {
		return err
	}
	return sum(&a.is)
}

// Effective wants the events that the region had to come again.
func (a *replayed) Effective(ctx context.Context) (Evidence, error) {
	return until(ctx, a.e.wait(20*time.Second), func() (Evidence, bool, error) {
		n := metric(a.reader.Admin[0], fmt.Sprintf("lockstep_replication_duplicates_total{origin=%q}", a.of.Name))
		return Evidence{fmt.Sprintf("%s had read to the offsets %d in all, and began at %d again; of the %d events that stood there %.0f came again", a.reader.Name, a.was, a.is, a.events, n),
			map[string]int64{"events": int64(a.events), "again": int64(n)}}, a.was > 0 && a.is == 0 && a.events > 0 && n >= 0.9*float64(a.events), nil
	})
}

// Recover has nothing to do: it reads on.
func (a *replayed) Recover(context.Context) error { return nil }

// Recovered wants the offsets to be beyond what they were.
func (a *replayed) Recovered(ctx context.Context) (Evidence, error) {
	return until(ctx, a.e.wait(20*time.Second), func() (Evidence, bool, error) {
		db, d, err := seed.Open(ctx, a.reader.Journal)
		if err != nil {
			return Evidence{}, false, err
		}
		var n sql.NullInt64
		err = errors.Join(db.QueryRowContext(ctx, d.Q("SELECT sum(next_offset) FROM lockstep_offset WHERE origin = ?"), firstRegion).Scan(&n), db.Close())
		return Evidence{What: fmt.Sprintf("%s has read to the offsets %d in all", a.reader.Name, n.Int64)}, n.Int64 > a.was, err
	})
}

func (a *replayed) Cleanup() error { return nil }

// Poisoned puts a message into the first region's topic that bears an event's key and is none (M7). The other region must stop that
// slot and go on with all others, until a person says that the slot may go on.
type Poisoned struct{ off bool }

// Name is the fault's.
func (Poisoned) Name() string { return "poisoned-event" }

// Available is always.
func (Poisoned) Available(Env) error { return nil }

func (p Poisoned) disabled() Fault { p.off = true; return p }

// beyond is how far ahead of what is applied the poisoned event claims to be.
const beyond = 10_000

// Inject poisons the slot of an account that is much in use.
func (p Poisoned) Inject(ctx context.Context, e Env) (Active, error) {
	a := &poisoned{e: e, of: e.Deployment.Regions[0], reader: e.Deployment.Regions[1]}
	a.slot = slot.Of(a.of.Accounts[0])
	if p.off {
		return a, nil
	}
	return a, seed.Poison(ctx, a.of.BrokerAddr, a.of.Name, a.slot, beyond)
}

type poisoned struct {
	e          Env
	of, reader *proc.Region
	slot       int
	at         int64 // where the slot stood when it was stopped; 0 while it is not
	others     int64 // how far all others were then, added up
}

// marks gives how far the reader is with the slot, and with all others of the first region.
func (a *poisoned) marks(ctx context.Context) (own, others int64, err error) {
	all, err := check.ReadReaches(ctx, a.reader.Name, a.reader.Journal, a.e.Log.Now)
	for _, r := range all {
		switch {
		case r.Origin != firstRegion:
		case r.Slot == a.slot:
			own = r.Mark
		default:
			others += r.Mark
		}
	}
	return own, others, err
}

func (a *poisoned) stopped() float64 {
	return metric(a.reader.Admin[0], fmt.Sprintf("lockstep_replication_stopped_slots{origin=%q}", a.of.Name))
}

// status is what the operator is told of slots that are stopped: which, and why.
func (a *poisoned) status(ctx context.Context) (slots []int, reason string, err error) {
	out, err := a.e.Deployment.Tool(ctx, "region", "status", "--context", a.reader.File, "-o", "json")
	if err != nil {
		return nil, "", fmt.Errorf("region status: %w: %s", err, out)
	}
	var st any
	if err := json.Unmarshal([]byte(out[max(0, strings.IndexAny(out, "{[")):]), &st); err != nil {
		return nil, "", fmt.Errorf("region status: %w", err)
	}
	each(st, func(key string, v any) {
		list, ok := v.([]any)
		if key != "stopped" || !ok {
			return
		}
		for _, x := range list {
			if m, ok := x.(map[string]any); ok {
				n, _ := m["slot"].(float64)
				slots = append(slots, int(n))
				reason, _ = m["reason"].(string)
			}
		}
	})
	return slots, reason, nil
}

// each calls f with every key in a JSON value.
func each(v any, f func(key string, v any)) {
	switch v := v.(type) {
	case map[string]any:
		for k, x := range v {
			f(k, x)
			each(x, f)
		}
	case []any:
		for _, x := range v {
			each(x, f)
		}
	}
}

// Effective wants the one slot stopped, told to the operator by its number, where it stood, and the others going on.
func (a *poisoned) Effective(ctx context.Context) (Evidence, error) {
	return until(ctx, a.e.wait(20*time.Second), func() (Evidence, bool, error) {
		n := a.stopped()
		own, others, err := a.marks(ctx)
		if n > 0 && a.at == 0 {
			a.at, a.others = own, others
		}
		ev := Evidence{fmt.Sprintf("%s has stopped %.0f slots of %s; slot %d stands at %d, the others went on by %d events", a.reader.Name, n, a.of.Name, a.slot, own, others-a.others),
			map[string]int64{"stopped": int64(n)}}
		if n != 1 || own != a.at || others-a.others < eventsWanted || err != nil {
			return ev, false, err
		}
		slots, reason, err := a.status(ctx)
		ev.What += fmt.Sprintf("; region status names slots %v: %s", slots, reason)
		return ev, len(slots) == 1 && slots[0] == a.slot, err
	})
}

// Recover lets the slot go on, as an operator who has looked does.
func (a *poisoned) Recover(ctx context.Context) error {
	if a.at == 0 {
		return nil
	}
	out, err := a.e.Deployment.Tool(ctx, "region", "unstop", "--context", a.reader.File, "--region", a.reader.Name, "--origin", a.of.Name, "--slot", fmt.Sprint(a.slot), "--why", "the message was no event")
	if err != nil {
		return fmt.Errorf("region unstop: %w: %s", err, out)
	}
	return nil
}

// Recovered wants the slot to go on from where it stood, and nothing to be stopped.
func (a *poisoned) Recovered(ctx context.Context) (Evidence, error) {
	return until(ctx, a.e.wait(20*time.Second), func() (Evidence, bool, error) {
		own, _, err := a.marks(ctx)
		n := a.stopped()
		return Evidence{What: fmt.Sprintf("%s has %.0f slots stopped; slot %d is at %d, and stood at %d", a.reader.Name, n, a.slot, own, a.at)}, n == 0 && own > a.at, err
	})
}

func (a *poisoned) Cleanup() error { return nil }
