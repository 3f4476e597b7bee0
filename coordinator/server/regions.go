package server

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"strconv"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/lockstep-tx/lockstep/coordinator/api/admin"
	"github.com/lockstep-tx/lockstep/coordinator/engine"
	"github.com/lockstep-tx/lockstep/coordinator/store/etcdstore"
	"github.com/lockstep-tx/lockstep/coordinator/txn"
	"github.com/lockstep-tx/lockstep/region/applier"
	"github.com/lockstep-tx/lockstep/region/arbiter"
	"github.com/lockstep-tx/lockstep/region/eventlog"
	"github.com/lockstep-tx/lockstep/region/place"
	"github.com/lockstep-tx/lockstep/region/reconcile"
	"github.com/lockstep-tx/lockstep/region/replica"
	"github.com/lockstep-tx/lockstep/region/slot"
	"github.com/lockstep-tx/lockstep/region/topology"
)

// regions is what a coordinator of a deployment with several regions has beside the others; nil where there is one.
type regions struct {
	file    *topology.File
	arbiter *arbiter.Arbiter
	place   *place.Place
	http    *http.Client // to participants
	admin   *http.Client // to the other regions' coordinators
	replica *replica.Service
	applier *applier.Applier
	posts   posts
	holds   holds
}

// openRegions reads the regions file and asks the arbiter who this region is.
func (s *Server) openRegions(ctx context.Context) error {
	c := s.cfg
	if c.RegionsFile == "" {
		return nil
	}
	f, err := topology.Load(c.RegionsFile, c.ArbiterEndpoints...)
	if err != nil {
		return fmt.Errorf("regions-file: %w", err)
	}
	if _, ok := f.Regions[c.Region]; !ok {
		return fmt.Errorf("region: %q is not in %s, which has %v", c.Region, c.RegionsFile, f.Names())
	}
	s.front.say("the arbiter is asked for the first time")
	cli, err := etcdstore.Connect(ctx, etcdstore.Cluster{Endpoints: f.Arbiter, CAFile: f.ArbiterCa, CertFile: f.ArbiterCert, KeyFile: f.ArbiterKey, RequireLeader: true})
	if err != nil {
		return fmt.Errorf("regions-file: arbiter: %w", err)
	}
	s.onClose(cli.Close)
	secure, err := s.branchTLS()
	if err != nil {
		return err
	}
	s.regions = &regions{file: f, posts: posts{owed: map[int][]*post{}, read: map[int]readAt{}}, arbiter: arbiter.New(cli, s.log), http: &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{TLSClientConfig: secure, MaxIdleConnsPerHost: 16}}}
	s.regions.admin = &http.Client{Timeout: 10 * time.Second, Transport: s.peerTransport()}
	s.regions.place, err = place.New(ctx, place.Config{
		Self: c.Region, Topology: f, Arbiter: s.regions.arbiter, Forward: forwarder{s}, Arrivals: s.arrivals, Reached: s.reached, Cut: s.cut, CaughtUp: s.caughtUp, Post: late{s}.Post, Cancel: s.cancelFrom, End: s.endTry, Close: s.closeDivergences, Noted: s.noted, Decided: s.decidedPast, HTTP: s.regions.http, Log: s.log,
	})
	if errors.Is(err, arbiter.ErrNoDeployment) {
		return fmt.Errorf("regions-file: %w", err)
	}
	return err
}

// peerTransport asks the other regions' admin addresses: by this coordinator's certificate, or with LOCKSTEP_TOKEN.
func (s *Server) peerTransport() http.RoundTripper {
	var secure *tls.Config
	if s.certs != nil {
		secure = s.certs.Peer()
	}
	return withToken{token: os.Getenv("LOCKSTEP_TOKEN"), next: &http.Transport{TLSClientConfig: secure, MaxIdleConnsPerHost: 16}}
}

// withToken adds a token to requests.
type withToken struct {
	token string
	next  http.RoundTripper
}

// RoundTrip is http.RoundTripper's.
func (b withToken) RoundTrip(r *http.Request) (*http.Response, error) {
	if b.token != "" {
		r = r.Clone(r.Context())
		r.Header.Set("Authorization", "Bearer "+b.token)
	}
	return b.next.RoundTrip(r)
}

// forwarder is the peers' client, which is made later.
type forwarder struct{ s *Server }

// Forward is engine.Forwarder's.
func (f forwarder) Forward(ctx context.Context, to engine.Member, req engine.Request) (engine.Reply, error) {
	return f.s.peers.Forward(ctx, to, req)
}

