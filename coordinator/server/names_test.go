package server

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/dtm-labs/dtm/client/dtmcli"
	"github.com/dtm-labs/dtm/client/dtmgrpc/dtmgpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/lockstep-tx/lockstep/coordinator/api/apipb"
	"github.com/lockstep-tx/lockstep/coordinator/api/client"
	"github.com/lockstep-tx/lockstep/coordinator/auth"
	"github.com/lockstep-tx/lockstep/coordinator/dtmwire/dtmwiretest"
	"github.com/lockstep-tx/lockstep/coordinator/engine"
	"github.com/lockstep-tx/lockstep/coordinator/peer/peerpb"
)

// guarded is a coordinator behind TLS, tokens and client certificates, and everybody who knocks.
type guarded struct {
	*process
	ca               *authority
	dir              string
	tokens           map[auth.Role]string
	lines            []string
	tokensFile, cert string
	http, admin      string // base urls
}

func serveGuarded(t *testing.T) *guarded {
	t.Helper()
	g := &guarded{ca: newAuthority(t, "the region's CA"), dir: t.TempDir(), tokens: map[auth.Role]string{}}
	for _, role := range []auth.Role{auth.RoleViewer, auth.RoleOperator, auth.RoleAdmin} {
		token, line := auth.NewToken(role, role.String()+"-person")
		g.tokens[role] = token
		g.lines = append(g.lines, line)
	}
	g.tokensFile = filepath.Join(g.dir, "tokens")
	put(t, g.tokensFile, "# who may\n"+strings.Join(g.lines, "\n")+"\n")
	var key string
	g.cert, key = g.ca.write(g.dir, "server", g.ca.named("coordinator", "", time.Now().Add(time.Hour)))
	g.process = serve(t, "--tls-cert", g.cert, "--tls-key", key, "--tls-client-ca", g.ca.writeCA(g.dir, "ca"), "--tokens", g.tokensFile, "--allow-from=127.0.0.2/32", "--debug-clock")
	g.http, g.admin = "https://"+g.addr.HTTP, "https://"+g.addr.Admin
	return g
}

// dial connects to the gRPC listener, from a loopback address where one is given.
func (g *guarded) dial(t *testing.T, c *tls.Config, from string) *grpc.ClientConn {
	t.Helper()
	d := net.Dialer{}
	if from != "" {
		d.LocalAddr = &net.TCPAddr{IP: net.ParseIP(from)}
	}
	conn, err := grpc.NewClient("passthrough:///"+g.addr.GRPC, grpc.WithTransportCredentials(credentials.NewTLS(c)),
		grpc.WithContextDialer(func(ctx context.Context, a string) (net.Conn, error) { return d.DialContext(ctx, "tcp", a) }))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

func bearing(ctx context.Context, token string) context.Context {
	if token == "" {
		return ctx
	}
	return metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+token)
}

