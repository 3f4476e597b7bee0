package journal

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"sort"
	"strings"
	"time"

	"github.com/go-sql-driver/mysql"
	"github.com/jackc/pgx/v5"
)

const connectTimeout = 10 * time.Second

// address is where a journal is kept. Its text never holds the password.
type address struct {
	where    string // for messages
	file     string
	postgres *pgx.ConnConfig
	mysql    *mysql.Config
	// asServer: the server's own durability is accepted, whatever it is.
	asServer bool
}

// parseAddress reads a journal's URL. Its errors show no more of it than the scheme and the names of options: a URL that
// cannot be parsed may have its password anywhere.
func parseAddress(raw string) (*address, error) {
	scheme, rest, ok := strings.Cut(raw, ":")
	if !ok || strings.ContainsAny(scheme, "/\\@") {
		return nil, errors.New("the journal's address has no scheme: write sqlite:/path/file.db, postgres://… or mysql://…")
	}
	switch strings.ToLower(scheme) {
	case "sqlite":
		// The path is taken as it stands, unescaped; sqlite:///path means /path too.
		if after, ok := strings.CutPrefix(rest, "//"); ok && strings.HasPrefix(after, "/") {
			rest = after
		}
		if rest == "" {
			return nil, errors.New("the journal's address names no file: write sqlite:/path/file.db")
		}
		return &address{where: "SQLite file " + rest, file: rest}, nil
	case "postgres", "postgresql":
		return parsePostgres(raw)
	case "mysql", "mariadb":
		return parseMySQL(raw)
	}
	return nil, fmt.Errorf("the journal's address has the unknown scheme %q: write sqlite:/path/file.db, postgres://… or mysql://…", scheme)
}

// parseServer reads what both kinds of server URLs have in common.
func parseServer(raw string) (*url.URL, url.Values, *address, error) {
	u, err := url.Parse(raw)
	if err != nil {
		return nil, nil, nil, errors.New("the journal's address is no URL; write scheme://user:password@host:port/database with the password percent-encoded (its special characters as %40 and so on)")
	}
	q, err := url.ParseQuery(u.RawQuery)
	if err != nil {
		return nil, nil, nil, errors.New("the options of the journal's address (after the ?) are not of the form name=value&name=value")
	}
	a := &address{}
	switch d := q.Get("durability"); d {
	case "":
	case "server":
		a.asServer = true
	default:
		return nil, nil, nil, fmt.Errorf("the journal's address has durability=%q: leave it out, or write durability=server", d)
	}
	q.Del("durability")
	return u, q, a, nil
}

func parsePostgres(raw string) (*address, error) {
	u, q, a, err := parseServer(raw)
	if err != nil {
		return nil, err
	}
	secrets := []string{q.Get("password"), q.Get("sslpassword")}
	if p, ok := u.User.Password(); ok {
		secrets = append(secrets, p, url.QueryEscape(p), url.PathEscape(p))
	}
	u.RawQuery = q.Encode()
	if a.postgres, err = pgx.ParseConfig(u.String()); err != nil {
		// pgx hides the password of a well-formed URL, which this is; what is done here is for the case that it errs.
		text := err.Error()
		for _, s := range secrets {
			if s != "" {
				text = strings.ReplaceAll(text, s, "xxxxx")
			}
		}
		return nil, fmt.Errorf("the journal's address: %s", text)
	}
	if a.postgres.ConnectTimeout == 0 {
		a.postgres.ConnectTimeout = connectTimeout
	}
	if a.postgres.RuntimeParams["application_name"] == "" {
		a.postgres.RuntimeParams["application_name"] = "lockstep-journal"
	}
	a.where = fmt.Sprintf("PostgreSQL %s, database %q", net.JoinHostPort(a.postgres.Host, fmt.Sprint(a.postgres.Port)), a.postgres.Database)
	return a, nil
}

