package invoke

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"syscall"
)

// Allow says which addresses branches may be called at. Without patterns all but link-local and cloud metadata
// addresses are; they never are unless a network or address among the patterns holds them. With patterns, what is
// called must be reached by a name among them or have an address among them. It is checked on the address that is
// dialled, so that a name or a redirect cannot get around it.
type Allow struct {
	prefixes []netip.Prefix
	hosts    []string
}

// DefaultAllow is the Allow without patterns.
func DefaultAllow() *Allow { return &Allow{} }

// ParseAllow reads patterns: "10.0.0.0/8", "192.168.1.7", "pay.example.com", "*.example.com". An error names every
// pattern that is none.
func ParseAllow(patterns []string) (*Allow, error) {
	a := &Allow{}
	var errs []error
	for _, p := range patterns {
		p = strings.TrimSpace(p)
		if pre, err := netip.ParsePrefix(p); err == nil {
			a.prefixes = append(a.prefixes, pre.Masked())
		} else if ip, err := netip.ParseAddr(p); err == nil {
			a.prefixes = append(a.prefixes, netip.PrefixFrom(ip, ip.BitLen()))
		} else if p != "" && !strings.ContainsAny(p, "/:@ ") {
			a.hosts = append(a.hosts, strings.ToLower(p))
		} else {
			errs = append(errs, fmt.Errorf("branch-allow: %q is no address, network or host name: write 10.0.0.0/8, 192.168.1.7 or *.example.com", p))
		}
	}
	return a, errors.Join(errs...)
}

// NotAllowedError refuses a destination.
type NotAllowedError struct{ Address string }

func (e *NotAllowedError) Error() string {
	return fmt.Sprintf("branch address %s is not allowed: name it in --branch-allow", e.Address)
}

// CheckURL refuses a url whose host is certain not to be allowed, without resolving it. The dialled address is
// checked again at the call.
func (a *Allow) CheckURL(raw string) error {
	host := raw
	if i := strings.Index(host, "://"); i >= 0 {
		host = host[i+3:]
	}
	if i := strings.IndexAny(host, "/?#"); i >= 0 {
		host = host[:i]
	}
	if i := strings.LastIndexByte(host, '@'); i >= 0 {
		host = host[i+1:]
	}
	host = hostOf(host)
	if ip, err := netip.ParseAddr(host); err == nil {
		if !a.allowed(ip, false) {
			return &NotAllowedError{Address: host}
		}
		return nil
	}
	// A name is judged by the address that it turns out to be, unless only names are allowed.
	if host == "" || len(a.hosts) == 0 || len(a.prefixes) > 0 || a.named(host) {
		return nil
	}
	return &NotAllowedError{Address: host}
}

// hostOf is the host of host:port, in lower case, without the brackets of IPv6 and the dot that may end a name.
func hostOf(hostport string) string {
	if h, _, err := net.SplitHostPort(hostport); err == nil {
		hostport = h
	}
	return strings.TrimSuffix(strings.ToLower(strings.Trim(hostport, "[]")), ".")
}

// named says that a pattern names the host.
func (a *Allow) named(host string) bool {
	for _, h := range a.hosts {
		if h == host || (strings.HasPrefix(h, "*.") && strings.HasSuffix(host, h[1:])) {
			return true
		}
	}
	return false
}

// cloudMetadata are the addresses at which clouds hand out credentials.
var cloudMetadata = []netip.Addr{netip.MustParseAddr("169.254.169.254"), netip.MustParseAddr("fd00:ec2::254"), netip.MustParseAddr("100.100.100.200"), netip.MustParseAddr("168.63.129.16")}

// allowed judges an address; named says that its host's name is among the patterns. Link-local and cloud metadata
// addresses need a pattern of their own even then: a name's owner chooses where it points.
func (a *Allow) allowed(ip netip.Addr, named bool) bool {
	outer := ip.Unmap().WithZone("")
	ip, bits := embedded(outer)
	for _, p := range a.prefixes {
		if p.Contains(ip) || p.Bits() >= bits && p.Contains(outer) {
			return true
		}
	}
	if !named && len(a.prefixes)+len(a.hosts) > 0 {
		return false
	}
	if ip.IsLinkLocalUnicast() || ip.IsLinkLocalMulticast() || ip.IsMulticast() || ip.IsUnspecified() {
		return false
	}
	for _, m := range cloudMetadata {
		if ip == m {
			return false
		}
	}
	return true
}

// Networks whose addresses lead to the IPv4 address within them: NAT64 (RFC 6052) and 6to4 (RFC 3056).
var (
	nat64  = netip.MustParsePrefix("64:ff9b::/96")
	sixTo4 = netip.MustParsePrefix("2002::/16")
)

// embedded gives the address that ip leads to, itself for most. bits is how long a pattern must be that means ip as it
// stands: one that happens to contain a whole transition network does not mean what lies behind it.
func embedded(ip netip.Addr) (to netip.Addr, bits int) {
	switch b := ip.As16(); {
	case nat64.Contains(ip):
		return netip.AddrFrom4([4]byte(b[12:16])), nat64.Bits()
	case sixTo4.Contains(ip):
		return netip.AddrFrom4([4]byte(b[2:6])), sixTo4.Bits()
	}
	return ip, 0
}

// dialFunc dials addr on behalf of a url whose host:port was target.
type dialFunc func(ctx context.Context, network, addr, target string) (net.Conn, error)

// dialer makes d dial only what is allowed: it sees each address after names were resolved, just before the connection
// is made, so that neither a name nor a redirect gets around it.
func (a *Allow) dialer(d net.Dialer) dialFunc {
	return func(ctx context.Context, network, addr, target string) (net.Conn, error) {
		host := hostOf(target)
		_, err := netip.ParseAddr(host)
		named := err != nil && a.named(host)
		d := d
		d.ControlContext = func(_ context.Context, network, address string, _ syscall.RawConn) error {
			ap, err := netip.ParseAddrPort(address)
			if err != nil {
				return fmt.Errorf("dial %s %s: %w", network, address, err)
			}
			if !a.allowed(ap.Addr(), named) {
				return &NotAllowedError{Address: address}
			}
			return nil
		}
		return d.DialContext(ctx, network, addr)
	}
}