// TestNobodyGetsInWithoutAName knocks at all three listeners as everybody who should be refused and as those who
// should not (G11).
func TestNobodyGetsInWithoutAName(t *testing.T) {
	g := serveGuarded(t)
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	viewer, operator, admin := g.tokens[auth.RoleViewer], g.tokens[auth.RoleOperator], g.tokens[auth.RoleAdmin]
	nameless := web(t, g.ca.client())
	const dtm = "/api/dtmsvr"
	submit := `{"gid":"by-hand","trans_type":"saga","steps":[{"action":"http://127.0.0.1:1/a"}],"payloads":["{}"]}`

	t.Run("http", func(t *testing.T) {
		for _, c := range []struct {
			name, method, path, token, body string
			want                            int
			says                            string
		}{
			{"dtm no token", "GET", dtm + "/newGid", "", "", 401, `"message"`},
			{"dtm no token submits", "POST", dtm + "/submit", "", submit, 401, `"message"`},
			{"dtm unknown token", "GET", dtm + "/newGid", "lk_unknown", "", 401, `"message"`},
			{"dtm unknown token in the path", "GET", "/t/lk_unknown" + dtm + "/newGid", "", "", 401, `"message"`},
			{"dtm unknown path", "GET", "/somewhere", "", "", 401, `"message"`},
			{"dtm viewer reads", "GET", dtm + "/newGid", viewer, "", 200, "SUCCESS"},
			{"dtm viewer submits", "POST", dtm + "/submit", viewer, submit, 403, "role operator is needed"},
			{"dtm viewer subscribes with GET", "GET", dtm + "/subscribe?topic=a&url=b", viewer, "", 403, "role operator is needed"},
			{"dtm viewer in the path submits", "POST", "/t/" + viewer + dtm + "/submit", "", submit, 403, "role operator is needed"},
			{"dtm operator in the path", "GET", "/t/" + operator + dtm + "/newGid", "", "", 200, "SUCCESS"},
			{"dtm ping is open", "GET", "/api/ping", "", "", 200, "pong"},
			{"json-rpc no token", "POST", "/api/json-rpc", "", `{"jsonrpc":"2.0","id":1,"method":"newGid"}`, 401, `"code":-32031`},
			{"json-rpc viewer", "POST", "/api/json-rpc", viewer, `{"jsonrpc":"2.0","id":1,"method":"newGid"}`, 403, `"code":-32032`},
			{"json-rpc operator", "POST", "/api/json-rpc", operator, `{"jsonrpc":"2.0","id":1,"method":"newGid"}`, 200, `"gid"`},
			{"admin no token", "GET", "admin:/v1/transactions", "", "", 401, "LOCKSTEP_TOKEN"},
			{"admin no token stops", "POST", "admin:/v1/transaction/stop?gid=x", "", "", 401, "LOCKSTEP_TOKEN"},
			{"admin no token adopts", "POST", "admin:/v1/adopt", "", `""`, 401, "LOCKSTEP_TOKEN"},
			{"admin viewer lists", "GET", "admin:/v1/transactions", viewer, "", 200, `"transactions"`},
			{"admin viewer stops", "POST", "admin:/v1/transaction/stop?gid=x", viewer, "", 403, "lockstep token new"},
			{"admin operator adopts", "POST", "admin:/v1/adopt", operator, `""`, 403, "role admin is needed"},
			{"admin admin adopts nonsense", "POST", "admin:/v1/adopt", admin, `"AAAA"`, 400, "corrupt"},
			{"operator moves the clock", "POST", "admin:/debug/clock/advance?by=1s", operator, "", 403, "role admin is needed"},
			{"metrics no token", "GET", "admin:/metrics", "", "", 401, "LOCKSTEP_TOKEN"},
			{"metrics viewer", "GET", "admin:/metrics", viewer, "", 200, "lockstep_requests_total"},
			{"profiles no token", "GET", "admin:/debug/pprof/cmdline", "", "", 401, "LOCKSTEP_TOKEN"},
			{"alive is open", "GET", "admin:/healthz", "", "", 200, "alive"},
			{"ready is open", "GET", "admin:/readyz", "", "", 200, "ready"},
		} {
			url := g.http + c.path
			if rest, ok := strings.CutPrefix(c.path, "admin:"); ok {
				url = g.admin + rest
			}
			code, h, body := ask(t, nameless, c.method, url, c.token, c.body)
			if code != c.want || !strings.Contains(body, c.says) {
				t.Errorf("%s: got %d %s, want %d with %s", c.name, code, body, c.want, c.says)
			}
			if code == 401 && h.Get("WWW-Authenticate") == "" {
				t.Errorf("%s: 401 without WWW-Authenticate", c.name)
			}
			if code >= 400 && !json.Valid([]byte(body)) {
				t.Errorf("%s: the refusal is no JSON: %s", c.name, body)
			}
		}
	})

	t.Run("grpc", func(t *testing.T) {
		none := g.dial(t, g.ca.client(), "")
		shop := g.dial(t, g.ca.client(g.ca.named("shop", "", time.Now().Add(time.Hour))), "")
		watcher := g.dial(t, g.ca.client(g.ca.named("watcher", "viewer", time.Now().Add(time.Hour))), "")
		near := g.dial(t, g.ca.client(), "127.0.0.2")
		mate := g.dial(t, g.ca.client(g.ca.named("coordinator", "", time.Now().Add(time.Hour))), "")
		begin := func(ctx context.Context, c *grpc.ClientConn) error {
			_, err := apipb.NewCoordinatorClient(c).Begin(ctx, &apipb.BeginRequest{})
			return err
		}
		list := func(ctx context.Context, c *grpc.ClientConn) error {
			_, err := apipb.NewCoordinatorClient(c).List(ctx, &apipb.ListRequest{})
			return err
		}
		watch := func(ctx context.Context, c *grpc.ClientConn) error {
			s, err := apipb.NewCoordinatorClient(c).Watch(ctx, &apipb.GetRequest{Gid: "nobody"})
			if err == nil {
				_, err = s.Recv()
			}
			return err
		}
		newGid := func(ctx context.Context, c *grpc.ClientConn) error {
			_, err := dtmgpb.NewDtmClient(c).NewGid(ctx, &emptypb.Empty{})
			return err
		}
		prepare := func(ctx context.Context, c *grpc.ClientConn) error {
			_, err := dtmgpb.NewDtmClient(c).Prepare(ctx, &dtmgpb.DtmRequest{Gid: "grpc-" + time.Now().Format("150405.000000000"), TransType: "tcc"})
			return err
		}
		peerRead := func(ctx context.Context, c *grpc.ClientConn) error {
			_, err := peerpb.NewPeerClient(c).Do(ctx, &peerpb.DoRequest{Gid: "nobody", Want: uint32(engine.WantAccepted)})
			return err
		}
		peerList := func(ctx context.Context, c *grpc.ClientConn) error {
			_, err := peerpb.NewPeerClient(c).ListLive(ctx, &peerpb.ListRequest{Limit: 1, Slot: -1})
			return err
		}
		for _, c := range []struct {
			name  string
			conn  *grpc.ClientConn
			token string
			call  func(context.Context, *grpc.ClientConn) error
			want  codes.Code
		}{
			{"native, no name", none, "", begin, codes.Unauthenticated},
			{"native, unknown token", none, "lk_unknown", begin, codes.Unauthenticated},
			{"native, unknown token beside a certificate", shop, "lk_unknown", begin, codes.Unauthenticated},
			{"native, viewer begins", none, viewer, begin, codes.PermissionDenied},
			{"native, viewer lists", none, viewer, list, codes.OK},
			{"native, operator begins", none, operator, begin, codes.OK},
			{"native, a certificate begins", shop, "", begin, codes.OK},
			{"native, a viewer's certificate begins", watcher, "", begin, codes.PermissionDenied},
			{"native, a viewer's certificate lists", watcher, "", list, codes.OK},
			{"native, the allowed network is DTM's alone", near, "", begin, codes.Unauthenticated},
			{"native, watch without a name", none, "", watch, codes.Unauthenticated},
			{"native, viewer watches", none, viewer, watch, codes.NotFound},
			{"dtm, no name", none, "", newGid, codes.Unauthenticated},
			{"dtm, no name prepares", none, "", prepare, codes.Unauthenticated},
			{"dtm, by certificate", shop, "", prepare, codes.OK},
			{"dtm, a viewer's certificate", watcher, "", prepare, codes.PermissionDenied},
			{"dtm, from the allowed network", near, "", prepare, codes.OK},
			{"dtm, operator's token", none, operator, newGid, codes.OK},
			{"peer, no name", none, "", peerRead, codes.PermissionDenied},
			{"peer, admin's token", none, admin, peerRead, codes.PermissionDenied},
			{"peer, a client's certificate", shop, "", peerRead, codes.PermissionDenied},
			{"peer, from the allowed network", near, "", peerList, codes.PermissionDenied},
			{"peer, a coordinator", mate, "", peerRead, codes.OK},
		} {
			if err := c.call(bearing(ctx, c.token), c.conn); status.Code(err) != c.want {
				t.Errorf("%s: got %v, want %s", c.name, err, c.want)
			}
		}
		st, err := none.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true, ClientStreams: true}, "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo")
		if err == nil {
			err = st.RecvMsg(&emptypb.Empty{})
		}
		if status.Code(err) != codes.Unauthenticated {
			t.Errorf("reflection without a name: got %v, want Unauthenticated", err)
		}
	})

	t.Run("handshakes", func(t *testing.T) {
		stranger := newAuthority(t, "somebody else")
		for name, cert := range map[string]tls.Certificate{
			"expired":                  g.ca.named("shop", "", time.Now().Add(-time.Minute)),
			"signed by a stranger":     stranger.named("shop", "", time.Now().Add(time.Hour)),
			"a stranger's coordinator": stranger.named("coordinator", "", time.Now().Add(time.Hour)),
		} {
			c := web(t, g.ca.client(cert))
			for _, url := range []string{g.http + "/api/ping", g.admin + "/healthz"} {
				if resp, err := c.Get(url); err == nil {
					resp.Body.Close()
					t.Errorf("%s: %s answered %s, want the handshake refused", name, url, resp.Status)
				}
			}
			_, err := dtmgpb.NewDtmClient(g.dial(t, g.ca.client(cert), "")).NewGid(ctx, &emptypb.Empty{})
			if status.Code(err) != codes.Unavailable {
				t.Errorf("%s: gRPC answered %v, want the handshake refused", name, err)
			}
		}
		for _, addr := range []string{g.addr.HTTP, g.addr.Admin} {
			if resp, err := http.Get("http://" + addr + "/api/ping"); err == nil {
				resp.Body.Close()
				if resp.StatusCode == http.StatusOK {
					t.Errorf("%s answers in the clear", addr)
				}
			}
		}
		plain, err := client.Dial(g.addr.GRPC)
		if err != nil {
			t.Fatal(err)
		}
		defer plain.Close()
		if _, err := plain.NewGid(ctx); err == nil {
			t.Error("gRPC answers in the clear")
		}
	})

	t.Run("dtmcli with a token in its server's address", func(t *testing.T) {
		p := dtmwiretest.NewParticipant(t)
		dtmcli.GetRestyClient().SetTLSClientConfig(g.ca.client())
		defer dtmcli.GetRestyClient().SetTLSClientConfig(nil)
		base := g.http + "/t/" + operator + "/api/dtmsvr"
		gid := dtmcli.MustGenGid(base)
		saga := dtmcli.NewSaga(base, gid).Add(p.HTTP("out"), p.HTTP("back"), map[string]int{"amount": 30})
		saga.WaitResult = true
		if err := saga.Submit(); err != nil {
			t.Fatalf("submit with an operator's token: %v", err)
		}
		if err := dtmcli.NewSaga(g.http+"/t/"+viewer+"/api/dtmsvr", gid+"v").Add(p.HTTP("out"), p.HTTP("back"), nil).Submit(); err == nil {
			t.Error("a viewer's token submits")
		}
	})

	t.Run("acts are logged with who did them", func(t *testing.T) {
		cl, err := client.Dial(g.addr.GRPC, client.WithTLS(g.ca.client()), client.WithToken(operator))
		if err != nil {
			t.Fatal(err)
		}
		defer cl.Close()
		if _, err := cl.Begin(ctx, client.Tx{Gid: "acted-on"}); err != nil {
			t.Fatal(err)
		}
		for _, c := range []struct{ method, url, body string }{
			{"POST", g.admin + "/v1/transaction/stop?gid=acted-on", ""},
			{"POST", g.admin + "/v1/transaction/retry?gid=acted-on", ""},
			{"POST", g.http + dtm + "/forceStop", `{"gid":"acted-on"}`},
		} {
			if code, _, body := ask(t, nameless, c.method, c.url, operator, c.body); code != 200 {
				t.Fatalf("%s: %d %s", c.url, code, body)
			}
		}
		ask(t, nameless, "POST", g.admin+"/v1/transaction/stop?gid=never-begun", admin, "")
		log := g.log.String()
		for line, n := range map[string]int{
			"msg=audit act=stop gid=acted-on who=operator-person role=operator how=token":              2,
			"msg=audit act=retry gid=acted-on who=operator-person role=operator how=token":             1,
			`msg="audit: refused" act=stop gid=never-begun who=admin-person role=admin how=token err=`: 1,
		} {
			if got := strings.Count(log, line); got != n {
				t.Errorf("%d times in the log, want %d: %s", got, n, line)
			}
		}
	})

	t.Run("changes of topics are logged with who made them", func(t *testing.T) {
		for _, path := range []string{"/subscribe?topic=orders&url=http://joe:s3cret@127.0.0.1:1/on%3Fkey=s3cret", "/unsubscribe?topic=orders&url=http://127.0.0.1:1/none", "/subscribe?topic=orders&url=nothing"} {
			ask(t, nameless, "GET", g.http+dtm+path, operator, "")
		}
		rpc := dtmgpb.NewDtmClient(g.dial(t, g.ca.client(), ""))
		ctx := metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+admin)
		for _, f := range []func() error{
			func() error {
				_, err := rpc.Subscribe(ctx, &dtmgpb.DtmTopicRequest{Topic: "orders", URL: "127.0.0.1:1/p.S/On"})
				return err
			},
			func() error {
				_, err := rpc.Unsubscribe(ctx, &dtmgpb.DtmTopicRequest{Topic: "orders", URL: "127.0.0.1:1/p.S/On"})
				return err
			},
			func() error {
				_, err := rpc.DeleteTopic(ctx, &dtmgpb.DtmTopicRequest{Topic: "orders"})
				return err
			},
		} {
			if err := f(); err != nil {
				t.Fatal(err)
			}
		}
		if code, _, body := ask(t, nameless, "DELETE", g.http+dtm+"/topic/orders", operator, ""); code != 500 {
			t.Fatalf("a topic that is gone: %d %s", code, body)
		}
		ask(t, nameless, "GET", g.http+dtm+"/subscribe?topic=theirs&url=http://127.0.0.1:1/on", viewer, "")
		log := g.log.String()
		const joe, root = "who=operator-person role=operator how=token", "who=admin-person role=admin how=token"
		for _, line := range []string{
			"msg=audit act=subscribe topic=orders url=http://127.0.0.1:1/on " + joe,
			`msg="audit: refused" act=unsubscribe topic=orders url=http://127.0.0.1:1/none ` + joe + " err=",
			`msg="audit: refused" act=subscribe topic=orders url=nothing ` + joe + " err=",
			"msg=audit act=subscribe topic=orders url=127.0.0.1:1/p.S/On " + root,
			"msg=audit act=unsubscribe topic=orders url=127.0.0.1:1/p.S/On " + root,
			`msg=audit act="delete topic" topic=orders url="" ` + root,
			`msg="audit: refused" act="delete topic" topic=orders url="" ` + joe + " err=",
		} {
			if got := strings.Count(log, line); got != 1 {
				t.Errorf("%d times in the log, want once: %s", got, line)
			}
		}
		if strings.Contains(log, "s3cret") || strings.Contains(log, "topic=theirs") {
			t.Error("the log holds an address's secret, or an act that the role did not allow")
		}
	})

	t.Run("files are read again", func(t *testing.T) {
		fresh, line := auth.NewToken(auth.RoleViewer, "newcomer")
		put(t, g.tokensFile, strings.Join(append(g.lines[1:], line), "\n"))
		g.ca.write(g.dir, "server", g.ca.named("coordinator", "renewed", time.Now().Add(2*time.Hour)))
		eventually(t, "the new token is known", func() bool {
			code, _, _ := ask(t, nameless, "GET", g.http+dtm+"/newGid", fresh, "")
			return code == 200
		})
		if code, _, body := ask(t, nameless, "GET", g.http+dtm+"/newGid", viewer, ""); code != 401 {
			t.Errorf("a token that was taken out: got %d %s, want 401", code, body)
		}
		eventually(t, "the new certificate is shown", func() bool {
			conn, err := tls.Dial("tcp", g.addr.GRPC, &tls.Config{RootCAs: g.ca.client().RootCAs, MinVersion: tls.VersionTLS12, NextProtos: []string{"h2"}})
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			units := conn.ConnectionState().PeerCertificates[0].Subject.OrganizationalUnit
			return len(units) == 1 && units[0] == "renewed"
		})
		// a file that went bad leaves what was read before
		put(t, g.tokensFile, "nonsense\n")
		eventually(t, "the bad file is noticed", func() bool {
			code, _, _ := ask(t, nameless, "GET", g.http+dtm+"/newGid", fresh, "")
			if code != 200 {
				t.Fatalf("a bad tokens file locks everybody out: %d", code)
			}
			return strings.Contains(g.log.String(), "the tokens file was not reloaded")
		})
		g.tokens[auth.RoleNone] = fresh
	})

	if err := g.stop(); err != nil {
		t.Fatal(err)
	}
	for role, token := range g.tokens {
		if strings.Contains(g.log.String(), token) {
			t.Errorf("the %s's token stands in the log", role)
		}
	}
}

