package server

import (
	"context"
	"crypto/tls"
	"log/slog"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/lockstep-tx/lockstep/coordinator/api/client"
)

// TestParticipantsAreCalledOverTLS: a participant that is behind grpcs:// and asks for a certificate is called with the
// one of --branch-cert and trusted by --branch-ca; without them its transaction never ends.
func TestParticipantsAreCalledOverTLS(t *testing.T) {
	ca, dir := newAuthority(t, "the participants' CA"), t.TempDir()
	seen := make(chan string, 100)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	creds := credentials.NewTLS(&tls.Config{
		MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{ca.named("participant", "", time.Now().Add(time.Hour))},
		ClientCAs: ca.client().RootCAs, ClientAuth: tls.RequireAndVerifyClientCert,
		VerifyConnection: func(cs tls.ConnectionState) error { seen <- cs.PeerCertificates[0].Subject.CommonName; return nil },
	})
	g := grpc.NewServer(grpc.Creds(creds), grpc.UnknownServiceHandler(func(_ any, st grpc.ServerStream) error {
		if err := st.RecvMsg(&emptypb.Empty{}); err != nil {
			return err
		}
		return st.SendMsg(&emptypb.Empty{})
	}))
	done := make(chan struct{})
	go func() { defer close(done); _ = g.Serve(l) }()
	t.Cleanup(func() { g.Stop(); <-done })
	cert, key := ca.write(dir, "coordinator", ca.named("the coordinator", "", time.Now().Add(time.Hour)))

	pay := func(p *process, limit time.Duration) (client.State, error) {
		cl, err := client.Dial(p.addr.GRPC)
		if err != nil {
			t.Fatal(err)
		}
		defer cl.Close()
		ctx, cancel := context.WithTimeout(context.Background(), limit)
		defer cancel()
		u := "grpcs://" + l.Addr().String() + "/pay.Bank/"
		return cl.Execute(ctx, client.Tx{Gid: "paid", Branches: []client.Branch{{ID: "a", Try: u + "Try", Confirm: u + "Confirm", Cancel: u + "Cancel"}}}, client.Finished)
	}
	if st, err := pay(serve(t, "--branch-ca", ca.writeCA(dir, "ca"), "--branch-cert", cert, "--branch-key", key), 20*time.Second); err != nil || !st.Committed() || !st.Ended() {
		t.Fatalf("%v, %v", st.Transaction, err)
	}
	if name := <-seen; name != "the coordinator" {
		t.Errorf("the participant saw %q", name)
	}
	if st, err := pay(serve(t), time.Second); err == nil {
		t.Errorf("a participant that nobody vouches for was trusted: %v", st.Transaction)
	}

	none := filepath.Join(dir, "none.pem")
	put(t, none, "no certificate")
	for want, flags := range map[string][]string{
		"branch-ca: ":   {"--branch-ca", none},
		"branch-cert: ": {"--branch-cert", none, "--branch-key", key},
		"branch-cert: branch-cert and branch-key belong together": {"--branch-cert", cert},
		"branch-key: ": {"--branch-cert", cert, "--branch-key", filepath.Join(dir, "nowhere.pem")},
	} {
		cfg := parse(t, append([]string{"--embedded", "--data-dir", t.TempDir(), "--http-addr=127.0.0.1:0", "--grpc-addr=127.0.0.1:0", "--admin-addr=127.0.0.1:0"}, flags...)...)
		s, err := New(context.Background(), cfg, "test", slog.New(slog.DiscardHandler))
		if err == nil {
			s.Close()
		}
		if err == nil || !strings.Contains("\n"+err.Error(), "\n"+want) {
			t.Errorf("%q: %v, want %q", flags, err, want)
		}
	}
}