func parseMySQL(raw string) (*address, error) {
	u, q, a, err := parseServer(raw)
	if err != nil {
		return nil, err
	}
	cfg := mysql.NewConfig()
	cfg.User = u.User.Username()
	cfg.Passwd, _ = u.User.Password()
	cfg.DBName = strings.TrimPrefix(u.Path, "/")
	if cfg.DBName == "" || strings.Contains(cfg.DBName, "/") {
		return nil, errors.New("the journal's address names no database: write mysql://user:password@host:port/database")
	}
	host, port := u.Hostname(), u.Port()
	if host == "" {
		host = "127.0.0.1"
	}
	if port == "" {
		port = "3306"
	}
	cfg.Net, cfg.Addr = "tcp", net.JoinHostPort(host, port)
	if s := q.Get("socket"); s != "" {
		cfg.Net, cfg.Addr = "unix", s
	}
	if cfg.TLS, cfg.AllowFallbackToPlaintext, err = mysqlTLS(q, host); err != nil {
		return nil, fmt.Errorf("the journal's address: %w", err)
	}
	for _, known := range []string{"socket", "sslmode", "sslrootcert", "sslcert", "sslkey"} {
		q.Del(known)
	}
	if len(q) > 0 {
		var unknown []string
		for name := range q {
			unknown = append(unknown, name)
		}
		sort.Strings(unknown)
		return nil, fmt.Errorf("the journal's address has the unknown option %s; there are sslmode, sslrootcert, sslcert, sslkey, socket and durability", strings.Join(unknown, ", "))
	}
	cfg.Timeout = connectTimeout
	// Values are put into the statement by the driver: one round trip for a statement of any number of rows. That is
	// safe with utf8mb4, and the server's escaping mode is known from each of its answers.
	cfg.InterpolateParams = true
	cfg.MaxAllowedPacket = 0 // ask the server
	cfg.Logger = &mysql.NopLogger{}
	cfg.Params = map[string]string{"sql_mode": "'STRICT_ALL_TABLES,NO_ENGINE_SUBSTITUTION'"}
	a.mysql = cfg
	a.where = fmt.Sprintf("MariaDB/MySQL %s, database %q", cfg.Addr, cfg.DBName)
	return a, nil
}

// mysqlTLS gives PostgreSQL's words for TLS the same meaning here.
func mysqlTLS(q url.Values, host string) (cfg *tls.Config, plaintextToo bool, err error) {
	mode := q.Get("sslmode")
	if mode == "" {
		mode = "prefer"
		if q.Get("socket") != "" {
			mode = "disable"
		}
		if q.Get("sslrootcert") != "" {
			mode = "verify-full"
		}
	}
	cfg = &tls.Config{MinVersion: tls.VersionTLS12, ServerName: host}
	if file := q.Get("sslrootcert"); file != "" {
		pem, err := os.ReadFile(file)
		if err != nil {
			return nil, false, fmt.Errorf("sslrootcert: %w", err)
		}
		cfg.RootCAs = x509.NewCertPool()
		if !cfg.RootCAs.AppendCertsFromPEM(pem) {
			return nil, false, fmt.Errorf("sslrootcert: %s holds no PEM certificate", file)
		}
	}
	cert, key := q.Get("sslcert"), q.Get("sslkey")
	if (cert == "") != (key == "") {
		return nil, false, errors.New("sslcert and sslkey go together")
	}
	if cert != "" {
		pair, err := tls.LoadX509KeyPair(cert, key)
		if err != nil {
			return nil, false, fmt.Errorf("sslcert and sslkey: %w", err)
		}
		cfg.Certificates = []tls.Certificate{pair}
	}
	switch mode {
	case "disable":
		return nil, false, nil
	case "prefer":
		cfg.InsecureSkipVerify = true
		return cfg, true, nil
	case "require":
		cfg.InsecureSkipVerify = true
		return cfg, false, nil
	case "verify-ca":
		roots := cfg.RootCAs
		cfg.InsecureSkipVerify = true // the chain is verified here, the name is not
		cfg.VerifyConnection = func(cs tls.ConnectionState) error {
			opts := x509.VerifyOptions{Roots: roots, Intermediates: x509.NewCertPool()}
			for _, c := range cs.PeerCertificates[1:] {
				opts.Intermediates.AddCert(c)
			}
			_, err := cs.PeerCertificates[0].Verify(opts)
			return err
		}
		return cfg, false, nil
	case "verify-full":
		return cfg, false, nil
	}
	return nil, false, fmt.Errorf("sslmode=%q is none of disable, prefer, require, verify-ca, verify-full", mode)
}
