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
	"time"

	"github.com/lockstep-tx/lockstep/coordinator/api/admin"
	"github.com/lockstep-tx/lockstep/coordinator/auth"
)

// defaultAdmin is where a coordinator's admin API listens by default.
const defaultAdmin = "127.0.0.1:36788"

// target is a coordinator that a command asks, and how it prints the answer.
type target struct {
	AdminAddr string        `help:"Admin address of any coordinator of the region." default:"127.0.0.1:36788" placeholder:"HOST:PORT"`
	Ca        string        `name:"ca" help:"CA of the coordinators' certificates; turns TLS on." placeholder:"FILE"`
	Cert      string        `help:"Client certificate, instead of a token (LOCKSTEP_TOKEN)." placeholder:"FILE"`
	Key       string        `help:"Key of --cert." placeholder:"FILE"`
	Output    string        `help:"table or json." enum:"table,json" default:"table" short:"o"`
	Timeout   time.Duration `help:"How long to wait for an answer." default:"30s"`
}

func (t *target) client() (*http.Client, string, error) {
	tr := &http.Transport{}
	scheme := "http"
	if t.Ca != "" {
		pool, err := auth.LoadPool(t.Ca)
		if err != nil {
			return nil, "", usageError{fmt.Errorf("--ca: %w", err)}
		}
		scheme, tr.TLSClientConfig = "https", &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}
		if t.Cert != "" {
			pair, err := tls.LoadX509KeyPair(t.Cert, t.Key)
			if err != nil {
				return nil, "", usageError{fmt.Errorf("--cert: %w", err)}
			}
			tr.TLSClientConfig.Certificates = []tls.Certificate{pair}
		}
	}
	return &http.Client{Transport: tr}, scheme + "://" + t.AdminAddr, nil
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
		req.Header.Set("Authorization", "Bearer "+token)
	}
	resp, err := cli.Do(req)
	if err != nil {
		var ue *url.Error
		if errors.As(err, &ue) {
			err = ue.Err
		}
		return &failure{fmt.Errorf("ask the coordinator at %s: %w", t.AdminAddr, err), "lockstep status --admin-addr HOST:PORT  # of a coordinator that runs"}
	}
	defer resp.Body.Close()
	raw, err := io.ReadAll(resp.Body)
	if err != nil {
		return fmt.Errorf("read the coordinator's answer: %w", err)
	}
	if resp.StatusCode != http.StatusOK {
		ae := &admin.Error{}
		if json.Unmarshal(raw, ae) != nil || ae.Text == "" {
			return fmt.Errorf("the coordinator at %s answered %s: %s", t.AdminAddr, resp.Status, cut(string(raw), 200))
		}
		return &failure{ae, ae.Next}
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
