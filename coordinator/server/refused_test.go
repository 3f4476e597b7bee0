package server

import (
	"context"
	"net"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/lockstep-tx/lockstep/coordinator/api/apipb"
	"github.com/lockstep-tx/lockstep/coordinator/auth"
)

// Whoever is refused stands in the log as an audit line, with a name where there is one, what was tried, from where, and
// never with the token (G11).
func TestEveryRefusalIsAnAuditLineWithoutTheToken(t *testing.T) {
	g := serveGuarded(t)
	viewer := g.tokens[auth.RoleViewer]
	c := web(t, g.ca.client())
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	api := apipb.NewCoordinatorClient(g.dial(t, g.ca.client(), ""))
	for _, r := range []struct {
		name string
		try  func() bool // says that it was refused
		line []string
	}{
		{"no token at the admin API", func() bool { code, _, _ := ask(t, c, "GET", g.admin+"/v1/transactions", "", ""); return code == 401 },
			[]string{`act="GET /v1/transactions"`, `who="nobody known"`, "from=127.0.0.1:", "no name"}},
		{"a token that nobody knows", func() bool {
			code, _, _ := ask(t, c, "POST", g.admin+"/v1/transaction/stop?gid=x", "lk_stolen", "")
			return code == 401
		}, []string{`act="POST /v1/transaction/stop"`, `who="nobody known"`, "the token is not known"}},
		{"a viewer who stops", func() bool {
			code, _, body := ask(t, c, "POST", g.admin+"/v1/transaction/stop?gid=x", viewer, "")
			return code == 403 && strings.Contains(body, "--role operator --name viewer-person")
		}, []string{`act="POST /v1/transaction/stop"`, "who=viewer-person", "role=viewer", "how=token", "role operator is needed"}},
		{"a viewer in the path who submits", func() bool {
			code, _, _ := ask(t, c, "POST", g.http+"/t/"+viewer+"/api/dtmsvr/submit", "", "{}")
			return code == 403
		}, []string{`act="POST /api/dtmsvr/submit"`, "who=viewer-person", "role=viewer"}},
		{"a token in a path that has no rest", func() bool { code, _, _ := ask(t, c, "GET", g.http+"/t/"+viewer, "", ""); return code == 401 },
			[]string{`act="GET /t/…"`, `who="nobody known"`}},
		{"a viewer who begins over gRPC", func() bool {
			_, err := api.Begin(bearing(ctx, viewer), &apipb.BeginRequest{})
			return status.Code(err) == codes.PermissionDenied
		}, []string{"act=/lockstep.v1.Coordinator/Begin", "who=viewer-person", "role=viewer"}},
		{"nobody over gRPC", func() bool {
			_, err := api.NewGid(ctx, &apipb.NewGidRequest{})
			return status.Code(err) == codes.Unauthenticated
		}, []string{"act=/lockstep.v1.Coordinator/NewGid", `who="nobody known"`}},
	} {
		t.Run(r.name, func(t *testing.T) {
			before := len(g.log.String())
			if !r.try() {
				t.Fatal("it was not refused")
			}
			found := false
			for line := range strings.Lines(g.log.String()[before:]) {
				if !strings.Contains(line, "audit: refused") {
					continue
				}
				found = true
				for _, want := range r.line {
					if !strings.Contains(line, want) {
						t.Errorf("no %s in %s", want, line)
					}
				}
			}
			if !found {
				t.Errorf("no audit line in %s", g.log.String()[before:])
			}
		})
	}
	for _, secret := range []string{viewer, "lk_stolen"} {
		if strings.Contains(g.log.String(), secret) {
			t.Error("a token stands in the log")
		}
	}
}

// What net/http has to say stands in the coordinator's log, in its form.
func TestAFailedHandshakeStandsInTheLog(t *testing.T) {
	g := serveGuarded(t)
	for _, addr := range []string{g.addr.HTTP, g.addr.Admin} {
		before := len(g.log.String())
		conn, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = conn.Write([]byte("this is no TLS\r\n\r\n")) // it may be cut off
		conn.Close()
		eventually(t, "the log says so", func() bool {
			return strings.Contains(g.log.String()[before:], "level=WARN msg=\"http: TLS handshake error")
		})
	}
}
