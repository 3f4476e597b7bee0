package branch

import (
	"context"
	"database/sql"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"regexp"
	"strings"
	"time"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/lockstep-tx/lockstep/participants/barrier"
)

// Options of a Participant. Zero fields take the default given.
type Options struct {
	// Timeout bounds one run of a function. One that goes on after it is cut off: its transaction is rolled back and its
	// caller told that nothing is known. Defaults to 5 s.
	Timeout time.Duration
	// Workers is how many local transactions may be under way at once for calls that share one. Defaults to 1: what comes
	// meanwhile makes the next transaction larger, and calls of one process never wait for each other's row locks.
	Workers int
	// AloneMax bounds the calls of Alone branches under way. Defaults to 64.
	AloneMax int
	// BatchMax bounds the calls that share a transaction. Defaults to 64.
	BatchMax int
	// QueueMax bounds the calls that wait; more are answered as unknown (503) at once. Defaults to 4,096.
	QueueMax int
	// Log gets what went wrong; nil discards.
	Log *slog.Logger
}

func (o Options) withDefaults() Options {
	def := func(p *int, v int) {
		if *p <= 0 {
			*p = v
		}
	}
	def(&o.Workers, 1)
	def(&o.AloneMax, 64)
	def(&o.BatchMax, 64)
	def(&o.QueueMax, 4096)
	if o.Timeout <= 0 {
		o.Timeout = 5 * time.Second
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	return o
}

// Op is a function over a typed payload. It changes the database through tx alone, which commits some time after it
// returns nil and rolls back otherwise; it neither commits tx nor keeps it. It may be called again after any error, its
// own or the transaction's, never after it was committed. Its error says what the coordinator learns: one that wraps
// barrier.ErrRefused is a No, barrier.ErrOngoing asks for another call later, anything else and a panic mean that nothing
// is known. It should return when ctx ends; it is cut off if it does not.
//
// P is decoded from JSON, or, where it is a pointer to a protobuf message and the call came over gRPC, from protobuf.
type Op[P any] func(ctx context.Context, tx *sql.Tx, call *barrier.Call, payload P) error

// OpAll is an Op for several calls at once: it does all of them or returns an error, after which each is done by itself.
// It saves round trips; it is never needed.
type OpAll[P any] func(ctx context.Context, tx *sql.Tx, calls []*barrier.Call, payloads []P) error

// TCC are the functions of a branch that tries first. All three get the same payload.
type TCC[P any] struct {
	Try, Confirm, Cancel Op[P]
	// Apply posts what Confirm would to a copy of the account, where there was no try; nil where copies are not kept. At a
	// home it finds the try and confirms it. It must not fail for a business reason. With it the try can be made at a copy
	// too (OpHold), where the home was lost: the account's policy does not count there, what it holds does.
	Apply Op[P]
	// TryAll, ConfirmAll and CancelAll do the same for many calls; nil where there is no such function.
	TryAll, ConfirmAll, CancelAll OpAll[P]
	// Alone: each call has a local transaction of its own, for functions that wait for something outside the database.
	Alone bool
	// Effect says what Confirm does to accounts, and does nothing; nil where nobody may ask. An error wraps barrier.ErrInvalid.
	Effect func(payload P) ([]Held, error)
}

// Saga are the functions of a saga's step. Compensate may be nil where there is nothing to take back.
type Saga[P any] struct {
	Action, Compensate Op[P]
	Alone              bool
}

// Participant serves branches over HTTP, gRPC and the batch protocol, all behind one barrier. Register its branches
// first, then serve it. Safe for concurrent use once it serves.
type Participant struct {
	barrier  *barrier.Barrier
	options  Options
	branches map[string]operation                            // by HTTP path and by gRPC method
	sets     int                                             // functions for many calls
	effects  map[string]func(payload []byte) ([]Held, error) // by the branch's name
	movable  Movable                                         // nil where accounts stay
	exec     *executor
}

// operation is one registered function.
type operation struct {
	op    string
	alone bool
	run   func(ctx context.Context, tx *sql.Tx, call *barrier.Call, payload []byte, overGRPC bool) error
	all   func(ctx context.Context, tx *sql.Tx, jobs []*job) error // nil where calls run one by one
	set   int
	// outside takes the place of run and all in an Outside.
	outside OutsideFunc
}

// New returns a participant without branches. Close ends it.
func New(b *barrier.Barrier, o Options) *Participant {
	o = o.withDefaults()
	return &Participant{barrier: b, options: o, branches: map[string]operation{}, effects: map[string]func([]byte) ([]Held, error){}, exec: newExecutor(b, o)}
}

// Close waits for the calls under way; later ones are answered as unknown.
func (p *Participant) Close() { p.exec.close() }

// Barrier returns what the participant's calls go through.
func (p *Participant) Barrier() *barrier.Barrier { return p.barrier }

var branchName = regexp.MustCompile(`^[a-z][a-z0-9-]*(/[a-z][a-z0-9-]*)*$`)

// HandleTCC serves a branch at /name/try, /name/confirm and /name/cancel over HTTP, and as the gRPC service name (with
// dots for slashes) with the methods Try, Confirm and Cancel. It panics on a name that is taken or is not of lower-case
// letters, digits, hyphens and slashes: a mistake of the program.
func HandleTCC[P any](p *Participant, name string, t TCC[P]) {
	handle(p, name, barrier.OpTry, t.Alone, t.Try, t.TryAll)
	handle(p, name, barrier.OpConfirm, t.Alone, t.Confirm, t.ConfirmAll)
	handle(p, name, barrier.OpCancel, t.Alone, t.Cancel, t.CancelAll)
	if t.Apply != nil {
		handle(p, name, OpApply, t.Alone, t.Apply, nil)
		handle(p, name, OpHold, t.Alone, t.Try, nil)
	}
	if t.Effect != nil {
		p.effects[name] = func(raw []byte) ([]Held, error) {
			payload, err := Decode[P](raw, false)
			if err != nil {
				return nil, fmt.Errorf("%w: payload: %w", barrier.ErrInvalid, err)
			}
			return t.Effect(payload)
		}
	}
}

// HandleSaga serves a saga's step at /name/action and /name/compensate; see HandleTCC.
func HandleSaga[P any](p *Participant, name string, s Saga[P]) {
	handle(p, name, barrier.OpAction, s.Alone, s.Action, nil)
	if s.Compensate != nil {
		handle(p, name, barrier.OpCompensate, s.Alone, s.Compensate, nil)
	}
}

// HandleMessage serves a consumer of messages at /name/action; see HandleTCC. What it does takes effect once however
// often the message is delivered.
func HandleMessage[P any](p *Participant, name string, f Op[P]) {
	handle(p, name, barrier.OpAction, false, f, nil)
}

func handle[P any](p *Participant, name, op string, alone bool, f Op[P], all OpAll[P]) {
	o := operation{op: op, alone: alone, run: func(ctx context.Context, tx *sql.Tx, call *barrier.Call, raw []byte, overGRPC bool) error {
		payload, err := Decode[P](raw, overGRPC)
		if err != nil {
			return fmt.Errorf("%w: payload: %w", barrier.ErrInvalid, err)
		}
		return f(ctx, tx, call, payload)
	}}
	if all != nil {
		o.set = p.sets
		p.sets++
		o.all = func(ctx context.Context, tx *sql.Tx, jobs []*job) error {
			calls, payloads := make([]*barrier.Call, len(jobs)), make([]P, len(jobs))
			for i, j := range jobs {
				var err error
				if payloads[i], err = Decode[P](j.payload, j.overGRPC); err != nil {
					return err // each gets its own answer
				}
				calls[i] = j.call
			}
			return all(ctx, tx, calls, payloads)
		}
	}
	register(p.branches, name, o, f != nil)
}

// register puts an operation under its HTTP path and its gRPC method.
func register(branches map[string]operation, name string, o operation, given bool) {
	if !branchName.MatchString(name) || !given {
		panic(fmt.Sprintf("branch: %q with op %s: a name has lower-case letters, digits, hyphens and slashes, and a function", name, o.op))
	}
	for _, address := range []string{"/" + name + "/" + o.op, grpcMethod(name, o.op)} {
		if _, taken := branches[address]; taken {
			panic(fmt.Sprintf("branch: %s is registered twice", address))
		}
		branches[address] = o
	}
}

func grpcMethod(name, op string) string {
	return "/" + strings.ReplaceAll(name, "/", ".") + "/" + strings.ToUpper(op[:1]) + op[1:]
}

// Decode reads a payload as an Op's is read: JSON, or, where P is a pointer to a protobuf message and the call came over
// gRPC, protobuf. None at all is the zero P, as DTM's clients send it where there is nothing to say.
func Decode[P any](raw []byte, overGRPC bool) (payload P, err error) {
	if m, ok := any(payload).(proto.Message); ok { // P is a pointer to a message
		m = m.ProtoReflect().New().Interface()
		payload = m.(P)
		switch {
		case overGRPC:
			err = proto.Unmarshal(raw, m)
		case len(raw) > 0:
			err = protojson.UnmarshalOptions{DiscardUnknown: true}.Unmarshal(raw, m)
		}
		return payload, err
	}
	if len(raw) == 0 {
		return payload, nil
	}
	return payload, json.Unmarshal(raw, &payload)
}

// Call makes one call in this process, at the HTTP path of its function; it is answered as over HTTP: see Status for what an
// error means.
func (p *Participant) Call(ctx context.Context, path string, call *barrier.Call, payload []byte) error {
	o, ok := p.branches[path]
	if !ok {
		return fmt.Errorf("%w: no branch is served at %q", errNoBranch, path)
	}
	if err := isFor(o.op, call); err != nil {
		return err
	}
	return doOne(ctx, p, o, call, payload, false)
}

// Handler serves the branches over HTTP, the batch protocol at BatchPath and messages' check-back at /query-prepared.
func (p *Participant) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.Handle("/", Handler(p))
	mux.Handle("/query-prepared", QueryPrepared(p.barrier, p.options.Log))
	region := p.RegionHandler()
	for _, path := range RegionPaths {
		mux.Handle(path, region)
	}
	return mux
}

// Handler serves the branches of several participants, each behind its own barrier, on one address, with one BatchPath for
// all of them. It panics where two serve the same path.
func Handler(all ...*Participant) http.Handler {
	hosts := make([]host, len(all))
	for i, p := range all {
		hosts[i] = p
	}
	return handlerOf(hosts...)
}

func handlerOf(all ...host) http.Handler {
	mux := http.NewServeMux()
	for _, h := range all {
		for address, o := range h.addresses() {
			if address != strings.ToLower(address) {
				continue // the gRPC method of the same function
			}
			mux.Handle(address, Serve(o.op, func(ctx context.Context, call *barrier.Call, payload []byte) error {
				return doOne(ctx, h, o, call, payload, false)
			}, h.log()))
		}
	}
	mux.Handle("POST "+BatchPath, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { serveBatch(all, w, r) }))
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set(OfferHeader, BatchPath)
		mux.ServeHTTP(w, r)
	})
}
