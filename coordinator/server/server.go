// Package server puts a coordinator process together: the store, the journal, the engine, and its listeners.
//
// The law it keeps: it fails fast while it starts, with every reason at once where there are several, and it stops in
// order: no new work, what is under way is finished or handed over, then the store. It is tested as a process, by
// signals.
package server

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"sync/atomic"
	"time"

	"github.com/google/uuid"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/credentials"

	"github.com/lockstep-tx/lockstep/coordinator/api"
	"github.com/lockstep-tx/lockstep/coordinator/api/admin"
	"github.com/lockstep-tx/lockstep/coordinator/auth"
	"github.com/lockstep-tx/lockstep/coordinator/clock"
	"github.com/lockstep-tx/lockstep/coordinator/config"
	"github.com/lockstep-tx/lockstep/coordinator/dtmwire"
	"github.com/lockstep-tx/lockstep/coordinator/engine"
	"github.com/lockstep-tx/lockstep/coordinator/invoke"
	"github.com/lockstep-tx/lockstep/coordinator/peer"
	"github.com/lockstep-tx/lockstep/coordinator/store/etcdstore"
	"github.com/lockstep-tx/lockstep/coordinator/telemetry"
	"github.com/lockstep-tx/lockstep/coordinator/txn"
	"github.com/lockstep-tx/lockstep/region/journal"
)

// Server is one coordinator process. Make it with New, then Run it once.
type Server struct {
	// TrimEvery is how often the journal drops what it need not keep any more: a minute. Set it before Run.
	TrimEvery time.Duration

	cfg     *config.Config
	version string
	log     *slog.Logger

	member   engine.Member
	embedded *etcdstore.Embedded
	etcd     *clientv3.Client
	store    *etcdstore.Store
	journal  *journal.Journal
	invoker  *invoke.Invoker
	peers    *peer.Client
	runner   *engine.Runner
	clock    *clock.Clock
	metrics  *telemetry.Metrics
	alerts   *telemetry.Alerts
	guard    *auth.Guard
	certs    *auth.Certificates
	wire     *dtmwire.Server
	native   *api.Server
	admin    *admin.Server
	listen   listeners
	front    *front
	regions  *regions // nil where there is one
	stops    []func() error
	stopping atomic.Bool
}

// startTimeout bounds the start of the embedded member and the first answer of an external cluster.
const startTimeout = 20 * time.Second

// New opens everything that a coordinator needs, and listens; the admin address answers probes from then on. On an error
// everything is closed again.
func New(ctx context.Context, cfg *config.Config, version string, log *slog.Logger) (*Server, error) {
	if err := cfg.Check(); err != nil {
		return nil, err
	}
	s := &Server{TrimEvery: trimEvery, cfg: cfg, version: version, log: log, clock: clock.New()}
	sctx, cancel := context.WithTimeoutCause(ctx, startTimeout, errors.New("it did not start within 20 s"))
	defer cancel()
	for _, step := range []func(context.Context) error{s.openSecurity, s.openListeners, s.openFront, s.openStore, s.openJournal, s.openRegions, s.build} {
		if err := step(sctx); err != nil {
			return nil, errors.Join(err, s.Close())
		}
	}
	return s, nil
}

func (s *Server) onClose(f func() error) { s.stops = append(s.stops, f) }

// Close undoes what New opened, in the reverse order. Idempotent.
func (s *Server) Close() error {
	var errs []error
	for i := len(s.stops) - 1; i >= 0; i-- {
		errs = append(errs, s.stops[i]())
	}
	s.stops = nil
	return errors.Join(errs...)
}

func (s *Server) openSecurity(context.Context) error {
	c := s.cfg
	var err error
	if c.TlsCert != "" {
		if s.certs, err = auth.LoadCertificates(c.TlsCert, c.TlsKey, c.TlsClientCa, s.log); err != nil {
			return err
		}
	}
	s.guard, err = auth.New(auth.Config{TokensFile: c.Tokens, ClientCerts: c.TlsClientCa != "", AllowFrom: c.AllowFrom, Insecure: c.Insecure, Log: s.log})
	return err
}

func (s *Server) openStore(ctx context.Context) error {
	c := s.cfg
	if c.Embedded {
		s.front.say("the embedded etcd is opened, in " + c.DataDir)
		if err := os.MkdirAll(c.DataDir, 0o700); err != nil {
			return fmt.Errorf("data-dir: %w", err)
		}
		e, err := etcdstore.StartEmbedded(ctx, c.DataDir)
		if err != nil {
			return fmt.Errorf("data-dir: %w", err)
		}
		s.embedded, s.etcd = e, e.Client()
		s.onClose(e.Close)
	} else {
		s.front.say("the etcd cluster is asked for the first time")
		cli, err := etcdstore.Connect(ctx, etcdstore.Cluster{Endpoints: c.EtcdEndpoints, CAFile: c.EtcdCa, CertFile: c.EtcdCert, KeyFile: c.EtcdKey})
		if err != nil {
			return fmt.Errorf("etcd-endpoints: %w", err)
		}
		s.etcd = cli
		s.onClose(cli.Close)
	}
	s.store = etcdstore.New(s.etcd, s.log)
	if c.Embedded {
		return s.store.ForgetMembers(ctx)
	}
	return nil
}

func (s *Server) openJournal(ctx context.Context) error {
	s.front.say("the journal is opened")
	j, err := journal.Open(ctx, s.cfg.JournalAddress())
	if err != nil {
		return fmt.Errorf("journal-url: %w", err)
	}
	s.journal = j
	s.onClose(j.Close)
	return nil
}