// beyond is the engine's view of the other regions; nil where there are none.
func (s *Server) beyond() engine.Regions {
	if s.regions == nil {
		return nil
	}
	return s.regions.place
}

// resolver gives branch calls their addresses by the homes of their accounts; nil where there is one region.
func (s *Server) resolver() func(*engine.Call) (*engine.Call, error) {
	if s.regions == nil {
		return nil
	}
	return s.regions.place.Resolve
}

// buildRegions makes what replicates; the runner is there.
func (s *Server) buildRegions() error {
	if s.regions == nil {
		return nil
	}
	r, dep := s.regions, s.regions.place.Deployment()
	own := r.file.Regions[s.cfg.Region]
	secure, err := own.KafkaTLS()
	if err != nil {
		return fmt.Errorf("regions-file: regions.%s: %w", s.cfg.Region, err)
	}
	cfg := replica.Config{
		TLS: secure, Region: s.cfg.Region, Index: r.place.Index(), Journal: s.journal, Brokers: own.Kafka, Partitions: r.file.Partitions, HTTP: r.admin,
		Owners: r.place.Owners, Seals: r.arbiter.Seals, Live: func() eventlog.Live {
			open, backlog := s.runner.Counts()
			return eventlog.Live{Member: s.member.ID, Open: open, Unpublished: backlog}
		},
		Mine: func(part int) bool { return s.mine(part) }, Shared: !s.cfg.Embedded, Registerer: s.metrics.Registry(), Log: s.log,
	}
	for _, name := range r.file.Names() {
		if name == s.cfg.Region {
			continue
		}
		index := dep.Index(name)
		if index == 0 {
			return fmt.Errorf("regions-file: region %q is not one of the deployment's %v; next: lockstep region init --context %s", name, dep.Regions, s.cfg.RegionsFile)
		}
		theirs, err := r.file.Regions[name].KafkaTLS()
		if err != nil {
			return fmt.Errorf("regions-file: regions.%s: %w", name, err)
		}
		cfg.Peers = append(cfg.Peers, replica.Peer{TLS: theirs, Name: name, Index: index, Brokers: r.file.Regions[name].Kafka, AdminURLs: r.file.Regions[name].Admin})
	}
	r.applier = applier.New(applier.Config{
		Self: s.cfg.Region, Journal: s.journal, Invoker: s.invoker, Table: r.place.Registry().Table, Owners: r.place.Owners,
		Ends: func(each func(origin, slot int, seq uint64)) { r.replica.Ends(each) },
		Mine: func(n int) bool { return s.mine(n % r.file.Partitions) }, Log: s.log,
	})
	cfg.Durable, cfg.Cut = r.applier.Told, r.applier.Back
	r.replica, err = replica.New(cfg)
	return err
}

// mine spreads partitions over the region's coordinators. Two may think the same one theirs for a while: that is harmless.
func (s *Server) mine(part int) bool {
	v := s.runner.View()
	if v == nil {
		return false
	}
	ids := make([]string, len(v.Members))
	for i, m := range v.Members {
		ids[i] = m.ID
	}
	return slot.Prefer(part, ids) == s.member.ID
}

func (s *Server) runRegions(ctx context.Context, g *errgroup.Group) {
	g.Go(func() error { s.regions.place.Run(ctx); return nil })
	g.Go(func() error { return s.regions.replica.Run(ctx) })
	g.Go(func() error { s.regions.applier.Run(ctx); return nil })
	g.Go(func() error { s.forgetDecisions(ctx); return nil })
	g.Go(func() error { s.findDoubts(ctx); return nil })
}

// RegionStatus is what GET /v1/region/status answers.
type RegionStatus struct {
	replica.Status
	Member string `json:"member"`
	// Version of the program, and the time of day here in unix milliseconds.
	Version   string `json:"version"`
	NowMillis int64  `json:"now_ms"`
	// Slots by status, of those that the region owns; Held of those that this coordinator holds.
	Slots map[slot.Status]int `json:"slots"`
	Held  int                 `json:"held"`
	// ArbiterMillis is how long ago the arbiter was last heard; -1 never.
	ArbiterMillis int64 `json:"arbiter_ms"`
	// Applied effects since the start; ApplyLag events that the copies lack.
	Applied  uint64 `json:"applied"`
	ApplyLag uint64 `json:"apply_lag"`
	// Unsettled: slots that the region took by force and whose loss is not worked off. Diverged: what this region had when it
	// was lost, and the slots' owners have not taken over.
	Unsettled int `json:"unsettled,omitempty"`
	// Unadopted are slots that came here and whose accounts did not yet: payments of them wait.
	Unadopted []int            `json:"unadopted,omitempty"`
	Diverged  []place.Diverged `json:"diverged,omitempty"`
}

