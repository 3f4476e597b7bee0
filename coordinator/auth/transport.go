package auth

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
)

// PathToken splits a token off the beginning of a path: /t/TOKEN/rest. rest begins with a slash.
func PathToken(path string) (token, rest string) {
	after, ok := strings.CutPrefix(path, "/t/")
	if !ok {
		return "", path
	}
	token, rest, ok = strings.Cut(after, "/")
	if !ok || token == "" {
		return "", path
	}
	return token, "/" + rest
}

func bearerOf(header string) string {
	if t, ok := strings.CutPrefix(header, "Bearer "); ok {
		return strings.TrimSpace(t)
	}
	return ""
}

// HTTP names the callers of next and refuses those whose role is too small; need gives the role that a request needs,
// RoleNone for what is open to everybody. dtm says that next speaks DTM's protocol. refuse writes a refusal in the
// protocol's own form.
func (g *Guard) HTTP(next http.Handler, dtm bool, need func(r *http.Request) Role, refuse func(w http.ResponseWriter, r *http.Request, status int, text string)) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c := Caller{Token: bearerOf(r.Header.Get("Authorization")), Remote: r.RemoteAddr, DTM: dtm}
		if token, rest := PathToken(r.URL.Path); token != "" {
			// The token leaves the request here: nothing behind this line can log it.
			r2 := new(http.Request)
			*r2 = *r
			u := *r.URL
			u.Path, u.RawPath = rest, ""
			r2.URL, r2.RequestURI = &u, ""
			r = r2
			if c.Token == "" {
				c.Token = token
			}
		}
		if r.TLS != nil && len(r.TLS.VerifiedChains) > 0 {
			c.Certs = r.TLS.VerifiedChains[0]
		}
		role := need(r)
		if role == RoleNone {
			next.ServeHTTP(w, r)
			return
		}
		id, err := g.Identify(c)
		if err == nil {
			err = Need(id, role)
		}
		if err != nil {
			g.refused(r.Method+" "+r.URL.Path, id, c.Remote, err)
			r = r.WithContext(With(r.Context(), id)) // the refusal may name who it is for
		}
		switch {
		case errors.Is(err, ErrForbidden):
			refuse(w, r, http.StatusForbidden, err.Error())
		case err != nil:
			w.Header().Set("WWW-Authenticate", `Bearer realm="lockstep"`)
			refuse(w, r, http.StatusUnauthorized, err.Error())
		default:
			next.ServeHTTP(w, r.WithContext(With(r.Context(), id)))
		}
	})
}

// GRPC gives interceptors that name callers and refuse those whose role is too small. need gives the role of a full
// method and whether it is DTM's protocol.
func (g *Guard) GRPC(need func(method string) (role Role, dtm bool)) (grpc.UnaryServerInterceptor, grpc.StreamServerInterceptor) {
	check := func(ctx context.Context, method string) (context.Context, error) {
		role, dtm := need(method)
		if role == RoleNone {
			return ctx, nil
		}
		if id, ok := g.anybody(); ok {
			return With(ctx, id), nil // an admin: nothing is refused
		}
		c := Caller{DTM: dtm}
		if md, ok := metadata.FromIncomingContext(ctx); ok {
			if v := md.Get("authorization"); len(v) > 0 {
				c.Token = bearerOf(v[0])
			}
		}
		if p, ok := peer.FromContext(ctx); ok {
			c.Remote = p.Addr.String()
			if ti, ok := p.AuthInfo.(credentials.TLSInfo); ok && len(ti.State.VerifiedChains) > 0 {
				c.Certs = ti.State.VerifiedChains[0]
			}
		}
		id, err := g.Identify(c)
		if err == nil {
			err = Need(id, role)
		}
		if err != nil {
			g.refused(method, id, c.Remote, err)
		}
		switch {
		case errors.Is(err, ErrForbidden):
			return ctx, status.Error(codes.PermissionDenied, err.Error())
		case err != nil:
			return ctx, status.Error(codes.Unauthenticated, err.Error())
		}
		return With(ctx, id), nil
	}
	unary := func(ctx context.Context, req any, info *grpc.UnaryServerInfo, h grpc.UnaryHandler) (any, error) {
		ctx, err := check(ctx, info.FullMethod)
		if err != nil {
			return nil, err
		}
		return h(ctx, req)
	}
	stream := func(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, h grpc.StreamHandler) error {
		ctx, err := check(ss.Context(), info.FullMethod)
		if err != nil {
			return err
		}
		return h(srv, named{ss, ctx})
	}
	return unary, stream
}

// named is a stream whose context knows the caller.
type named struct {
	grpc.ServerStream
	ctx context.Context
}

// Context is grpc.ServerStream's.
func (n named) Context() context.Context { return n.ctx }

// Certificates keeps a certificate and its key as they are in their files, reloaded when they change. Safe for
// concurrent use.
type Certificates struct {
	field                     string // the configuration key that errors begin with
	certFile, keyFile, caFile string
	log                       *slog.Logger
	mu                        sync.Mutex
	looked                    time.Time
	mtime                     time.Time
	cert                      *tls.Certificate
	pool                      *x509.CertPool
}

