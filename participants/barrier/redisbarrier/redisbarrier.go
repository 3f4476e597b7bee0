// Package redisbarrier is package barrier for participants whose data is in Redis.
//
// Its law: the fence check, the barrier's marks and the business change are one script, which Redis runs alone and writes
// to its log as one transaction. Duplicates are judged before any balance is looked at.
//
// The marks are DTM's (<gid>-<branch>-<op>-<barrier_id> with the value op, or rollback for the tombstone of a cancel), so
// that a participant written with DTM's SDK and one written with this package can share a database. Beside them is one
// hash per slot, <prefix>:fence:<slot> with epoch, floor and copied, all SlotCount of them made by Migrate: a fence that is
// missing is an error, since a Redis that came back empty has forgotten more than the fence.
//
// Marks of gids that carry a time do not expire: Clean takes them, after it has raised the slot's floor. Others expire
// KeepUntimed after they were set, 30 days unless told otherwise: a call that is repeated later than that runs again.
//
// What was answered is as durable as Redis makes it: with appendonly yes and appendfsync always a crash loses nothing;
// with everysec up to a second of answered calls; a failover to a replica whatever had not reached it. A Redis that evicts
// keys evicts marks, and then repeats run again. Durable says whether a server keeps what it answers.
//
// All keys of a call must be on one node: on a cluster the gid, the business keys and the prefix would need one hash tag,
// which puts everything on one node anyway. Redis undoes nothing when a script fails half-way; see Script.
//
// It is tested on Redis with appendfsync always: one test per rule, duplicates in many goroutines, a client killed with
// SIGKILL, and random sequences beside DTM's own Redis barrier.
package redisbarrier

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/lockstep-tx/lockstep/participants/barrier"
)

// amountMax bounds amounts and epochs: Lua's numbers are exact up to it.
const amountMax = 1<<53 - 1

// Options change how a Barrier judges; the zero value is the strict one.
type Options struct {
	// AllowUnfenced is barrier.Options.AllowUnfenced.
	AllowUnfenced bool
	// GidTime is barrier.Options.GidTime. Without it every mark expires after KeepUntimed.
	GidTime func(gid string) (ms int64, ok bool)
	// Prefix begins the names of the fence hashes. It has no hyphen, so that no mark has such a name. Defaults to "lockstep".
	Prefix string
	// KeepUntimed is how long marks of gids that carry no time live, at least 7 days, which is what DTM advises. Defaults to
	// 30 days.
	KeepUntimed time.Duration
}

func (o Options) checked() (Options, error) {
	if o.Prefix == "" {
		o.Prefix = "lockstep"
	}
	if o.KeepUntimed == 0 {
		o.KeepUntimed = 30 * 24 * time.Hour
	}
	if strings.Contains(o.Prefix, "-") || o.KeepUntimed < 7*24*time.Hour {
		return o, fmt.Errorf("%w: prefix %q, KeepUntimed %s; a prefix has no hyphen, and marks live for 7 days at least", barrier.ErrInvalid, o.Prefix, o.KeepUntimed)
	}
	return o, nil
}

func (o Options) fence(slot int) string { return o.Prefix + ":fence:" + strconv.Itoa(slot) }

// Barrier guards one Redis database. It is safe for concurrent use.
type Barrier struct {
	client  redis.UniversalClient
	options Options
}

// Open opens the database that url names (redis://…) as a participant needs it: contexts end calls, and the client repeats
// nothing by itself, since its repeat would be told apart from the first. The caller closes it.
func Open(ctx context.Context, url string) (*redis.Client, error) {
	o, err := redis.ParseURL(url)
	if err != nil {
		return nil, errors.New("the URL is not of the form redis://user:password@host:port/database") // its text may hold the password
	}
	o.MaxRetries, o.ContextTimeoutEnabled = -1, true
	c := redis.NewClient(o)
	if err := c.Ping(ctx).Err(); err != nil {
		c.Close()
		return nil, fmt.Errorf("open Redis %s: %w", o.Addr, err)
	}
	return c, nil
}

// New returns the barrier of a database whose fences Migrate has made. It does not touch the database.
func New(client redis.UniversalClient, o Options) (*Barrier, error) {
	o, err := o.checked()
	if err != nil {
		return nil, err
	}
	return &Barrier{client, o}, nil
}

// Client returns the guarded database, for reads and for changes that belong to no transaction.
func (b *Barrier) Client() redis.UniversalClient { return b.client }