// build makes the engine and what speaks for it.
func (s *Server) build(context.Context) error {
	c := s.cfg
	allow := invoke.DefaultAllow()
	if len(c.BranchAllow) > 0 {
		var err error
		if allow, err = invoke.ParseAllow(c.BranchAllow); err != nil {
			return err
		}
	}
	var onCall func(engine.CallResult, int)
	if c.AlertWebhook != "" {
		s.alerts = telemetry.NewAlerts(c.AlertWebhook, c.AlertFails, s.log)
		onCall = s.alerts.Called
	}
	s.metrics = telemetry.NewMetrics(onCall)
	if s.alerts != nil {
		s.alerts.Count(s.metrics)
	}
	secure, err := s.branchTLS()
	if err != nil {
		return err
	}
	s.invoker = invoke.New(invoke.Config{InFlightMax: c.BranchInflightMax, BreakerFails: c.BreakerFails, BreakerPause: c.BreakerPause, Allow: allow, TLS: secure, Resolve: s.resolver(), Around: s.aroundCall(), Log: s.log})
	s.onClose(func() error { s.invoker.Close(); return nil })
	var creds credentials.TransportCredentials
	if s.certs != nil {
		creds = credentials.NewTLS(s.certs.Peer())
	}
	s.peers = peer.NewClient(creds)
	s.onClose(func() error { s.peers.Close(); return nil })
	s.member = engine.Member{ID: c.Region + "-" + uuid.NewString()[:8], HTTP: s.listen.http.Addr().String(), GRPC: s.listen.grpc.Addr().String(), Admin: s.listen.admin.Addr().String()}
	if c.AdvertiseGrpc != "" {
		s.member.GRPC = c.AdvertiseGrpc
	}
	s.runner = engine.NewRunner(engine.Config{
		Self: s.member, Limits: engine.Limits{LiveMax: c.LiveMax, UnsavedMax: c.UnsavedMax}, MemberTTL: c.MemberTtl, KeepFinished: c.KeepFinished,
		Regions: s.beyond(), Log: s.log, Observer: s.metrics,
	}, s.store, s.journal, s.invoker, s.peers, s.clock)
	if err := s.buildRegions(); err != nil {
		return err
	}
	guarded := &limited{Runner: s.runner, rates: newRates(c.BeginsPerSecond), log: s.log}
	s.wire = dtmwire.New(guarded, s.store.KV(), allow, dtmwire.Limits{BodyBytes: c.BodyBytesMax, Branches: c.BranchesMax, PayloadBytes: c.PayloadBytesMax, Wait: c.WaitMax}, s.clock.Now, s.log)
	s.wire.Named, s.wire.Global, s.wire.GlobalDefault = s.regions != nil, s.regions != nil, c.Durability == "global"
	s.wire.AuditTopic = func(ctx context.Context, act, topic, url string, err error) {
		admin.AuditOf(ctx, s.log, act, err, "topic", topic, "url", bare(url))
	}
	s.native = api.New(api.Config{
		Engine: guarded, Rules: s.wire, CheckGid: dtmwire.CheckGid, NewGid: s.wire.NewGid, WaitMax: c.WaitMax,
		Global: s.regions != nil, GlobalDefault: c.Durability == "global",
		Tenant: func(ctx context.Context) string { return auth.From(ctx).Name },
	})
	s.admin = &admin.Server{Engine: s.runner, Log: s.log, CheckGid: dtmwire.CheckGid}
	if s.regions != nil {
		s.admin.Late = late{s}
	}
	if c.DebugClock {
		s.admin.Advance = func(ctx context.Context, by time.Duration) ([]txn.Gid, error) {
			return s.runner.AdvanceClock(ctx, func() { s.clock.Advance(by) })
		}
	}
	return nil
}

// branchTLS is how participants are called over TLS.
func (s *Server) branchTLS() (*tls.Config, error) {
	c := s.cfg
	if c.BranchCert == "" {
		return auth.Branches(c.BranchCa, nil)
	}
	own, err := auth.LoadBranchCertificate(c.BranchCert, c.BranchKey, s.log)
	if err != nil {
		return nil, err
	}
	return auth.Branches(c.BranchCa, own)
}

// bare is an address for the log: without what may hold a secret, its query and the part before an @.
func bare(address string) string {
	address, _, _ = strings.Cut(address, "?")
	scheme, rest, ok := strings.Cut(address, "://")
	if !ok {
		scheme, rest = "", address
	} else {
		scheme += "://"
	}
	host, path, slash := strings.Cut(rest, "/")
	host = host[strings.LastIndexByte(host, '@')+1:]
	if slash {
		path = "/" + path
	}
	return scheme + host + path
}

// warn says loudly what an operator should not overlook.
func (s *Server) warn() {
	if s.cfg.Insecure {
		s.log.Warn("INSECURE: everybody who reaches these listeners may begin, decide and stop transactions", "next", "lockstep config check --help  # give --tls-cert, --tls-key and --tokens")
	}
	if s.cfg.DebugClock {
		s.log.Warn("DEBUG CLOCK: anybody with the admin address can move this coordinator's time; never in production")
	}
}

// Addresses are what is listened on.
type Addresses struct {
	HTTP  string `json:"http"`
	GRPC  string `json:"grpc"`
	Admin string `json:"admin"`
}

// Addresses gives what is listened on, for port 0.
func (s *Server) Addresses() Addresses {
	return Addresses{HTTP: s.listen.http.Addr().String(), GRPC: s.listen.grpc.Addr().String(), Admin: s.listen.admin.Addr().String()}
}