// TestTheJournalsPasswordIsNowhere starts against a journal that is not there: neither the error nor the log says the
// password.
func TestTheJournalsPasswordIsNowhere(t *testing.T) {
	for _, url := range []string{"postgres://ls:s3cret-pw@127.0.0.1:1/db?connect_timeout=1", "mysql://ls:s3cret-pw@127.0.0.1:1/db", "postgres://ls:s3cret-pw@127.0.0.1:nonsense/db"} {
		log := &logBuffer{}
		cfg := parse(t, "--embedded", "--data-dir", t.TempDir(), "--http-addr=127.0.0.1:0", "--grpc-addr=127.0.0.1:0", "--admin-addr=127.0.0.1:0", "--journal-url", url)
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		_, err := New(ctx, cfg, "test", slog.New(slog.NewTextHandler(log, &slog.HandlerOptions{Level: slog.LevelDebug})))
		cancel()
		if err == nil {
			t.Fatalf("%s: it starts", url)
		}
		if !strings.HasPrefix(err.Error(), "journal-url: ") {
			t.Errorf("%s: the error does not begin with its key: %v", url, err)
		}
		if said := fmt.Sprint(err, log.String(), cfg.Print()); strings.Contains(said, "s3cret-pw") {
			t.Errorf("%s: the password is said: %s", url, said)
		}
	}
}