// Migrate makes all fences at epoch 1. It may run any number of times; fences that are there stay as they are.
func Migrate(ctx context.Context, client redis.UniversalClient, o Options) error {
	o, err := o.checked()
	if err != nil {
		return err
	}
	_, err = client.Pipelined(ctx, func(p redis.Pipeliner) error {
		for n := range barrier.SlotCount {
			p.HSetNX(ctx, o.fence(n), "epoch", 1)
			p.HSetNX(ctx, o.fence(n), "floor", 0)
			p.HSetNX(ctx, o.fence(n), "copied", 0)
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("migrate Redis barrier: %w", err)
	}
	return nil
}

// Durable returns nil if the server keeps every answered write through a crash and evicts nothing, and else what to
// set. It says nothing of replicas.
func (b *Barrier) Durable(ctx context.Context) error {
	var errs []error
	for _, want := range [][2]string{{"appendonly", "yes"}, {"appendfsync", "always"}, {"maxmemory-policy", "noeviction"}} {
		got, err := b.client.ConfigGet(ctx, want[0]).Result()
		if err != nil {
			return fmt.Errorf("ask Redis for %s: %w", want[0], err)
		}
		if got[want[0]] != want[1] {
			errs = append(errs, fmt.Errorf("Redis has %s %s: a participant's answers need %s", want[0], got[want[0]], want[1]))
		}
	}
	return errors.Join(errs...)
}

// Change adds By to an integer: the field of a hash, or where Field is empty the whole value of Key. What it takes away must
// be there.
type Change struct {
	Key, Field string
	By         int64
	// Overdraft is how far below zero a change may go that takes away. Defaults to 0.
	Overdraft int64
	// Create lets Key begin with this change; without it a key that is missing is refused. A missing field of a hash is 0.
	Create bool
}

// Work is the business of a call: changes that are all possible and made, or refused with nothing changed; or a script.
type Work struct {
	Changes []Change
	// Script runs instead of Changes; Keys and Args are its KEYS and ARGV.
	Script *Script
	Keys   []string
	Args   []any
}

// The fields of an account's hash that Freeze, Spend and Release change.
const (
	Available = "available"
	Frozen    = "frozen"
)

// Freeze is the try of a debit: n goes from available to frozen.
func Freeze(account string, n int64) Work {
	return Work{Changes: []Change{{Key: account, Field: Available, By: -n}, {Key: account, Field: Frozen, By: n}}}
}

// Spend is its confirm: n goes from frozen.
func Spend(account string, n int64) Work {
	return Work{Changes: []Change{{Key: account, Field: Frozen, By: -n}}}
}

// Release is its cancel: n goes back from frozen to available.
func Release(account string, n int64) Work {
	return Work{Changes: []Change{{Key: account, Field: Frozen, By: -n}, {Key: account, Field: Available, By: n}}}
}

// Do runs one branch call in one script: fence, marks, then work. It is to Redis what barrier.Barrier's Do is to SQL, with
// the same outcomes and errors; work that cannot be done is barrier.ErrRefused. A branch id and an op have no hyphen here
// (barrier.ErrInvalid), since DTM's keys are joined with hyphens.
//
// After any other error, those of ctx included, the outcome is unknown and the call is to be repeated.
// Source: dtm-wire.md section 11.3; serves guarantee G5.
func (b *Barrier) Do(ctx context.Context, call *barrier.Call, w Work) (barrier.Outcome, error) {
	e, err := call.Enter(b.options.AllowUnfenced)
	if err != nil {
		return barrier.Unknown, err
	}
	return b.run(ctx, call, e, w, false)
}

// QueryPrepared answers a message's check-back; see barrier.Barrier's QueryPrepared.
func (b *Barrier) QueryPrepared(ctx context.Context, call *barrier.Call) error {
	c := &barrier.Call{TransType: call.TransType, Gid: call.Gid, BranchID: "00", Op: barrier.OpMsg, Fence: call.Fence, Account: call.Account}
	e, err := c.Enter(b.options.AllowUnfenced)
	if err != nil {
		return err
	}
	_, err = b.run(ctx, c, e, Work{}, true)
	return err
}

// request is what the script is told beside its keys; numbers are indexes into KEYS, 0 for none.
type request struct {
	Undone    int            `json:"undone"`
	Rival     int            `json:"rival"`
	Opposites []opposite     `json:"opposites"`
	Fences    []fenceRequest `json:"fences"`
	Changes   []changeOf     `json:"changes"`
	TimeMS    int64          `json:"time"` // of the gid, -1 if it carries none
	TTL       int64          `json:"ttl"`  // of marks in seconds, 0 for ever
	Msg       bool           `json:"msg"`
	Query     bool           `json:"query"`
	Business  int            `json:"business"` // the key before the script's first
}

type opposite struct {
	Key int    `json:"key"`
	Op  string `json:"op"`
}

type fenceRequest struct {
	Key   int   `json:"key"`
	Slot  int   `json:"slot"`
	Epoch int64 `json:"epoch"`
}

type changeOf struct {
	Key       int    `json:"key"`
	Field     string `json:"field"`
	By        string `json:"by"`
	Overdraft int64  `json:"overdraft"`
	Create    bool   `json:"create"`
}

func (b *Barrier) run(ctx context.Context, call *barrier.Call, e barrier.Entry, w Work, query bool) (barrier.Outcome, error) {
	invalid := func(format string, args ...any) (barrier.Outcome, error) {
		return barrier.Unknown, fmt.Errorf("%w: barrier %s: %s", barrier.ErrInvalid, call, fmt.Sprintf(format, args...))
	}
	if strings.Contains(call.BranchID, "-") || strings.Contains(call.Op, "-") {
		return invalid("a branch id and an op have no hyphen on Redis")
	}
	var keys []string
	add := func(key string) int { keys = append(keys, key); return len(keys) }
	mark := func(op string) int {
		if op == "" {
			return 0
		}
		return add(call.Gid + "-" + call.BranchID + "-" + op + "-" + e.BarrierID)
	}
	mark(call.Op)
	r := request{
		Undone: mark(e.Undone), Rival: mark(e.Rival), Opposites: []opposite{}, Changes: []changeOf{}, TimeMS: -1,
		TTL: int64((b.options.KeepUntimed + time.Second - 1) / time.Second), Msg: call.Op == barrier.OpMsg, Query: query,
	}
	for _, op := range e.Opposites {
		r.Opposites = append(r.Opposites, opposite{mark(op), op})
	}
	if b.options.GidTime != nil {
		if ms, ok := b.options.GidTime(call.Gid); ok {
			r.TimeMS, r.TTL = ms, 0
		}
	}
	for _, f := range e.Fences {
		if f.Epoch > amountMax {
			return invalid("epoch %d", f.Epoch)
		}
		r.Fences = append(r.Fences, fenceRequest{add(b.options.fence(f.Slot)), f.Slot, f.Epoch})
	}
	ours := len(keys)
	for _, c := range w.Changes {
		if c.By > amountMax || c.By < -amountMax || c.Overdraft < 0 || c.Overdraft > amountMax || c.Key == "" {
			return invalid("change %+v", c)
		}
		r.Changes = append(r.Changes, changeOf{add(c.Key), c.Field, strconv.FormatInt(c.By, 10), c.Overdraft, c.Create})
	}
	script, args := plain, []any(nil)
	if w.Script != nil {
		if len(w.Changes) > 0 {
			return invalid("changes and a script")
		}
		r.Business = len(keys)
		keys = append(keys, w.Keys...)
		script, args = w.Script.script, w.Args
	}
	for _, k := range keys[ours:] {
		for _, own := range keys[:ours] {
			if k == own {
				return invalid("business key %q is the barrier's own", k)
			}
		}
	}
	told, err := json.Marshal(r)
	if err != nil {
		return barrier.Unknown, err
	}
	answer, err := script.Run(ctx, b.client, keys, append([]any{told}, args...)...).StringSlice()
	if err != nil {
		return barrier.Unknown, fmt.Errorf("barrier %s: %w", call, err)
	}
	return judge(call, answer)
}

// judge reads the script's answer: a word and what belongs to it.
func judge(call *barrier.Call, answer []string) (barrier.Outcome, error) {
	detail := strings.Join(answer[1:], " ")
	say := func(sentinel error, format string, args ...any) (barrier.Outcome, error) {
		return barrier.Unknown, fmt.Errorf("%w: barrier %s: %s", sentinel, call, fmt.Sprintf(format, args...))
	}
	switch answer[0] {
	case "done":
		return barrier.Done, nil
	case "repeated":
		return barrier.Repeated, nil
	case "empty":
		return barrier.Empty, nil
	case "late":
		return say(barrier.ErrRefused, "too late, what takes it back has been here")
	case "refused":
		return say(barrier.ErrRefused, "%s", detail)
	case "ongoing":
		return say(barrier.ErrOngoing, "%s", detail)
	case "undecided":
		return say(barrier.ErrRefused, "the local part is not committed")
	case "duplicate":
		return say(barrier.ErrDuplicate, "the message was prepared before or has been decided")
	case "contradiction":
		return say(barrier.ErrContradiction, "%s of this branch has been here", detail)
	case "stale":
		return say(barrier.ErrStale, "a slot is at a newer epoch (slot, epoch: %s)", detail)
	case "copy":
		return say(barrier.ErrStale, "slot %s has its home elsewhere", detail)
	case "floor":
		if call.Op == barrier.OpTry || call.Op == barrier.OpAction || call.Op == barrier.OpMsg {
			return say(barrier.ErrRefused, "older than the marks that are kept")
		}
		return barrier.Unknown, fmt.Errorf("barrier %s: older than the marks that are kept, and none is left; an operator must look", call)
	case "nofence":
		return barrier.Unknown, fmt.Errorf("barrier %s: no fence of slot %s: this Redis was not migrated, or has lost its data; an operator must look", call, detail)
	}
	return barrier.Unknown, fmt.Errorf("barrier %s: the script answered %q", call, answer)
}