// LoadCertificates reads the files; ca may be "", then client certificates are not asked for.
func LoadCertificates(cert, key, ca string, log *slog.Logger) (*Certificates, error) {
	return loadCertificates("tls-cert", cert, key, ca, log)
}

// LoadBranchCertificate reads the certificate that participants are shown. Errors begin with branch-cert.
func LoadBranchCertificate(cert, key string, log *slog.Logger) (*Certificates, error) {
	return loadCertificates("branch-cert", cert, key, "", log)
}

func loadCertificates(field, cert, key, ca string, log *slog.Logger) (*Certificates, error) {
	c := &Certificates{field: field, certFile: cert, keyFile: key, caFile: ca, log: log}
	if err := c.load(); err != nil {
		return nil, err
	}
	return c, nil
}

func (c *Certificates) load() error {
	pair, err := tls.LoadX509KeyPair(c.certFile, c.keyFile)
	if err != nil {
		return fmt.Errorf("%s: %w", c.field, err)
	}
	if pair.Leaf == nil {
		if pair.Leaf, err = x509.ParseCertificate(pair.Certificate[0]); err != nil {
			return fmt.Errorf("%s: %w", c.field, err)
		}
	}
	var pool *x509.CertPool
	if c.caFile != "" {
		if pool, err = LoadPool(c.caFile); err != nil {
			return fmt.Errorf("tls-client-ca: %w", err)
		}
	}
	st, err := os.Stat(c.certFile)
	if err != nil {
		return fmt.Errorf("%s: %w", c.field, err)
	}
	c.cert, c.pool, c.mtime, c.looked = &pair, pool, st.ModTime(), time.Now()
	return nil
}

// LoadPool reads a file of CA certificates.
func LoadPool(file string) (*x509.CertPool, error) {
	raw, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(raw) {
		return nil, fmt.Errorf("%s holds no PEM certificate", file)
	}
	return pool, nil
}

func (c *Certificates) current() (*tls.Certificate, *x509.CertPool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if time.Since(c.looked) > reloadEvery {
		c.looked = time.Now()
		if st, err := os.Stat(c.certFile); err == nil && !st.ModTime().Equal(c.mtime) {
			if err := c.load(); err != nil {
				c.log.Error("the certificate was not reloaded: the one read before stays", "err", err)
			} else {
				c.log.Info("the certificate was reloaded", "until", c.cert.Leaf.NotAfter)
			}
		}
	}
	return c.cert, c.pool
}

// Name is the common name of the certificate: coordinators of one region share it.
func (c *Certificates) Name() string {
	cert, _ := c.current()
	return cert.Leaf.Subject.CommonName
}

// Server is the TLS configuration of a listener. A client certificate is verified when one is sent; who needs a name
// and has none is refused by the Guard, in the protocol's own form.
func (c *Certificates) Server() *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS12,
		GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
			cert, pool := c.current()
			cfg := &tls.Config{MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{*cert}, NextProtos: []string{"h2", "http/1.1"}}
			if pool != nil {
				cfg.ClientCAs, cfg.ClientAuth = pool, tls.VerifyClientCertIfGiven
			}
			return cfg, nil
		},
	}
}

// Peer is the TLS configuration towards another coordinator: mutual, by the client CA.
func (c *Certificates) Peer() *tls.Config {
	_, pool := c.current()
	return &tls.Config{
		MinVersion: tls.VersionTLS12, RootCAs: pool,
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			cert, _ := c.current()
			return cert, nil
		},
	}
}

// Branches is the TLS configuration towards participants: ca signed their certificates, "" means the system's
// authorities; own is shown to those that ask for a certificate, nil shows none. Errors begin with branch-ca.
func Branches(ca string, own *Certificates) (*tls.Config, error) {
	cfg := &tls.Config{MinVersion: tls.VersionTLS12}
	if ca != "" {
		var err error
		if cfg.RootCAs, err = LoadPool(ca); err != nil {
			return nil, fmt.Errorf("branch-ca: %w", err)
		}
	}
	if own != nil {
		cfg.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			cert, _ := own.current()
			return cert, nil
		}
	}
	return cfg, nil
}

// PeerOnly gives an interceptor's check that lets only coordinators in: callers with a verified certificate of the
// name given. name "" lets everybody in: on loopback, where there is no TLS.
func PeerOnly(ctx context.Context, name string) error {
	if name == "" {
		return nil
	}
	if p, ok := peer.FromContext(ctx); ok {
		if ti, ok := p.AuthInfo.(credentials.TLSInfo); ok && len(ti.State.VerifiedChains) > 0 && ti.State.VerifiedChains[0][0].Subject.CommonName == name {
			return nil
		}
	}
	return status.Errorf(codes.PermissionDenied, "only coordinators may call this: a certificate named %q is needed", name)
}
