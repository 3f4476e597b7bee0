// Package config is the coordinator's configuration: flags, then environment, then a file, then defaults.
//
// The law it keeps: every fault is reported at once, each line beginning with the key it is about; a key that is not
// known is a fault; a secret is never printed. The reference in docs/reference/config.md is generated from the struct,
// and a test holds both and the sample in deploy/ together.
package config

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"time"

	"gopkg.in/yaml.v3"
)

// Config of a coordinator process. The tags are kong's; the keys of the file are the flags' names.
type Config struct {
	Config string `help:"YAML file with any of the keys below." placeholder:"FILE" group:"General"`

	Embedded bool   `help:"Run an etcd member in this process: for one coordinator on one machine." group:"Store"`
	DataDir  string `help:"Directory of the embedded etcd and its SQLite journal. Needed with --embedded." placeholder:"DIR" group:"Store"`

	EtcdEndpoints []string `help:"Endpoints of the region's etcd cluster, instead of --embedded." placeholder:"HOST:PORT" group:"Store"`
	EtcdCa        string   `name:"etcd-ca" help:"CA that signed the etcd servers' certificates; turns TLS on." placeholder:"FILE" group:"Store"`
	EtcdCert      string   `help:"Client certificate for etcd." placeholder:"FILE" group:"Store"`
	EtcdKey       string   `help:"Key of --etcd-cert." placeholder:"FILE" group:"Store"`
	JournalUrl    string   `name:"journal-url" help:"SQL journal that the region's coordinators share: postgres://… or mysql://…. Beside an embedded etcd it is SQLite in the data directory." placeholder:"URL" secret:"true" group:"Store"`

	KeepFinished time.Duration `help:"How long finished transactions stay visible." default:"24h" group:"Store"`
	KeepOutcomes time.Duration `help:"How long the outcome of a finished transaction is remembered, so that a late repeat gets its old answer." default:"744h" group:"Store"`

	Region           string   `help:"Name of this region." default:"local" group:"General"`
	RegionsFile      string   `help:"YAML file with the addresses of the arbiter and of all regions: this coordinator is one of a deployment with several." placeholder:"FILE" group:"Regions"`
	ArbiterEndpoints []string `help:"Client addresses of the arbiter's members, in place of those in the regions file." placeholder:"HOST:PORT" group:"Regions"`
	Durability       string   `help:"Where a decision must be durable before it counts, where the client does not say: regional, or global (survives the loss of the region; needs --regions-file)." default:"regional" group:"Regions"`
	LogLevel         string   `help:"debug, info, warn or error." default:"info" group:"General"`
	LogJson          bool     `name:"log-json" help:"Structured logs as JSON instead of text." group:"General"`

	HttpAddr  string `name:"http-addr" help:"DTM's HTTP and JSON-RPC." default:"127.0.0.1:36789" placeholder:"HOST:PORT" group:"Listeners"`
	GrpcAddr  string `name:"grpc-addr" help:"DTM's gRPC, the native API, and the other coordinators." default:"127.0.0.1:36790" placeholder:"HOST:PORT" group:"Listeners"`
	AdminAddr string `help:"Admin API, metrics, health, profiles." default:"127.0.0.1:36788" placeholder:"HOST:PORT" group:"Listeners"`
	// AdvertiseGrpc is where the other coordinators reach GrpcAddr.
	AdvertiseGrpc string `help:"Address of --grpc-addr as the other coordinators reach it. Defaults to the address that is listened on." placeholder:"HOST:PORT" group:"Listeners"`
	AddrFile      string `help:"Write the addresses that are listened on into this file (JSON), for port 0." placeholder:"FILE" group:"Listeners"`

	TlsCert     string   `help:"Certificate of every listener, and towards other coordinators. Reloaded when the file changes." placeholder:"FILE" group:"Security"`
	TlsKey      string   `help:"Key of --tls-cert." placeholder:"FILE" group:"Security"`
	TlsClientCa string   `name:"tls-client-ca" help:"CA that signs the certificates of clients and coordinators: a certificate names its bearer." placeholder:"FILE" group:"Security"`
	Tokens      string   `help:"File of bearer tokens: one \"ROLE NAME SHA256\" a line. Reloaded when it changes. Make one with: lockstep token new." placeholder:"FILE" group:"Security"`
	AllowFrom   []string `help:"Networks whose DTM clients need no name (gRPC cannot send a token)." placeholder:"CIDR" group:"Security"`
	Insecure    bool     `help:"Listen off loopback without TLS or names. For a closed network only; every start says so." group:"Security"`

	BranchAllow []string `help:"Where branches may be called: networks, addresses, host names, *.domain. Without it all but link-local and cloud metadata addresses." placeholder:"PATTERN" group:"Branches"`

	BranchCa   string `name:"branch-ca" help:"CA that signed the participants' certificates, instead of the system's: for https:// and grpcs:// branches." placeholder:"FILE" group:"Branches"`
	BranchCert string `help:"Client certificate towards participants. Reloaded when the file changes." placeholder:"FILE" group:"Branches"`
	BranchKey  string `help:"Key of --branch-cert." placeholder:"FILE" group:"Branches"`

	BranchesMax       int           `help:"Branches of one transaction." default:"500" group:"Limits"`
	BodyBytesMax      int64         `help:"Bytes of one request." default:"1048576" group:"Limits"`
	PayloadBytesMax   int           `help:"Bytes of all payloads of one transaction together." default:"524288" group:"Limits"`
	LiveMax           int           `help:"Unfinished transactions in one process; begins are refused above it." default:"2000000" group:"Limits"`
	UnsavedMax        int           `help:"Transactions that wait to be saved; begins are refused above it, messages above half of it." default:"20000" group:"Limits"`
	BeginsPerSecond   float64       `help:"Begins a second per tenant; 0 means no limit." default:"0" group:"Limits"`
	BranchInflightMax int           `help:"Calls under way to one destination." default:"256" group:"Branches"`
	BreakerFails      int           `help:"Failures in a row that open a destination's breaker." default:"20" group:"Branches"`
	BreakerPause      time.Duration `help:"How often an open breaker lets one call through." default:"1s" group:"Branches"`
	WaitMax           time.Duration `help:"Longest wait of an answer that waits for a result." default:"60s" group:"Limits"`
	MemberTtl         time.Duration `name:"member-ttl" help:"After how long a dead coordinator's slots are taken over." default:"3s" group:"General"`
	DrainTimeout      time.Duration `help:"How long a shutdown waits for requests under way." default:"10s" group:"General"`

	AlertWebhook string `help:"POST here when a branch call keeps failing." placeholder:"URL" secret:"true" group:"Observability"`
	AlertFails   int    `help:"Failures in a row from which a branch call is alerted." default:"3" group:"Observability"`
	PyroscopeUrl string `name:"pyroscope-url" help:"Send profiles with labels by mode and phase to this Pyroscope server." placeholder:"URL" group:"Observability"`
	DebugClock   bool   `help:"POST /debug/clock/advance?by=35s on the admin address moves the clock. For tests only; every start says so." group:"Observability"`
}

