package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/lockstep-tx/lockstep/coordinator/api/admin"
	"github.com/lockstep-tx/lockstep/coordinator/auth"
	"github.com/lockstep-tx/lockstep/coordinator/config"
)

// defaultAdmin is where a coordinator's admin API listens by default.
const defaultAdmin = "127.0.0.1:36788"

// target is a coordinator that a command asks, and how it prints the answer.
type target struct {
	AdminAddr string        `help:"Admin address of any coordinator of the region." default:"127.0.0.1:36788" placeholder:"HOST:PORT"`
	TLS       bool          `name:"tls" help:"Speak TLS, with the system's authorities. --ca and --cert turn it on, too."`
	Ca        string        `name:"ca" help:"CA of the coordinators' certificates, instead of the system's authorities." placeholder:"FILE"`
	Cert      string        `help:"Client certificate, instead of a token (LOCKSTEP_TOKEN)." placeholder:"FILE"`
	Key       string        `help:"Key of --cert." placeholder:"FILE"`
	Output    string        `help:"table or json." enum:"table,json" default:"table" short:"o"`
	Timeout   time.Duration `help:"How long to wait for an answer." default:"30s"`

	TokenInTheClear bool `help:"Send the token without TLS to another machine: everybody on the way can read it and act with it."`
}

// flags are those that name the target as it was named.
func (t *target) flags() []string {
	var out []string
	if t.AdminAddr != defaultAdmin {
		out = append(out, flagOf("admin-addr", t.AdminAddr))
	}
	for name, v := range map[string]string{"ca": t.Ca, "cert": t.Cert, "key": t.Key} {
		if v != "" {
			out = append(out, flagOf(name, v))
		}
	}
	if t.TLS {
		out = append(out, "--tls")
	}
	if t.TokenInTheClear {
		out = append(out, "--token-in-the-clear")
	}
	slices.Sort(out)
	return out
}

// command is a command of ours for the same target.
func (t *target) command(words ...string) string {
	return strings.Join(slices.Concat([]string{"lockstep"}, words, t.flags()), " ")
}

// asking are the commands that ask a coordinator; the longer stand first.
var asking = []string{"lockstep tx list", "lockstep tx show", "lockstep tx retry", "lockstep tx stop", "lockstep status"}

// pasteable puts the target's flags into advice that a coordinator gave: it does not know how it was reached.
func (t *target) pasteable(advice string) string {
	for _, c := range asking {
		rest, ok := strings.CutPrefix(advice, c)
		if ok && (rest == "" || rest[0] == ' ') && !strings.HasPrefix(rest, " --help") {
			return strings.Join(append([]string{c}, t.flags()...), " ") + rest
		}
	}
	return advice
}

func (t *target) client() (*http.Client, string, error) {
	tr := &http.Transport{}
	scheme := "http"
	if t.secure() {
		scheme, tr.TLSClientConfig = "https", &tls.Config{MinVersion: tls.VersionTLS12}
	}
	if t.Ca != "" {
		pool, err := auth.LoadPool(t.Ca)
		if err != nil {
			return nil, "", usageError{fmt.Errorf("--ca: %w", err)}
		}
		tr.TLSClientConfig.RootCAs = pool
	}
	if t.Cert != "" {
		pair, err := tls.LoadX509KeyPair(t.Cert, t.Key)
		if err != nil {
			return nil, "", usageError{fmt.Errorf("--cert: %w", err)}
		}
		tr.TLSClientConfig.Certificates = []tls.Certificate{pair}
	}
	// No coordinator redirects: whoever does shall not get the token.
	return &http.Client{Transport: tr, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}, scheme + "://" + t.AdminAddr, nil
}

// secure says that the target is spoken to over TLS.
func (t *target) secure() bool { return t.TLS || t.Ca != "" || t.Cert != "" }

// mayBear refuses to send a token where everybody on the way could read it.
func (t *target) mayBear(e *env) error {
	switch {
	case t.secure() || config.Loopback(t.AdminAddr):
		return nil
	case t.TokenInTheClear:
		fmt.Fprintf(e.err, "TOKEN IN THE CLEAR: LOCKSTEP_TOKEN goes to %s without TLS; everybody on the way can read it and act with it\n", t.AdminAddr)
		return nil
	}
	safe := *t
	safe.TLS = true
	return &failure{usageError{fmt.Errorf("--admin-addr: %s is another machine, and LOCKSTEP_TOKEN would go there in the clear; speak TLS (--tls, or --ca FILE), or say --token-in-the-clear", t.AdminAddr)},
		safe.command("status")}
}

func (t *target) get(e *env, path string, q url.Values, out any) error {
	return t.do(e, http.MethodGet, path, q, nil, out)
}

func (t *target) post(e *env, path string, q url.Values, body, out any) error {
	return t.do(e, http.MethodPost, path, q, body, out)
}

func (t *target) do(e *env, method, path string, q url.Values, body, out any) error {
	cli, base, err := t.client()
	if err != nil {
		return err
	}
	defer cli.CloseIdleConnections()
	var rd io.Reader
	if body != nil {
		raw, err := json.Marshal(body)
		if err != nil {
			return err
		}
		rd = bytes.NewReader(raw)
	}
	ctx, cancel := context.WithTimeout(e.ctx, t.Timeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, base+path+"?"+q.Encode(), rd)
	if err != nil {
		return usageError{err}
	}
	if token := e.getenv("LOCKSTEP_TOKEN"); token != "" {
		if err := t.mayBear(e); err != nil {
			return err
		}
		req.Header.Set("Authorization", "Bearer "+token)
	}
	resp, err := cli.Do(req)
	if err != nil {
		var ue *url.Error
		if errors.As(err, &ue) {
			err = ue.Err
		}
		return &failure{fmt.Errorf("ask the coordinator at %s: %w", t.AdminAddr, err), t.command("status") + "  # once a coordinator listens there, or with --admin-addr of one that does"}
	}
	defer resp.Body.Close()
	raw, err := io.ReadAll(resp.Body)
	if err != nil {
		return fmt.Errorf("read the coordinator's answer: %w", err)
	}
	if resp.StatusCode != http.StatusOK {
		ae := &admin.Error{}
		if json.Unmarshal(raw, ae) != nil || ae.Text == "" {
			return fmt.Errorf("the coordinator at %s answered %s: %s", t.AdminAddr, shown(resp.Status), shown(cut(string(raw), 200)))
		}
		ae.Text = shown(ae.Text)
		return &failure{ae, t.pasteable(ae.Next)}
	}
	if err := json.Unmarshal(raw, out); err != nil {
		return fmt.Errorf("the answer of %s%s cannot be read: %w", base, path, err)
	}
	return nil
}

// printer writes results for programs.
type printer struct {
	json bool
	w    io.Writer
}

func (t *target) printer(e *env) printer { return printer{json: t.Output == "json", w: e.out} }

func (p printer) object(v any) error {
	enc := json.NewEncoder(p.w)
	enc.SetIndent("", "  ")
	return enc.Encode(v)
}

func (p printer) line(v any) error { return json.NewEncoder(p.w).Encode(v) }
