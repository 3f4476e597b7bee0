package server

import (
	"context"
	"errors"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	"golang.org/x/sync/errgroup"

	"github.com/lockstep-tx/lockstep/coordinator/telemetry"
)

// compactEvery is how often the store's history is dropped, trimEvery how often the journal's.
const (
	compactEvery = 10 * time.Second
	trimEvery    = time.Minute
)

// Run serves until ctx ends, then stops in order and returns nil. Any other end is an error.
func (s *Server) Run(ctx context.Context) error {
	defer func() {
		if err := s.Close(); err != nil {
			s.log.Error("not everything was closed", "err", err)
		}
	}()
	s.warn()
	if s.cfg.PyroscopeUrl != "" {
		stop, err := telemetry.StartProfiles(s.cfg.PyroscopeUrl, s.cfg.Region, s.member.ID, s.log)
		if err != nil {
			return err
		}
		s.onClose(stop)
	}
	// Three lives, ended one after the other: the listeners, the engine, and what serves it.
	engineCtx, stopEngine := context.WithCancel(context.WithoutCancel(ctx))
	backCtx, stopBack := context.WithCancel(context.WithoutCancel(ctx))
	defer stopEngine()
	defer stopBack()
	g, gctx := errgroup.WithContext(backCtx)
	g.Go(func() (err error) {
		s.labelled(anyMode, "engine", func() { err = s.runner.Run(engineCtx) })
		if engineCtx.Err() != nil {
			return nil
		}
		return err
	})
	if s.regions != nil {
		s.runRegions(gctx, g)
	}
	g.Go(func() error { s.store.Maintain(gctx, compactEvery); return nil })
	g.Go(func() error { s.trim(gctx); return nil })
	if s.alerts != nil {
		g.Go(func() error { s.alerts.Run(gctx); return nil })
	}
	if s.embedded != nil {
		g.Go(func() error {
			select {
			case err := <-s.embedded.Err():
				return errors.Join(errors.New("the embedded etcd failed"), err)
			case <-gctx.Done():
				return nil
			}
		})
	}
	dtmHTTP, rpc := s.httpServer(), s.grpcServer()
	serve := func(f func() error) {
		g.Go(func() error {
			if err := f(); err != nil && !errors.Is(err, http.ErrServerClosed) && !errors.Is(err, net.ErrClosed) {
				return err
			}
			return nil
		})
	}
	serve(func() error { return dtmHTTP.Serve(s.secure(s.listen.http)) })
	s.front.open(s.adminServer().Handler)
	g.Go(s.front.wait)
	serve(func() error { return rpc.Serve(s.listen.grpc) })
	if err := s.writeAddrFile(); err != nil {
		_, _ = dtmHTTP.Close(), s.front.srv.Close() // nobody was told the addresses
		rpc.Stop()
		stopEngine()
		stopBack()
		return errors.Join(err, g.Wait())
	}
	a := s.Addresses()
	s.log.Info("listening", "http", a.HTTP, "grpc", a.GRPC, "admin", a.Admin, "version", s.version, "region", s.cfg.Region, "member", s.member.ID)
	g.Go(func() error {
		select {
		case <-ctx.Done():
		case <-gctx.Done():
		}
		s.stopping.Store(true)
		s.log.Info("stopping: no new requests, those under way are finished")
		dctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), s.cfg.DrainTimeout)
		defer cancel()
		s.drain(dctx, dtmHTTP, rpc.GracefulStop, rpc.Stop)
		stopEngine()
		<-s.runner.Done()
		err := s.front.srv.Shutdown(dctx)
		stopBack()
		return err
	})
	err := g.Wait()
	if ctx.Err() != nil && (err == nil || errors.Is(err, context.Canceled)) {
		s.log.Info("stopped")
		return nil
	}
	return err
}

// ready says that requests may come: every slot has a holder, and nobody has asked this process to stop.
func (s *Server) ready() bool { return !s.stopping.Load() && s.runner.Ready() }

// drain ends the listeners of clients: requests under way get until ctx ends.
func (s *Server) drain(ctx context.Context, h *http.Server, graceful, hard func()) {
	done := make(chan struct{})
	go func() { graceful(); close(done) }()
	if err := h.Shutdown(ctx); err != nil {
		s.log.Warn("requests were cut off", "err", err)
		h.Close()
	}
	select {
	case <-done:
	case <-ctx.Done():
		hard()
		<-done
	}
}

// trim drops what the journal need not keep any more.
func (s *Server) trim(ctx context.Context) {
	tick := time.NewTicker(s.TrimEvery)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		now := s.clock.Now()
		for {
			n, err := s.journal.Trim(ctx, now.Add(-s.cfg.KeepFinished).UnixMilli(), now.Add(-s.cfg.KeepOutcomes).UnixMilli(), 5000)
			if err != nil {
				if ctx.Err() == nil {
					s.log.Warn("the journal was not trimmed", "err", err)
				}
				break
			}
			if n < 5000 {
				break
			}
		}
	}
}

// etcdOnly passes the embedded member's own metrics: the default registry's other families are ours already.
type etcdOnly struct{ prometheus.Gatherer }

// Gather is prometheus.Gatherer's.
func (e etcdOnly) Gather() ([]*dto.MetricFamily, error) {
	all, err := e.Gatherer.Gather()
	var out []*dto.MetricFamily
	for _, mf := range all {
		if strings.HasPrefix(mf.GetName(), "etcd_") {
			out = append(out, mf)
		}
	}
	return out, err
}