// Key is the name of a field: its flag, its key in the file, and, in upper snake case behind LOCKSTEP_, its variable.
func Key(f reflect.StructField) string {
	if n := f.Tag.Get("name"); n != "" {
		return n
	}
	var b strings.Builder
	for i, r := range f.Name {
		if r >= 'A' && r <= 'Z' {
			if i > 0 {
				b.WriteByte('-')
			}
			r += 'a' - 'A'
		}
		b.WriteRune(r)
	}
	return b.String()
}

// EnvName is the environment variable of a key.
func EnvName(key string) string {
	return "LOCKSTEP_" + strings.ToUpper(strings.ReplaceAll(key, "-", "_"))
}

// Keys lists every key in the order of the struct.
func Keys() []string {
	t := reflect.TypeFor[Config]()
	var out []string
	for i := range t.NumField() {
		out = append(out, Key(t.Field(i)))
	}
	return out
}

// ReadFile reads a configuration file: its keys and their values as text. Every key that is not known is a fault, and
// all of them are reported together.
func ReadFile(path string) (map[string]string, error) {
	raw, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("config: %w", err)
	}
	var doc, more yaml.Node
	dec := yaml.NewDecoder(bytes.NewReader(raw))
	if err := dec.Decode(&doc); err != nil && !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("config: %s is no YAML: %w", path, err)
	}
	if err := dec.Decode(&more); !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("config: %s holds more than one document: put all keys into the first", path)
	}
	out := map[string]string{}
	if len(doc.Content) == 0 {
		return out, nil
	}
	root := doc.Content[0]
	if root.Kind != yaml.MappingNode {
		return nil, fmt.Errorf("config: %s must hold keys and values", path)
	}
	known := map[string]bool{}
	for _, k := range Keys() {
		known[k] = k != "config"
	}
	var errs []error
	for i := 0; i+1 < len(root.Content); i += 2 {
		k, v := root.Content[i], root.Content[i+1]
		if !known[k.Value] {
			errs = append(errs, fmt.Errorf("%s: unknown key in %s line %d%s", k.Value, path, k.Line, suggest(k.Value)))
			continue
		}
		if _, twice := out[k.Value]; twice {
			errs = append(errs, fmt.Errorf("%s: it stands twice in %s (line %d)", k.Value, path, k.Line))
		}
		switch v.Kind {
		case yaml.ScalarNode:
			out[k.Value] = scalar(v)
		case yaml.SequenceNode:
			var items []string
			for _, it := range v.Content {
				if it.Kind != yaml.ScalarNode || scalar(it) == "" || strings.Contains(it.Value, ",") {
					errs = append(errs, fmt.Errorf("%s: an item of the list is no single value (%s line %d)", k.Value, path, it.Line))
					continue
				}
				items = append(items, it.Value)
			}
			out[k.Value] = strings.Join(items, ",")
		case yaml.DocumentNode, yaml.MappingNode, yaml.AliasNode:
			errs = append(errs, fmt.Errorf("%s: a value or a list belongs here (%s line %d)", k.Value, path, v.Line))
		}
	}
	return out, errors.Join(errs...)
}

