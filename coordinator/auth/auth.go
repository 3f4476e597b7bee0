// Package auth says who a request is from and what they may do.
//
// The law it keeps: off loopback nobody unnamed gets in unless an operator wrote --insecure or --allow-from; a token is
// compared by its hash and never logged. Names come from a bearer token, from a token in the base URL's path (DTM's
// HTTP clients cannot send a header), from a client certificate, or from the network (DTM's gRPC clients can send
// neither).
//
// It is tested with no token, wrong roles, expired certificates, and a search of the log for the token.
package auth

import (
	"bufio"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"time"
	"unicode"
	"unicode/utf8"
)

// Role is what somebody may do; each includes the one before.
type Role uint8

const (
	RoleNone Role = iota
	RoleViewer
	RoleOperator
	RoleAdmin
)

func (r Role) String() string {
	switch r {
	case RoleNone:
		return "none"
	case RoleViewer:
		return "viewer"
	case RoleOperator:
		return "operator"
	case RoleAdmin:
		return "admin"
	}
	return "unknown"
}

// ParseRole reads what String gives, but for none.
func ParseRole(s string) (Role, bool) {
	for _, r := range []Role{RoleViewer, RoleOperator, RoleAdmin} {
		if r.String() == s {
			return r, true
		}
	}
	return RoleNone, false
}

// Identity is who asks.
type Identity struct {
	Name string
	Role Role
	How  string // token, certificate, network, loopback, insecure
}

type identityKey struct{}

// With puts an identity into a context.
func With(ctx context.Context, id Identity) context.Context {
	return context.WithValue(ctx, identityKey{}, id)
}

// From takes it out; the zero Identity when there is none.
func From(ctx context.Context) Identity {
	id, _ := ctx.Value(identityKey{}).(Identity)
	return id
}

// Errors of Identify. Their texts say what to do.
var (
	ErrNoName    = errors.New("no name: send a bearer token, put it into the base URL's path (/t/TOKEN), or use a client certificate")
	ErrBadToken  = errors.New("the token is not known")
	ErrForbidden = errors.New("the role does not allow this")
)

// ForbiddenError says which role is needed. It is ErrForbidden.
type ForbiddenError struct {
	Have Identity
	Need Role
}

func (e *ForbiddenError) Error() string {
	return fmt.Sprintf("%s (%s) may not do this: role %s is needed", e.Have.Name, e.Have.Role, e.Need)
}

// Unwrap makes it ErrForbidden.
func (e *ForbiddenError) Unwrap() error { return ErrForbidden }

// Guard names callers. Safe for concurrent use.
type Guard struct {
	tokensFile string
	networks   []netip.Prefix
	open       bool // without tokens and client certificates: loopback and --insecure
	openHow    string
	log        *slog.Logger

	refusals refusals

	mu     sync.Mutex
	read   time.Time // when the file was last looked at
	mtime  time.Time
	tokens map[[sha256.Size]byte]Identity
}

// Config of a Guard.
type Config struct {
	// TokensFile has a line "ROLE NAME SHA256HEX" per token; # begins a comment. Empty without tokens.
	TokensFile string
	// ClientCerts: client certificates are verified by the listeners and name their bearers.
	ClientCerts bool
	// AllowFrom are networks whose callers of DTM's protocol need no name.
	AllowFrom []string
	// Insecure lets everybody in.
	Insecure bool
	Log      *slog.Logger
}

// New makes a Guard. A tokens file that cannot be read is an error that names every bad line.
func New(c Config) (*Guard, error) {
	g := &Guard{tokensFile: c.TokensFile, log: c.Log}
	if g.log == nil {
		g.log = slog.New(slog.DiscardHandler)
	}
	for _, n := range c.AllowFrom {
		p, err := netip.ParsePrefix(n)
		if err != nil {
			return nil, fmt.Errorf("allow-from: %w", err)
		}
		g.networks = append(g.networks, p.Masked())
	}
	switch {
	case c.Insecure:
		g.open, g.openHow = true, "insecure"
	case c.TokensFile == "" && !c.ClientCerts:
		g.open, g.openHow = true, "loopback"
	}
	if c.TokensFile != "" {
		if err := g.load(); err != nil {
			return nil, err
		}
	}
	return g, nil
}

// load reads the tokens file.
func (g *Guard) load() error {
	f, err := os.Open(g.tokensFile)
	if err != nil {
		return fmt.Errorf("tokens: %w", err)
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return fmt.Errorf("tokens: %w", err)
	}
	tokens, err := parseTokens(f, g.tokensFile)
	if err != nil {
		return err
	}
	g.tokens, g.mtime, g.read = tokens, st.ModTime(), time.Now()
	return nil
}

// parseTokens reads lines "ROLE NAME SHA256HEX"; # begins a comment. file names it in errors, which name every bad line.
func parseTokens(r io.Reader, file string) (map[[sha256.Size]byte]Identity, error) {
	tokens := map[[sha256.Size]byte]Identity{}
	var errs []error
	sc := bufio.NewScanner(r)
	line := 1
	bad := func(text string) { errs = append(errs, fmt.Errorf("tokens: %s line %d: %s", file, line, text)) }
	for ; sc.Scan(); line++ {
		text, _, _ := strings.Cut(sc.Text(), "#")
		fields := strings.Fields(text)
		if len(fields) == 0 {
			continue
		}
		if len(fields) != 3 {
			bad("write ROLE NAME SHA256 (lockstep token new makes one)")
			continue
		}
		role, ok := ParseRole(fields[0])
		raw, err := hex.DecodeString(fields[2])
		if !ok || err != nil || len(raw) != sha256.Size {
			bad("the role is viewer, operator or admin, and the hash has 64 hex digits")
			continue
		}
		if err := CheckName(fields[1]); err != nil {
			bad(err.Error())
			continue
		}
		if _, twice := tokens[[sha256.Size]byte(raw)]; twice {
			bad("this token stands twice: leave one line of it")
			continue
		}
		tokens[[sha256.Size]byte(raw)] = Identity{Name: fields[1], Role: role, How: "token"}
	}
	if err := sc.Err(); err != nil {
		bad(err.Error())
	}
	return tokens, errors.Join(errs...)
}

