package dtmwire

import (
	"net"
	"net/url"
	"strings"
	"unicode/utf8"

	"github.com/lockstep-tx/lockstep/coordinator/txn"
)

// CheckGid says why a gid cannot be used; nil when it can. The native API judges by the same rules.
func CheckGid(gid string) error { return checkGid(gid) }

// CheckURL says why an address can never be called; nil when it may be. field names it in the text.
func (s *Server) CheckURL(field, raw string) error { return s.checkURL(field, raw) }

// CheckBranches bounds a transaction's branches and refuses those that can never be called; headers go with every call.
func (s *Server) CheckBranches(gid string, bs []txn.Branch, headers map[string]string) error {
	if err := s.checkBranches(gid, bs); err != nil {
		return err
	}
	grpc := false
	for i := range bs {
		for _, u := range []string{bs[i].Try, bs[i].Confirm, bs[i].Cancel} {
			grpc = grpc || (u != "" && !isHTTP(u) && !strings.HasPrefix(u, namedScheme))
		}
	}
	return checkHeaders("options.headers", headers, grpc)
}

// checkGid refuses gids that no barrier table, client or terminal could carry.
func checkGid(gid string) error {
	if gid == "" {
		return invalid("gid", "no gid specified")
	}
	if err := txn.CheckName(gid); err != nil {
		return invalid("gid", "%v", err)
	}
	if strings.Contains(gid, ";") {
		return invalid("gid", "the character ';' is not allowed")
	}
	return nil
}

// checkHeaders refuses headers that no call could carry; grpc says that some go as gRPC metadata.
func checkHeaders(field string, headers map[string]string, grpc bool) error {
	size := 0
	for k, v := range headers {
		size += len(k) + len(v)
		switch {
		case !headerName(k) || !headerValue(v):
			return invalid(field, "%q is no header name, or its value holds a control character", k)
		case grpc && (!metadataName(k) || !printable(v)):
			return invalid(field, "%q or its value cannot go as gRPC metadata: letters, digits, - _ . in the name, printable ASCII in the value", k)
		case size > headersBytesMax:
			return invalid(field, "they have more than %d bytes", headersBytesMax)
		}
	}
	return nil
}

// headersBytesMax bounds the branch headers of one transaction.
const headersBytesMax = 16 << 10

// headerValue says that net/http takes v as a header's value.
func headerValue(v string) bool {
	for i := range len(v) {
		if c := v[i]; (c < ' ' && c != '\t') || c == 0x7f {
			return false
		}
	}
	return true
}

// printable says that v may stand in gRPC metadata.
func printable(v string) bool {
	for i := range len(v) {
		if v[i] < ' ' || v[i] > '~' {
			return false
		}
	}
	return true
}

func metadataName(k string) bool {
	for i := range len(k) {
		if c := k[i] | 0x20; !(c >= 'a' && c <= 'z') && !(k[i] >= '0' && k[i] <= '9') && strings.IndexByte("-_.", k[i]) < 0 {
			return false
		}
	}
	return true
}

func headerName(k string) bool {
	for i := range len(k) {
		if c := k[i]; c <= ' ' || c >= 0x7f || strings.IndexByte(`()<>@,;:\"/[]?={}`, c) >= 0 {
			return false
		}
	}
	return k != ""
}

// checkBranches bounds the branches and checks their addresses.
func (s *Server) checkBranches(gid string, bs []txn.Branch) error {
	if len(bs) > s.lim.Branches {
		return invalid("steps", "%d branches; at most %d are taken", len(bs), s.lim.Branches)
	}
	total := 0
	for i := range bs {
		total += len(bs[i].Payload)
		for _, u := range []string{bs[i].Try, bs[i].Confirm, bs[i].Cancel} {
			if u == "" {
				continue
			}
			if err := s.checkURL("url", u, gid, string(bs[i].ID)); err != nil {
				return err
			}
		}
	}
	if total > s.lim.PayloadBytes {
		return invalid("payloads", "%d bytes; at most %d are taken", total, s.lim.PayloadBytes)
	}
	return nil
}

// urlBytesMax bounds an address.
const urlBytesMax = 4096

// grpcsScheme begins the address of a gRPC server that is called over TLS.
const grpcsScheme = "grpcs://"

// namedScheme begins the address of a participant that is called by its name.
const namedScheme = "lockstep://"

func isHTTP(raw string) bool {
	return strings.HasPrefix(raw, "http://") || strings.HasPrefix(raw, "https://")
}

// checkURL refuses what can never be called: no address, no host, a scheme without a driver, a host that is not
// allowed, a gRPC address for ids that gRPC's metadata cannot carry.
func (s *Server) checkURL(field, raw string, ids ...string) error {
	if len(raw) > urlBytesMax || !utf8.ValidString(raw) || strings.ContainsAny(raw, " \r\n\t\x00") {
		return invalid(field, "%.60q is no address", raw)
	}
	if strings.HasPrefix(raw, namedScheme) {
		name, _, ok := strings.Cut(raw[len(namedScheme):], "/")
		switch {
		case !s.Named:
			return invalid(field, "%.200q names a participant: that takes a deployment with several regions (--regions-file); give http://host:port/path", raw)
		case !ok || name == "":
			return invalid(field, "%.200q names no participant and path: write lockstep://name/path", raw)
		}
		return nil
	}
	if isHTTP(raw) {
		u, err := url.Parse(raw)
		if err != nil || u.Host == "" || u.Hostname() == "" {
			return invalid(field, "%.200q is no http address: write http://host:port/path", raw)
		}
	} else {
		plain := strings.TrimPrefix(raw, grpcsScheme)
		if strings.Contains(plain, "://") {
			return invalid(field, "call dtmdriver.Use() before you use custom scheme for '%.200s'; http, https, host:port/package.Service/Method and the same behind grpcs:// are spoken here", raw)
		}
		target, method, ok := strings.Cut(plain, "/")
		if !ok {
			return invalid(field, "bad url: '%.200s'. no '/' found", raw)
		}
		if host, _, err := net.SplitHostPort(target); err != nil || host == "" || method == "" {
			return invalid(field, "%.200q is no gRPC address: write host:port/package.Service/Method, behind grpcs:// over TLS", raw)
		}
		for _, id := range ids {
			if !printable(id) {
				return invalid(field, "%.200q is called over gRPC, whose metadata cannot carry the id %q: use printable ASCII", raw, id)
			}
		}
	}
	if err := s.allow.CheckURL(raw); err != nil {
		return invalid(field, "%v", err)
	}
	return nil
}