// scalar is a value as text; YAML's null, however it is written, is the empty text.
func scalar(n *yaml.Node) string {
	if n.Tag == "!!null" {
		return ""
	}
	return n.Value
}

// suggest names the known key that is nearest to a mistyped one.
func suggest(key string) string {
	best, dist := "", 4
	for _, k := range Keys() {
		if d := distance(key, k); d < dist {
			best, dist = k, d
		}
	}
	if best == "" {
		return ""
	}
	return fmt.Sprintf("; did you mean %s?", best)
}

// distance is Levenshtein's.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := 1; i <= len(a); i++ {
		prev := row[0]
		row[0] = i
		for j := 1; j <= len(b); j++ {
			cost := prev
			if a[i-1] != b[j-1] {
				cost++
			}
			prev = row[j]
			row[j] = min(cost, row[j]+1, row[j-1]+1)
		}
	}
	return row[len(b)]
}

// Check reports everything that is wrong with the values, each line beginning with its key; nil when they are sound.
func (c *Config) Check() error {
	var errs []error
	bad := func(key, format string, args ...any) { errs = append(errs, fmt.Errorf(key+": "+format, args...)) }
	switch {
	case c.Embedded && len(c.EtcdEndpoints) > 0:
		bad("etcd-endpoints", "choose one store: --embedded, or an external cluster")
	case !c.Embedded && len(c.EtcdEndpoints) == 0:
		bad("embedded", "no store: give --embedded --data-dir DIR, or --etcd-endpoints and --journal-url")
	case c.Embedded && c.DataDir == "":
		bad("data-dir", "the embedded etcd needs a directory")
	case !c.Embedded && c.JournalUrl == "":
		bad("journal-url", "coordinators on an external etcd share a journal: give postgres://… or mysql://…")
	}
	if c.JournalUrl != "" {
		u, err := url.Parse(c.JournalUrl)
		if err != nil {
			bad("journal-url", "it is no URL")
		} else if u.Scheme != "postgres" && u.Scheme != "postgresql" && u.Scheme != "mysql" && u.Scheme != "sqlite" {
			bad("journal-url", "scheme %q is not one of postgres, mysql, sqlite", u.Scheme)
		} else if u.Scheme == "sqlite" && !c.Embedded {
			bad("journal-url", "SQLite cannot be shared by coordinators: give postgres://… or mysql://…")
		}
	}
	for key, addr := range map[string]string{"http-addr": c.HttpAddr, "grpc-addr": c.GrpcAddr, "admin-addr": c.AdminAddr} {
		host, _, err := net.SplitHostPort(addr)
		if err != nil {
			bad(key, "%q is no HOST:PORT", addr)
			continue
		}
		if !loopback(host) && !c.Insecure && c.TlsCert == "" {
			bad(key, "%s is not loopback: give --tls-cert and --tls-key (or --insecure on a closed network)", addr)
		}
	}
	if named := c.Tokens != "" || c.TlsClientCa != ""; !named && !c.Insecure && !(Loopback(c.HttpAddr) && Loopback(c.GrpcAddr) && Loopback(c.AdminAddr)) {
		bad("tokens", "off loopback nobody may come without a name: give --tokens or --tls-client-ca (or --insecure on a closed network)")
	}
	if len(c.EtcdEndpoints) > 0 && !c.Insecure && c.TlsClientCa == "" && (c.Tokens != "" || c.TlsCert != "") {
		bad("tls-client-ca", "the coordinators of a region know one another by their certificates: give --tls-cert, --tls-key and --tls-client-ca")
	}
	if c.AdvertiseGrpc != "" {
		if _, _, err := net.SplitHostPort(c.AdvertiseGrpc); err != nil {
			bad("advertise-grpc", "%q is no HOST:PORT", c.AdvertiseGrpc)
		}
	}
	for _, pair := range [][4]string{{"tls-cert", c.TlsCert, "tls-key", c.TlsKey}, {"etcd-cert", c.EtcdCert, "etcd-key", c.EtcdKey}, {"branch-cert", c.BranchCert, "branch-key", c.BranchKey}} {
		if (pair[1] == "") != (pair[3] == "") {
			bad(pair[0], "%s and %s belong together", pair[0], pair[2])
		}
	}
	for key, file := range map[string]string{"tls-cert": c.TlsCert, "tls-key": c.TlsKey, "tls-client-ca": c.TlsClientCa, "tokens": c.Tokens, "etcd-ca": c.EtcdCa, "etcd-cert": c.EtcdCert, "etcd-key": c.EtcdKey, "branch-ca": c.BranchCa, "branch-cert": c.BranchCert, "branch-key": c.BranchKey} {
		if file == "" {
			continue
		}
		if f, err := os.Open(file); err != nil {
			bad(key, "%v", err)
		} else {
			f.Close()
		}
	}
	if c.TlsCert == "" && c.TlsClientCa != "" {
		bad("tls-client-ca", "client certificates need --tls-cert")
	}
	for _, n := range c.AllowFrom {
		if _, err := netip.ParsePrefix(n); err != nil {
			bad("allow-from", "%q is no network: write 10.0.0.0/8", n)
		}
	}
	switch {
	case c.Durability != "regional" && c.Durability != "global":
		bad("durability", "%q is neither regional nor global", c.Durability)
	case c.Durability == "global" && c.RegionsFile == "":
		bad("durability", "global needs an arbiter: give --regions-file")
	}
	switch c.LogLevel {
	case "debug", "info", "warn", "error":
	default:
		bad("log-level", "%q is none of debug, info, warn, error", c.LogLevel)
	}
	if c.Region == "" || len(c.Region) > 32 || strings.ContainsFunc(c.Region, func(r rune) bool {
		return !(r >= 'a' && r <= 'z' || r >= '0' && r <= '9' || r == '-')
	}) {
		bad("region", "%q is no name: small letters, digits and dashes, at most 32", c.Region)
	}
	for key, d := range map[string]time.Duration{"keep-finished": c.KeepFinished, "keep-outcomes": c.KeepOutcomes, "breaker-pause": c.BreakerPause, "wait-max": c.WaitMax, "drain-timeout": c.DrainTimeout} {
		if d <= 0 {
			bad(key, "%v is not a time that passes", d)
		}
	}
	if c.KeepOutcomes < c.KeepFinished {
		bad("keep-outcomes", "%v is shorter than keep-finished %v", c.KeepOutcomes, c.KeepFinished)
	}
	if c.MemberTtl < 2*time.Second || c.MemberTtl > 5*time.Minute {
		bad("member-ttl", "%v is out of range: 2s to 5m", c.MemberTtl)
	}
	for key, n := range map[string]int64{"branches-max": int64(c.BranchesMax), "body-bytes-max": c.BodyBytesMax, "payload-bytes-max": int64(c.PayloadBytesMax), "live-max": int64(c.LiveMax), "unsaved-max": int64(c.UnsavedMax), "branch-inflight-max": int64(c.BranchInflightMax), "breaker-fails": int64(c.BreakerFails), "alert-fails": int64(c.AlertFails)} {
		if n < 1 {
			bad(key, "%d is not at least 1", n)
		}
	}
	if c.PayloadBytesMax > 900<<10 {
		bad("payload-bytes-max", "%d bytes do not fit into one etcd request: at most 921600", c.PayloadBytesMax)
	}
	if c.BeginsPerSecond < 0 {
		bad("begins-per-second", "%v is negative", c.BeginsPerSecond)
	}
	for key, raw := range map[string]string{"alert-webhook": c.AlertWebhook, "pyroscope-url": c.PyroscopeUrl} {
		if raw == "" {
			continue
		}
		if u, err := url.Parse(raw); err != nil || u.Host == "" || (u.Scheme != "http" && u.Scheme != "https") {
			bad(key, "it is no http or https URL")
		}
	}
	sortErrors(errs)
	return errors.Join(errs...)
}

// JournalAddress is the journal's URL: SQLite in the data directory beside an embedded etcd.
func (c *Config) JournalAddress() string {
	if c.JournalUrl != "" {
		return c.JournalUrl
	}
	return "sqlite:" + filepath.Join(c.DataDir, "journal.db")
}

// loopback says that a host is this machine alone.
func loopback(host string) bool {
	if host == "localhost" {
		return true
	}
	ip, err := netip.ParseAddr(host)
	return err == nil && ip.IsLoopback()
}

// Loopback says that an address (host:port) is this machine alone.
func Loopback(addr string) bool {
	host, _, err := net.SplitHostPort(addr)
	return err == nil && loopback(host)
}
