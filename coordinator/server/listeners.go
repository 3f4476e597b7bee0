package server

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/pprof"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/dtm-labs/dtm/client/dtmgrpc/dtmgpb"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/reflection"
	"google.golang.org/grpc/status"

	"github.com/lockstep-tx/lockstep/coordinator/api/admin"
	"github.com/lockstep-tx/lockstep/coordinator/api/apipb"
	"github.com/lockstep-tx/lockstep/coordinator/auth"
	"github.com/lockstep-tx/lockstep/coordinator/dtmwire"
	"github.com/lockstep-tx/lockstep/coordinator/peer"
	"github.com/lockstep-tx/lockstep/coordinator/peer/peerpb"
)

type listeners struct{ http, grpc, admin net.Listener }

// openListeners listens on all three addresses, so that a port in use is known before anything else is done.
func (s *Server) openListeners(context.Context) error {
	var errs []error
	open := func(key, addr string) net.Listener {
		l, err := net.Listen("tcp", addr)
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", key, err))
			return nil
		}
		s.onClose(func() error {
			if err := l.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
				return err
			}
			return nil
		})
		return l
	}
	s.listen = listeners{http: open("http-addr", s.cfg.HttpAddr), grpc: open("grpc-addr", s.cfg.GrpcAddr), admin: open("admin-addr", s.cfg.AdminAddr)}
	return errors.Join(errs...)
}

// writeAddrFile tells the addresses to whoever started us with port 0. It is written whole or not at all.
func (s *Server) writeAddrFile() error {
	if s.cfg.AddrFile == "" {
		return nil
	}
	body, err := json.Marshal(s.Addresses())
	if err != nil {
		return err
	}
	tmp := filepath.Join(filepath.Dir(s.cfg.AddrFile), "."+filepath.Base(s.cfg.AddrFile)+".tmp")
	if err := os.WriteFile(tmp, body, 0o600); err != nil {
		return fmt.Errorf("addr-file: %w", err)
	}
	return os.Rename(tmp, s.cfg.AddrFile)
}

func (s *Server) secure(l net.Listener) net.Listener {
	if s.certs == nil {
		return l
	}
	return tls.NewListener(l, s.certs.Server())
}

// httpServer answers DTM's HTTP and JSON-RPC.
func (s *Server) httpServer() *http.Server {
	wire := s.wire.Handler()
	guarded := s.guard.HTTP(wire, true, func(r *http.Request) auth.Role {
		_, path := auth.PathToken(r.URL.Path)
		if path == "/api/ping" {
			return auth.RoleNone
		}
		switch dtmwire.RouteOf(path) {
		case "query", "all", "version", "scanKV", "queryKV", "newGid":
			return auth.RoleViewer
		}
		return auth.RoleOperator
	}, refuseDTM)
	return s.newHTTPServer(s.counted("http", guarded, func(r *http.Request) string {
		_, path := auth.PathToken(r.URL.Path)
		return dtmwire.RouteOf(path)
	}))
}

// JSON-RPC's codes for who may not: next to those of dtmwire's faults.
const (
	rpcUnauthenticated = -32031
	rpcForbidden       = -32032
)

// refuseDTM refuses a caller in DTM's form, or in JSON-RPC's on its path.
func refuseDTM(w http.ResponseWriter, r *http.Request, code int, text string) {
	var out any = map[string]string{"message": text}
	if dtmwire.RouteOf(r.URL.Path) == "json-rpc" {
		rpc := rpcForbidden
		if code == http.StatusUnauthorized {
			rpc = rpcUnauthenticated
		}
		out = map[string]any{"jsonrpc": "2.0", "id": nil, "error": map[string]any{"code": rpc, "message": text}}
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	if body, err := json.Marshal(out); err == nil {
		_, _ = w.Write(body) // the client is gone: nobody is left to tell
	}
}

func (s *Server) newHTTPServer(h http.Handler) *http.Server {
	return &http.Server{Handler: h, ErrorLog: slog.NewLogLogger(s.log.Handler(), slog.LevelWarn), ReadHeaderTimeout: 10 * time.Second, IdleTimeout: 2 * time.Minute, MaxHeaderBytes: 64 << 10}
}

// counted counts requests by route and status.
func (s *Server) counted(protocol string, next http.Handler, route func(*http.Request) string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		start := time.Now()
		sw := &statusWriter{ResponseWriter: w, status: http.StatusOK}
		name := route(r)
		s.labelled(anyMode, "request", func() { next.ServeHTTP(sw, r) })
		s.metrics.Request(protocol, name, strconv.Itoa(sw.status), time.Since(start))
	})
}

type statusWriter struct {
	http.ResponseWriter
	status int
}

// WriteHeader is http.ResponseWriter's.
func (w *statusWriter) WriteHeader(code int) {
	w.status = code
	w.ResponseWriter.WriteHeader(code)
}

