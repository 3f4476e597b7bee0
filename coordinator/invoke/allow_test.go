package invoke

import (
	"context"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"

	"github.com/lockstep-tx/lockstep/coordinator/txn"
)

func allowOf(t *testing.T, patterns ...string) *Allow {
	t.Helper()
	a, err := ParseAllow(patterns)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// Issue 3, point 13, and D26: without patterns all but link-local and cloud metadata addresses are allowed.
func TestDefaultRefusesLinkLocalAndCloudMetadata(t *testing.T) {
	a := DefaultAllow()
	for addr, want := range map[string]bool{
		"127.0.0.1": true, "10.0.0.1": true, "192.0.2.1": true, "::1": true, "2001:db8::1": true, "fd00::1": true,
		"169.254.169.254": false, "169.254.0.1": false, "fe80::1": false, "fe80::1%eth0": false, "::ffff:169.254.169.254": false,
		"64:ff9b::169.254.169.254": false, "2002:a9fe:a9fe::1": false, "64:ff9b::169.254.0.1": false, "64:ff9b::0.0.0.0": false, "64:ff9b::10.0.0.1": true, "2002:c000:201::1": true,
		"fd00:ec2::254": false, "100.100.100.200": false, "168.63.129.16": false, "224.0.0.1": false, "ff02::1": false, "0.0.0.0": false, "::": false,
	} {
		if got := a.allowed(netip.MustParseAddr(addr), false); got != want {
			t.Errorf("%s allowed: %v, want %v", addr, got, want)
		}
	}
}

func TestPatternsAllowWhatTheyNameAndNothingElse(t *testing.T) {
	for _, c := range []struct {
		patterns string
		url      string
		want     bool
	}{
		{"10.0.0.0/8", "http://10.1.2.3/x", true}, {"10.0.0.0/8", "http://11.1.2.3/x", false}, {"10.0.0.0/8", "10.1.2.3:80/p.S/M", true},
		{"192.168.1.7", "http://192.168.1.7:80/", true}, {"192.168.1.7", "http://192.168.1.8/", false},
		{"pay.example.com", "http://pay.example.com/", true}, {"pay.example.com", "http://PAY.example.com.:80/", true}, {"pay.example.com", "http://example.com/", false},
		{"pay.example.com", "http://pay.example.com.evil.org/", false}, {"pay.example.com", "http://pay.example.com@evil.org/", false},
		{"pay.example.com", "http://10.0.0.1/", false}, // only names are allowed: an address is none
		{"*.example.com", "http://a.example.com/", true}, {"*.example.com", "http://example.com/", false}, {"*.example.com", "http://badexample.com/", false},
		{"pay.example.com,10.0.0.0/8", "http://10.1.1.1/", true}, {"pay.example.com,10.0.0.0/8", "http://11.1.1.1/", false},
		{"169.254.169.254", "http://169.254.169.254/", true}, {"*.example.com", "http://169.254.169.254/", false}, {"fe80::/10", "http://[fe80::1]:80/", true},
		{"10.0.0.0/8", "http://[64:ff9b::10.1.1.1]/", true}, {"10.0.0.0/8", "http://[64:ff9b::11.1.1.1]/", false}, {"10.0.0.0/8", "http://[2002:a01:101::]/", true},
		{"2000::/3", "http://[2002:a9fe:a9fe::]/", false}, {"::/0", "http://[64:ff9b::169.254.169.254]/", false}, {"64:ff9b::/96", "http://[64:ff9b::11.1.1.1]/", true},
	} {
		err := allowOf(t, strings.Split(c.patterns, ",")...).CheckURL(c.url)
		if (err == nil) != c.want {
			t.Errorf("%s with %s: %v, want allowed %v", c.url, c.patterns, err, c.want)
		}
	}
	if _, err := ParseAllow([]string{"10.0.0.0/8", "http://x", "", "a/b"}); err == nil || strings.Count(err.Error(), "branch-allow: ") != 3 {
		t.Errorf("faults are %v, want all three", err)
	}
}

// The dialled address decides, whatever the url said: a name that resolves to a refused address is refused.
func TestNameThatResolvesToARefusedAddressIsRefused(t *testing.T) {
	t.Parallel()
	s := httptest.NewServer(http.NotFoundHandler())
	t.Cleanup(s.Close)
	_, port, _ := net.SplitHostPort(s.Listener.Addr().String())
	refused := allowOf(t, "192.0.2.0/24")
	if err := refused.CheckURL("http://localhost:" + port); err != nil {
		t.Fatalf("the name itself says nothing yet: %v", err)
	}
	v := newInvoker(t, Config{Allow: refused})
	for _, u := range []string{"http://localhost:" + port + "/x", "localhost:" + port + "/p.S/M"} {
		if res := one(t, v, callTo(u)); res.Outcome != txn.Unknown || !strings.Contains(res.Text, "not allowed") {
			t.Errorf("%s ended %v %q", u, res.Outcome, res.Text)
		}
	}
}

// A name that is allowed may point anywhere but to link-local and metadata addresses.
func TestAllowedNameIsDialledWhereItPoints(t *testing.T) {
	t.Parallel()
	s := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	t.Cleanup(s.Close)
	_, port, _ := net.SplitHostPort(s.Listener.Addr().String())
	v := newInvoker(t, Config{Allow: allowOf(t, "localhost", "192.0.2.0/24")})
	if res := one(t, v, callTo("http://localhost:"+port)); res.Outcome != txn.Done {
		t.Errorf("the named host ended %v %q", res.Outcome, res.Text)
	}
	if res := one(t, v, callTo("http://127.0.0.1:"+port)); res.Outcome != txn.Unknown || !strings.Contains(res.Text, "not allowed") {
		t.Errorf("its bare address ended %v %q", res.Outcome, res.Text)
	}
	a := allowOf(t, "metadata.internal")
	_, err := a.dialer(net.Dialer{})(context.Background(), "tcp", "169.254.169.254:80", "metadata.internal:80")
	if err == nil || !strings.Contains(err.Error(), "not allowed") {
		t.Errorf("an allowed name that points to the metadata address: %v", err)
	}
}

// A redirect is dialled under the same rule, and only one that keeps method and body is followed at all.
func TestRedirectsAreJudgedLikeAnyAddress(t *testing.T) {
	t.Parallel()
	reached := make(chan string, 10)
	target := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { reached <- r.Method }))
	t.Cleanup(target.Close)
	_, port, _ := net.SplitHostPort(target.Listener.Addr().String())
	to, code := "", 0
	from := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, to, code) }))
	t.Cleanup(from.Close)
	_, fromPort, _ := net.SplitHostPort(from.Listener.Addr().String())

	open := newInvoker(t, Config{})
	for _, c := range []int{307, 308} {
		to, code = target.URL, c
		if res := one(t, open, callTo(from.URL)); res.Outcome != txn.Done || <-reached != "POST" {
			t.Errorf("a redirect %d ended %v %q", c, res.Outcome, res.Text)
		}
	}
	for _, c := range []int{301, 302, 303} { // a POST would become a GET without its body
		to, code = target.URL, c
		if res := one(t, open, callTo(from.URL)); res.Outcome != txn.Unknown || len(reached) != 0 {
			t.Errorf("a redirect %d ended %v %q", c, res.Outcome, res.Text)
		}
	}
	to, code = "http://169.254.169.254/latest/meta-data", 307
	if res := one(t, open, callTo(from.URL)); res.Outcome != txn.Unknown || !strings.Contains(res.Text, "not allowed") {
		t.Errorf("a redirect to the metadata address ended %v %q", res.Outcome, res.Text)
	}
	// From an allowed name to an address that no pattern holds.
	named := newInvoker(t, Config{Allow: allowOf(t, "localhost")})
	to = "http://127.0.0.1:" + port
	if res := one(t, named, callTo("http://localhost:"+fromPort)); res.Outcome != txn.Unknown || !strings.Contains(res.Text, "not allowed") || len(reached) != 0 {
		t.Errorf("a redirect off the list ended %v %q", res.Outcome, res.Text)
	}
	loop := newInvoker(t, Config{})
	to = from.URL
	if res := one(t, loop, callTo(from.URL)); res.Outcome != txn.Unknown {
		t.Errorf("a redirect in a circle ended %v", res.Outcome)
	}
}
