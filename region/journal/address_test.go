package journal

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestAddresses(t *testing.T) {
	for raw, want := range map[string]string{
		"sqlite:/var/lib/lockstep/journal.db":                "SQLite file /var/lib/lockstep/journal.db",
		"sqlite:///var/lib/journal.db":                       "SQLite file /var/lib/journal.db",
		"sqlite:data/100%/journal.db":                        "SQLite file data/100%/journal.db",
		"postgres://u:p%40ss@db.example/pay?sslmode=require": `PostgreSQL db.example:5432, database "pay"`,
		"postgresql://u@[::1]:6000/pay":                      `PostgreSQL [::1]:6000, database "pay"`,
		"mysql://u:p%40ss@db.example/pay":                    `MariaDB/MySQL db.example:3306, database "pay"`,
		"mariadb://u@db.example:3307/pay?sslmode=verify-ca":  `MariaDB/MySQL db.example:3307, database "pay"`,
		"mysql://u@/pay?socket=/run/mysqld/mysqld.sock":      `MariaDB/MySQL /run/mysqld/mysqld.sock, database "pay"`,
	} {
		a, err := parseAddress(raw)
		if err != nil || a.where != want {
			t.Errorf("%s: %+v, %v", raw, a, err)
		}
	}
	a, err := parseAddress("mysql://u:p%40s%2Fs@h/pay")
	if err != nil || a.mysql.Passwd != "p@s/s" || a.mysql.User != "u" {
		t.Errorf("%+v, %v", a.mysql, err)
	}
}

// secret is a password that needs escaping, and the forms in which it might be shown.
const secret = "S3cr:t/#?@&%"

func shows(err error) bool {
	for _, part := range []string{"S3cr", "s3cr", "t/#"} {
		if strings.Contains(err.Error(), part) {
			return true
		}
	}
	return false
}

func TestErrorsOfAddressesSayWhatToDoAndHideThePassword(t *testing.T) {
	esc := url.QueryEscape(secret)
	for raw, want := range map[string]string{
		"":                                                        "no scheme",
		"/var/lib/journal.db":                                     "no scheme",
		"u:" + secret + "@h/db":                                   "unknown scheme",
		"sqlite:":                                                 "names no file",
		"mongodb://u:" + secret + "@h/db":                         `unknown scheme "mongodb": write sqlite:`,
		"postgres://u:" + secret + "@h/db":                        "", // not escaped: it may be read as another host, and then cannot be reached
		"mysql://u:" + secret + "@h/db":                           "percent-encoded",
		"postgres://u:" + esc + "@h:port/db":                      "percent-encoded",
		"mysql://u:" + esc + "@h/":                                "names no database",
		"mysql://u:" + esc + "@h/db?tls=true":                     "unknown option tls; there are sslmode",
		"mysql://u:" + esc + "@h/db?sslmode=on":                   `sslmode="on" is none of disable`,
		"mysql://u:" + esc + "@h/db?sslcert=/x":                   "sslcert and sslkey go together",
		"mysql://u:" + esc + "@h/db?durability=":                  "",
		"mysql://u:" + esc + "@h/db?durability=x":                 "durability=server",
		"mysql://u:" + esc + "@h/db?sslrootcert=/none.pem":        "no such file",
		"postgres://u:" + esc + "@h/db?sslmode=on":                "sslmode",
		"postgres://u@h/db?sslmode=on&password=" + esc:            "sslmode",
		"postgres://u:" + esc + "@h/db?sslrootcert=/none.pem":     "none.pem",
		"postgres://u:" + esc + "@h/db?connect_timeout=" + "soon": "connect_timeout",
	} {
		_, err := parseAddress(raw)
		if err == nil {
			if want != "" {
				t.Errorf("%s: taken", raw)
			}
			continue
		}
		if !strings.Contains(err.Error(), want) || shows(err) {
			t.Errorf("%s: %v", raw, err)
		}
	}
}

func TestUnreachableServerIsNamed(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	l.Close()
	for _, scheme := range []string{"postgres", "mysql"} {
		_, err := Open(context.Background(), scheme+"://pay:"+url.QueryEscape(secret)+"@"+addr+"/pay")
		if err == nil || !strings.Contains(err.Error(), addr) || !strings.Contains(err.Error(), "cannot be opened") || shows(err) {
			t.Errorf("%s: %v", scheme, err)
		}
	}
	// A server that accepts and says nothing.
	l, err = net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	for _, scheme := range []string{"postgres", "mysql"} {
		ctx, cancel := context.WithTimeout(context.Background(), 200*time.Millisecond)
		start := time.Now()
		_, err := Open(ctx, scheme+"://pay:"+url.QueryEscape(secret)+"@"+l.Addr().String()+"/pay")
		cancel()
		if err == nil || !strings.Contains(err.Error(), l.Addr().String()) || shows(err) || time.Since(start) > 5*time.Second {
			t.Errorf("%s after %s: %v", scheme, time.Since(start), err)
		}
	}
}

func TestSQLiteFileThatCannotBeOpened(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "no.db")
	if err := os.WriteFile(file, []byte(strings.Repeat("this is no database ", 1000)), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{file, dir, filepath.Join(file, "below")} {
		if _, err := Open(context.Background(), "sqlite:"+path); err == nil || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: %v", path, err)
		}
	}
}

func TestMySQLTLSModes(t *testing.T) {
	ca := filepath.Join(t.TempDir(), "ca.pem")
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	cert := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "ca"}, NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, cert, cert, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		options                      string
		tls, verified, plain, custom bool
	}{
		{"", true, false, true, false},
		{"sslmode=disable", false, false, false, false},
		{"sslmode=require", true, false, false, false},
		{"sslmode=verify-ca&sslrootcert=" + ca, true, false, false, true},
		{"sslmode=verify-full", true, true, false, false},
		{"sslrootcert=" + ca, true, true, false, false},
		{"socket=/x", false, false, false, false},
	} {
		a, err := parseAddress("mysql://u@db.example/pay?" + tc.options)
		if err != nil {
			t.Fatal(err)
		}
		cfg := a.mysql.TLS
		if (cfg != nil) != tc.tls || a.mysql.AllowFallbackToPlaintext != tc.plain {
			t.Errorf("%s: TLS %v, plaintext too %v", tc.options, cfg != nil, a.mysql.AllowFallbackToPlaintext)
		}
		if cfg != nil && (!cfg.InsecureSkipVerify != tc.verified || (cfg.VerifyConnection != nil) != tc.custom || cfg.ServerName != "db.example") {
			t.Errorf("%s: %+v", tc.options, cfg)
		}
	}
}