// Unwrap serves http.ResponseController.
func (w *statusWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// grpcServer answers DTM's gRPC, the native API and the other coordinators.
func (s *Server) grpcServer() *grpc.Server {
	unary, stream := s.guard.GRPC(needOf)
	peerName := ""
	if s.certs != nil {
		peerName = s.certs.Name()
	}
	opts := []grpc.ServerOption{
		grpc.NumStreamWorkers(64), // handlers keep their grown stacks; with 256 the caches are colder (4 % more CPU)
		grpc.MaxRecvMsgSize(int(s.cfg.BodyBytesMax) + 64<<10),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 5 * time.Second, PermitWithoutStream: true}),
		grpc.ChainUnaryInterceptor(s.countUnary, s.peersOnly(peerName), unary),
		grpc.ChainStreamInterceptor(stream),
	}
	if s.certs != nil {
		opts = append(opts, grpc.Creds(credentials.NewTLS(s.certs.Server())))
	}
	g := grpc.NewServer(opts...)
	s.wire.RegisterGRPC(g)
	s.native.RegisterGRPC(g)
	peer.Register(g, s.runner)
	reflection.Register(g)
	return g
}

var (
	dtmService    = "/" + dtmgpb.Dtm_ServiceDesc.ServiceName + "/"
	nativeService = "/" + apipb.Coordinator_ServiceDesc.ServiceName + "/"
	peerService   = "/" + peerpb.Peer_ServiceDesc.ServiceName + "/"
)

// needOf is the role that a gRPC method needs.
func needOf(method string) (auth.Role, bool) {
	switch {
	case strings.HasPrefix(method, peerService):
		return auth.RoleNone, false // peersOnly judges it
	case strings.HasPrefix(method, dtmService):
		return auth.RoleOperator, true
	}
	switch strings.TrimPrefix(method, nativeService) {
	case "Get", "Watch", "List", "NewGid":
		return auth.RoleViewer, false
	case "Begin", "Register", "Commit", "Abort", "Execute":
		return auth.RoleOperator, false
	}
	return auth.RoleViewer, false
}

// peersOnly keeps everybody but coordinators from the peer service. Beside an embedded etcd there are no others: where
// names are asked for, nobody gets in.
func (s *Server) peersOnly(name string) grpc.UnaryServerInterceptor {
	nobody := s.cfg.Embedded && s.cfg.Tokens != "" && !s.cfg.Insecure && name == ""
	return func(ctx context.Context, req any, info *grpc.UnaryServerInfo, h grpc.UnaryHandler) (any, error) {
		if strings.HasPrefix(info.FullMethod, peerService) {
			if nobody {
				return nil, status.Error(codes.PermissionDenied, "only coordinators may call this, and this one runs alone")
			}
			if err := auth.PeerOnly(ctx, name); err != nil {
				return nil, err
			}
		}
		return h(ctx, req)
	}
}

// countUnary counts calls by method and status; unknown methods never reach an interceptor, so the labels are bounded.
func (s *Server) countUnary(ctx context.Context, req any, info *grpc.UnaryServerInfo, h grpc.UnaryHandler) (any, error) {
	start := time.Now()
	var out any
	var err error
	s.labelled(anyMode, "request", func() { out, err = h(ctx, req) })
	s.metrics.Request("grpc", strings.TrimPrefix(info.FullMethod, "/"), status.Code(err).String(), time.Since(start))
	return out, err
}

// adminServer answers operators, Prometheus and probes.
func (s *Server) adminServer() *http.Server {
	mux := http.NewServeMux()
	api := s.admin.Handler()
	mux.Handle("/v1/", api)
	s.mountRegions(mux)
	mux.Handle("/debug/clock/", api)
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "alive") })
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		if !s.ready() {
			w.WriteHeader(http.StatusServiceUnavailable)
			fmt.Fprintln(w, "not ready: some slots have no holder yet, or this coordinator is stopping")
			return
		}
		fmt.Fprintln(w, "ready")
	})
	gather := prometheus.Gatherers{s.metrics.Registry()}
	if s.embedded != nil {
		gather = append(gather, etcdOnly{prometheus.DefaultGatherer})
	}
	mux.Handle("GET /metrics", promhttp.HandlerFor(gather, promhttp.HandlerOpts{}))
	mux.HandleFunc("/debug/pprof/", pprof.Index)
	mux.HandleFunc("/debug/pprof/cmdline", pprof.Cmdline)
	mux.HandleFunc("/debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("/debug/pprof/symbol", pprof.Symbol)
	mux.HandleFunc("/debug/pprof/trace", pprof.Trace)
	return s.newHTTPServer(s.guard.HTTP(mux, false, func(r *http.Request) auth.Role {
		if r.URL.Path == "/healthz" || r.URL.Path == "/readyz" {
			return auth.RoleNone
		}
		return admin.Need(r)
	}, admin.Refuse))
}
