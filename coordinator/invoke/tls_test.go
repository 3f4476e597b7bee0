package invoke

import (
	"crypto/tls"
	"crypto/x509"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	"github.com/lockstep-tx/lockstep/coordinator/txn"
	"github.com/lockstep-tx/lockstep/participants/branch/rawgrpc"
)

// secured gives the address of a gRPC participant over TLS that says yes to everything, its certificate, and what trusts
// it. clients says whether it asks for a certificate.
func secured(t *testing.T, clients tls.ClientAuthType) (addr string, cert tls.Certificate, trusts *x509.CertPool) {
	t.Helper()
	s := httptest.NewTLSServer(http.NotFoundHandler()) // for its certificate of 127.0.0.1
	t.Cleanup(s.Close)
	cert, trusts = s.TLS.Certificates[0], x509.NewCertPool()
	trusts.AddCert(s.Certificate())
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	creds := credentials.NewTLS(&tls.Config{MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{cert}, ClientAuth: clients})
	g := grpc.NewServer(grpc.Creds(creds), grpc.ForceServerCodecV2(rawgrpc.Codec{}), grpc.UnknownServiceHandler(func(_ any, st grpc.ServerStream) error {
		var body []byte
		if err := st.RecvMsg(&body); err != nil {
			return err
		}
		return st.SendMsg(&body)
	}))
	done := make(chan struct{})
	go func() { defer close(done); _ = g.Serve(l) }()
	t.Cleanup(func() { g.Stop(); <-done })
	return l.Addr().String(), cert, trusts
}

// A branch behind grpcs:// is called over TLS, one without it in the clear, by the same invoker. Whoever cannot be trusted
// said nothing: the outcome is Unknown, never No (G2).
func TestGRPCBranchesOverTLS(t *testing.T) {
	t.Parallel()
	addr, cert, trusts := secured(t, tls.NoClientCert)
	strictAddr, _, _ := secured(t, tls.RequireAnyClientCert)
	clear := grpcServer(t, "", nil)
	https := httptest.NewTLSServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	t.Cleanup(https.Close)
	port := addr[strings.LastIndexByte(addr, ':'):]

	trusting := &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: trusts}
	named := trusting.Clone()
	named.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &cert, nil }
	strange := &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: x509.NewCertPool()}
	for _, c := range []struct {
		name, url string
		tls       *tls.Config
		want      txn.Outcome
		says      string
	}{
		{"over TLS", "grpcs://" + addr + "/p.S/M", trusting, txn.Done, ""},
		{"in the clear", clear + "/p.S/M", trusting, txn.Done, ""},
		{"with a client certificate", "grpcs://" + strictAddr + "/p.S/M", named, txn.Done, ""},
		{"without the client certificate that is asked for", "grpcs://" + strictAddr + "/p.S/M", trusting, txn.Unknown, ""},
		{"another CA", "grpcs://" + addr + "/p.S/M", strange, txn.Unknown, "certificate"},
		{"the system's CAs", "grpcs://" + addr + "/p.S/M", nil, txn.Unknown, "certificate"},
		{"another name", "grpcs://localhost" + port + "/p.S/M", trusting, txn.Unknown, "certificate"},
		{"in the clear to one that speaks TLS", addr + "/p.S/M", trusting, txn.Unknown, ""},
		{"over TLS to one that does not speak it", "grpcs://" + clear + "/p.S/M", trusting, txn.Unknown, ""},
		{"no method", "grpcs://" + addr, trusting, txn.Unknown, "no '/' found"},
		{"twice a scheme", "grpcs://http://" + addr + "/p.S/M", trusting, txn.Unknown, "scheme"},
		{"https", https.URL + "/x", trusting, txn.Done, ""},
		{"https of another CA", https.URL + "/x", strange, txn.Unknown, "certificate"},
	} {
		res := one(t, newInvoker(t, Config{TLS: c.tls}), callTo(c.url))
		if res.Outcome != c.want || !strings.Contains(res.Text, c.says) {
			t.Errorf("%s: ended %v %q, want %v %q", c.name, res.Outcome, res.Text, c.want, c.says)
		}
	}
	// One participant both ways: the connection of one is never taken for the other's.
	v := newInvoker(t, Config{TLS: trusting})
	for _, c := range []struct {
		url  string
		want txn.Outcome
	}{{addr + "/p.S/M", txn.Unknown}, {"grpcs://" + addr + "/p.S/M", txn.Done}, {addr + "/p.S/M", txn.Unknown}} {
		if res := one(t, v, callTo(c.url)); res.Outcome != c.want {
			t.Errorf("%s ended %v %q", c.url, res.Outcome, res.Text)
		}
	}
	refused := newInvoker(t, Config{TLS: trusting, Allow: allowOf(t, "192.0.2.0/24")})
	if res := one(t, refused, callTo("grpcs://"+addr+"/p.S/M")); res.Outcome != txn.Unknown || !strings.Contains(res.Text, "not allowed") {
		t.Errorf("an address off the list ended %v %q", res.Outcome, res.Text)
	}
	if err := allowOf(t, "192.0.2.0/24").CheckURL("grpcs://127.0.0.1:1/p.S/M"); err == nil {
		t.Error("the door lets an address off the list in")
	}
}