// CheckName refuses a name that a line of the tokens file cannot hold.
func CheckName(name string) error {
	if name == "" || !utf8.ValidString(name) || strings.ContainsFunc(name, func(r rune) bool { return r == '#' || unicode.IsSpace(r) || !unicode.IsPrint(r) }) {
		return fmt.Errorf("the name %.60q is no single word: write letters, digits and -_.@ without spaces and #", name)
	}
	return nil
}

// reloadEvery is how often the tokens file is looked at.
const reloadEvery = time.Second

// refresh reads the file again when it has changed. A file that went bad leaves what was read before.
func (g *Guard) refresh() {
	if g.tokensFile == "" || time.Since(g.read) < reloadEvery {
		return
	}
	g.read = time.Now()
	st, err := os.Stat(g.tokensFile)
	if err == nil && st.ModTime().Equal(g.mtime) {
		return
	}
	if err == nil {
		err = g.load()
	}
	if err != nil {
		g.log.Error("the tokens file was not reloaded: the tokens read before stay", "err", err)
		return
	}
	g.log.Info("the tokens file was reloaded", "tokens", len(g.tokens))
}

// Caller is what is known of a caller.
type Caller struct {
	Token  string              // from the header or the path; "" without one
	Certs  []*x509.Certificate // the verified chain's certificates, leaf first; nil without
	Remote string              // host:port
	// DTM: the call is of DTM's protocol, whose clients may be named by their network.
	DTM bool
}

// Identify names a caller. A token that is wrong is an error even where nobody needs a name.
func (g *Guard) Identify(c Caller) (Identity, error) {
	if c.Token != "" && g.tokensFile != "" {
		g.mu.Lock()
		g.refresh()
		id, ok := g.tokens[sha256.Sum256([]byte(c.Token))]
		g.mu.Unlock()
		if !ok {
			return Identity{}, ErrBadToken
		}
		return id, nil
	}
	if len(c.Certs) > 0 {
		leaf := c.Certs[0]
		role := RoleOperator
		for _, ou := range leaf.Subject.OrganizationalUnit {
			if r, ok := ParseRole(ou); ok {
				role = r
			}
		}
		return Identity{Name: leaf.Subject.CommonName, Role: role, How: "certificate"}, nil
	}
	if c.DTM {
		if ip, ok := addrOf(c.Remote); ok {
			for _, n := range g.networks {
				if n.Contains(ip) {
					return Identity{Name: ip.String(), Role: RoleOperator, How: "network"}, nil
				}
			}
		}
	}
	if g.open {
		return Identity{Name: "anonymous", Role: RoleAdmin, How: g.openHow}, nil
	}
	return Identity{}, ErrNoName
}

// anybody is who everybody is on loopback without tokens and certificates: there is nothing to look at.
func (g *Guard) anybody() (Identity, bool) {
	return Identity{Name: "anonymous", Role: RoleAdmin, How: g.openHow}, g.open && g.openHow == "loopback"
}

// Need refuses an identity whose role is too small.
func Need(id Identity, need Role) error {
	if id.Role < need {
		return &ForbiddenError{Have: id, Need: need}
	}
	return nil
}

// refusalsPerSecond bounds the audit lines of refusals: whoever may not get in shall not fill the disk either.
const refusalsPerSecond = 20

// refusals counts the refusals of the present second.
type refusals struct {
	mu      sync.Mutex
	second  int64
	logged  int
	skipped int // since the last line
}

// take says whether a line may be written now, and how many were not before it.
func (r *refusals) take(second int64) (skipped int, ok bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.second != second {
		r.second, r.logged = second, 0
	}
	if r.logged++; r.logged > refusalsPerSecond {
		r.skipped++
		return 0, false
	}
	skipped, r.skipped = r.skipped, 0
	return skipped, true
}

// refused logs that somebody was refused. A path that begins like one with a token in it is not written out.
func (g *Guard) refused(act string, id Identity, remote string, err error) {
	skipped, ok := g.refusals.take(time.Now().Unix())
	if !ok {
		return
	}
	if before, _, hit := strings.Cut(act, "/t/"); hit {
		act = before + "/t/…"
	}
	who := id.Name
	if who == "" {
		who = "nobody known"
	}
	attrs := []any{"act", fmt.Sprintf("%.200s", act), "who", who, "role", id.Role.String(), "how", id.How, "from", remote, "err", err}
	if skipped > 0 {
		attrs = append(attrs, "not_logged", skipped)
	}
	g.log.Warn("audit: refused", attrs...)
}

func addrOf(remote string) (netip.Addr, bool) {
	host, _, err := net.SplitHostPort(remote)
	if err != nil {
		host = remote
	}
	ip, err := netip.ParseAddr(host)
	return ip.Unmap(), err == nil
}

// NewToken makes a token and the line of the tokens file that knows it. CheckName says whether the name will do.
func NewToken(role Role, name string) (token, line string) {
	var raw [24]byte
	_, _ = rand.Read(raw[:]) // it never fails (crypto/rand's contract)
	token = "lk_" + base64.RawURLEncoding.EncodeToString(raw[:])
	sum := sha256.Sum256([]byte(token))
	return token, fmt.Sprintf("%s %s %s", role, name, hex.EncodeToString(sum[:]))
}
