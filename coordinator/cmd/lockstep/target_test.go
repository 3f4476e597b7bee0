package main

import (
	"bytes"
	"context"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
)

// A token goes to another machine over TLS or not at all, unless somebody says so aloud.
func TestATokenDoesNotGoToAnotherMachineInTheClear(t *testing.T) {
	withToken := func(k string) string { return map[string]string{"LOCKSTEP_TOKEN": "lk_secret"}[k] }
	const far = "192.0.2.1:1" // nobody is there
	for _, c := range []struct {
		name   string
		args   []string
		getenv func(string) string
		code   int
		says   string // in what is printed
		not    string
	}{
		{"in the clear", []string{"--admin-addr", far}, withToken, exitUsage, "next: lockstep status --admin-addr " + far + " --tls\n", "CLEAR"},
		{"a name that may be anywhere", []string{"--admin-addr", "localhost.example:1"}, withToken, exitUsage, "in the clear", "CLEAR"},
		{"by wish", []string{"--admin-addr", far, "--token-in-the-clear"}, withToken, exitFailure, "TOKEN IN THE CLEAR", "another machine"},
		{"over TLS", []string{"--admin-addr", far, "--tls"}, withToken, exitFailure, "next: lockstep status --admin-addr " + far + " --tls  # once", "CLEAR"},
		{"without a token", []string{"--admin-addr", far}, noEnv, exitFailure, "next: lockstep status --admin-addr " + far + "  # once", "CLEAR"},
		{"on loopback", []string{"--admin-addr", "127.0.0.1:1"}, withToken, exitFailure, "next: lockstep status --admin-addr 127.0.0.1:1  # once", "CLEAR"},
		{"on loopback of IPv6", []string{"--admin-addr", "[::1]:1"}, withToken, exitFailure, "ask the coordinator at", "CLEAR"},
	} {
		t.Run(c.name, func(t *testing.T) {
			var out bytes.Buffer
			code := run(context.Background(), append([]string{"status", "--timeout=20ms"}, c.args...), &out, &out, c.getenv)
			if got := out.String(); code != c.code || !strings.Contains(got, c.says) || strings.Contains(got, c.not) || strings.Contains(got, "lk_secret") {
				t.Errorf("exit code %d, want %d, and %q and not %q in:\n%s", code, c.code, c.says, c.not, got)
			}
		})
	}
}

// Whoever redirects gets no second request with the token in it, and --tls believes the system's authorities alone.
func TestTheTargetIsWhoWasNamed(t *testing.T) {
	var asked atomic.Int64
	other := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { asked.Add(1) }))
	defer other.Close()
	redirect := httptest.NewServer(http.RedirectHandler(other.URL, http.StatusTemporaryRedirect))
	defer redirect.Close()
	var out bytes.Buffer
	if code := run(context.Background(), []string{"status", "--admin-addr", strings.TrimPrefix(redirect.URL, "http://")}, &out, &out, noEnv); code != exitFailure || asked.Load() != 0 {
		t.Errorf("exit code %d, %d requests followed:\n%s", code, asked.Load(), out.String())
	}
	secure := httptest.NewTLSServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { asked.Add(1) }))
	defer secure.Close()
	out.Reset()
	if code := run(context.Background(), []string{"status", "--tls", "--admin-addr", secure.Listener.Addr().String()}, &out, &out, noEnv); code != exitFailure || asked.Load() != 0 || !strings.Contains(out.String(), "certificate") {
		t.Errorf("exit code %d, %d requests:\n%s", code, asked.Load(), out.String())
	}
}

func TestAdviceIsForTheSameTarget(t *testing.T) {
	tg := target{AdminAddr: "10.0.0.1:1", Ca: "/a b/ca.pem", Cert: "c", Key: "k"}
	const flags = "--admin-addr 10.0.0.1:1 --ca '/a b/ca.pem' --cert c --key k"
	for advice, want := range map[string]string{
		"lockstep tx retry -- -rf":                        "lockstep tx retry " + flags + " -- -rf",
		"lockstep tx show 'lockstep tx stop x'  # so":     "lockstep tx show " + flags + " 'lockstep tx stop x'  # so",
		"lockstep tx list":                                "lockstep tx list " + flags,
		"lockstep status":                                 "lockstep status " + flags,
		"lockstep tx list --help":                         "lockstep tx list --help",
		"lockstep token new --role operator --name x":     "lockstep token new --role operator --name x",
		"export LOCKSTEP_TOKEN=YOUR_TOKEN  # lockstep tx": "export LOCKSTEP_TOKEN=YOUR_TOKEN  # lockstep tx",
		"lockstep tx listing":                             "lockstep tx listing",
		"":                                                "",
	} {
		if got := tg.pasteable(advice); got != want {
			t.Errorf("%q became %q, want %q", advice, got, want)
		}
	}
	if got := (&target{AdminAddr: defaultAdmin}).pasteable("lockstep tx list"); got != "lockstep tx list" {
		t.Errorf("at the default address: %q", got)
	}
}

func TestNothingThatATerminalObeysIsShown(t *testing.T) {
	for in, want := range map[string]string{
		"plain ü 注文 👍": "plain ü 注文 👍", "\x1b[2J": `\x1b[2J`, "a\tb\nc\r": `a\tb\nc\r`, "\u202egnp": `\u202egnp`, "\u009b": `\u009b`, "\xff": `\xff`,
		"\u200b": `\u200b`, "\u2028": `\u2028`, "\ufffd": `\ufffd`, "\U000e0041": `\U000e0041`, "\x00\x7f": `\x00\x7f`,
	} {
		if got := shown(in); got != want {
			t.Errorf("%+q is shown as %q, want %q", in, got, want)
		}
	}
	var b bytes.Buffer
	row(&b, " Next: x", "next: y")
	row(&b, "a\nnext: z")
	if got, want := b.String(), "\" Next: x\"\tnext: y\na\\nnext: z\n"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
}