func (s *Server) mountRegions(mux *http.ServeMux) {
	if s.regions == nil {
		return
	}
	r := s.regions
	r.replica.Mount(mux)
	s.mountMoves(mux)
	(&reconcile.Served{Journal: s.journal, Index: r.place.Index(), Keeps: s.cfg.KeepOutcomes, Topic: r.replica, Live: func(ctx context.Context, gid string) (bool, error) {
		raw, err := s.store.Get(ctx, txn.Gid(gid))
		return raw != nil, err
	}, Audited: func(ctx context.Context, act string, err error, args ...any) {
		admin.AuditOf(ctx, s.log, act, err, args...)
	}}).Mount(mux)
	mux.HandleFunc("GET /v1/region/holds", s.serveHolds)
	mux.HandleFunc("POST /v1/region/unstop", serveUnstop(r.place.Deployment(), r.replica.Unstop, s.log))
	mux.HandleFunc("GET /v1/region/status", func(w http.ResponseWriter, _ *http.Request) {
		st := RegionStatus{Status: r.replica.Status(), Member: s.member.ID, Version: s.version, NowMillis: time.Now().UnixMilli(), Slots: map[slot.Status]int{}, ArbiterMillis: -1, Applied: r.applier.Applied(), ApplyLag: r.applier.Lag()}
		if m := r.place.Owners(); m != nil {
			for _, o := range m {
				if o.Region != s.cfg.Region {
					continue
				}
				st.Slots[o.Status]++
				if o.Lost != 0 {
					st.Unsettled++
				}
			}
		}
		holds := s.runner.LocalSlots()
		for n := range slot.Count {
			if holds(n) {
				st.Held++
			}
		}
		st.Diverged = r.place.Diverged()
		st.Unadopted = s.runner.Unadopted()
		if at := r.place.Heard(); at != 0 {
			st.ArbiterMillis = time.Now().UnixMilli() - at
		}
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(st) // the caller has left, then
	})
	mux.HandleFunc("GET /v1/region/epochs", func(w http.ResponseWriter, req *http.Request) {
		marks, err := s.journal.Marks(req.Context())
		if err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
			return
		}
		epochs := s.runner.Epochs()
		for _, m := range marks {
			epochs[m.Slot] = max(epochs[m.Slot], slot.Epoch(m.Epoch))
		}
		seals := map[int][]slot.Seal{}
		for i := range r.place.Deployment().Regions {
			cuts, err := s.journal.Cuts(req.Context(), i+1)
			if err != nil {
				http.Error(w, err.Error(), http.StatusServiceUnavailable)
				return
			}
			for n, seal := range cuts {
				seals[n] = append(seals[n], seal)
			}
		}
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(map[string]any{"epochs": epochs, "owners": r.place.Owners(), "seals": seals}) // the caller has left, then
	})
	// GET /region/ready is for load balancers: 200 only where begins are accepted.
	mux.HandleFunc("GET /region/ready", func(w http.ResponseWriter, _ *http.Request) {
		if !s.ready() || !s.runner.Accepts() {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
	})
}

// serveUnstop lets the chain of another region's slot go on, after what stopped it was repaired.
func serveUnstop(dep arbiter.Deployment, unstop func(ctx context.Context, origin, n int) (bool, error), log *slog.Logger) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		q := r.URL.Query()
		origin := dep.Index(q.Get("origin"))
		if origin == 0 {
			http.Error(w, fmt.Sprintf("origin: %q is not one of %v", q.Get("origin"), dep.Regions), http.StatusBadRequest)
			return
		}
		n, err := strconv.Atoi(q.Get("slot"))
		if err != nil || n < 0 || n >= slot.Count {
			http.Error(w, fmt.Sprintf("slot: %q is not 0 to %d", q.Get("slot"), slot.Count-1), http.StatusBadRequest)
			return
		}
		was, err := unstop(r.Context(), origin, n)
		admin.AuditOf(r.Context(), log, "unstop", err, "origin", q.Get("origin"), "slot", n, "was_stopped", was)
		if err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(map[string]bool{"was_stopped": was}) // the caller has left, then
	}
}
