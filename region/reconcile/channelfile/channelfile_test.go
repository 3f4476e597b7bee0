package channelfile

import (
	"bytes"
	"crypto"
	"crypto/ed25519"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/base64"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/pkg/sftp"
	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/knownhosts"
)

func mapping(t *testing.T, name string) *Mapping {
	t.Helper()
	m, err := LoadMapping("../../../deploy/example/recon-" + name + ".yaml")
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func readAll(m *Mapping, text string) (lines []Line, bad []Bad, totals Totals, err error) {
	totals, err = m.Read(strings.NewReader(text), func(l *Line) error { lines = append(lines, *l); return nil }, func(b Bad) error { bad = append(bad, b); return nil })
	return lines, bad, totals, err
}

const head = "H,20261120,2026-11-20 22:00:00\ntitles\n"

func TestACSVIsReadAsItsMappingSays(t *testing.T) {
	m := mapping(t, "business")
	lines, bad, totals, err := readAll(m, "\ufeff"+head+"m,1,,1.50,CNY,SUCCESS,2026-11-20 12:00:00\r\n"+`"m","2,""x""",r1,0.01,CNY,REFUND,2026-11-20 12:00:01`+"\nT,2,1.51\n")
	want := []Line{
		{Number: 3, Offset: 41, Merchant: "m", OrderNo: "1", Amount: 150, Currency: "CNY", State: Paid, TimeMS: 1795147200000},
		{Number: 4, Offset: 84, Merchant: "m", OrderNo: `2,"x"`, Refund: "r1", Amount: 1, Currency: "CNY", State: Paid, TimeMS: 1795147201000},
	}
	if err != nil || len(bad) > 0 || totals.Day != "20261120" || totals.CutMS != 1795183200000 || totals.Sum != 151 {
		t.Fatalf("%+v, %v, %v", totals, bad, err)
	}
	if d := cmp.Diff(want, lines); d != "" {
		t.Error(d)
	}
}

func TestABadLineIsReportedWithItsNumberAndField(t *testing.T) {
	m := mapping(t, "business")
	for line, field := range map[string]string{
		"m,1,,1.5,CNY,SUCCESS,2026-11-20 12:00:00":   "amount",
		"m,1,,-1.50,CNY,SUCCESS,2026-11-20 12:00:00": "amount",
		"m,1,,1.50,cny,SUCCESS,2026-11-20 12:00:00":  "currency",
		"m,1,,1.50,CNY,Success,2026-11-20 12:00:00":  "state",
		"m,1,,1.50,CNY,SUCCESS,20.11.2026":           "time",
		"m,,,1.50,CNY,SUCCESS,2026-11-20 12:00:00":   "order_no",
		"m,1": "refund",
		`m,"1,,1.50,CNY,SUCCESS,2026-11-20 12:00:00`:                "quotes",
		"m,\x01,,1.50,CNY,SUCCESS,2026-11-20 12:00:00":              "order_no",
		"m,1,,99999999999999999.99,CNY,SUCCESS,2026-11-20 12:00:00": "amount",
		"": "order_no",
	} {
		good, bad, _, err := readAll(m, head+"m,0,,1.00,CNY,SUCCESS,2026-11-20 12:00:00\n"+line+"\nT,2,9.99\n")
		if err != nil || len(good) != 1 || len(bad) != 1 || bad[0].Number != 4 || bad[0].Text != line || !strings.HasPrefix(bad[0].Why, field+": ") {
			t.Errorf("%q: %+v, %v, want the field %s", line, bad, err, field)
		}
	}
}

func TestWrongTotalsVoidTheFile(t *testing.T) {
	m := mapping(t, "business")
	line := "m,0,,1.00,CNY,SUCCESS,2026-11-20 12:00:00\n"
	for _, text := range []string{head + line + "T,2,1.00\n", head + line + "T,1,1.01\n", head + line, head + line + line, ""} {
		if _, _, _, err := readAll(m, text); !errors.Is(err, ErrTotals) {
			t.Errorf("%q: %v", text, err)
		}
	}
	m.BadLinesMax = 2
	if _, _, _, err := readAll(m, head+strings.Repeat("nonsense\n", 3)+"T,3,0.00\n"); err == nil || !strings.Contains(err.Error(), "nothing of it is taken") {
		t.Errorf("%v", err)
	}
}

func TestAFixedWidthStatementIsRead(t *testing.T) {
	m := mapping(t, "bill")
	entry := func(transfer, dir string, amount int) string {
		return fmt.Sprintf("%-20s%-40s%s%015d20261120120000\n", "house:paid:CNY", transfer, dir, amount)
	}
	text := fmt.Sprintf("H%015d\n", 1000) + entry("t1", "C", 500) + entry("t2", "D", 200) + fmt.Sprintf("T%08d%015d%015d\n", 2, 300, 1300)
	lines, bad, totals, err := readAll(m, text)
	if err != nil || len(bad) > 0 || totals.Sum != 300 || len(lines) != 2 || lines[1].Transfer != "t2" || !lines[1].Debit || lines[0].Account != "house:paid:CNY" {
		t.Fatalf("%+v, %v, %+v, %v", lines, bad, totals, err)
	}
	if _, _, _, err := readAll(m, strings.Replace(text, "1300\n", "1301\n", 1)); !errors.Is(err, ErrTotals) {
		t.Errorf("a closing balance that its lines do not come to: %v", err)
	}
}

func TestALineIsFoundAgainByItsOffset(t *testing.T) {
	m := mapping(t, "business")
	text := head + "m,1,,1.50,CNY,SUCCESS,2026-11-20 12:00:00\nm,2,,1.50,CNY,SUCCESS,2026-11-20 12:00:00\nT,2,3.00\n"
	lines, _, _, err := readAll(m, text)
	if err != nil {
		t.Fatal(err)
	}
	l, raw, err := m.LineAt(strings.NewReader(text), lines[1].Offset)
	if err != nil || l.OrderNo != "2" || raw != "m,2,,1.50,CNY,SUCCESS,2026-11-20 12:00:00" {
		t.Errorf("%+v, %q, %v", l, raw, err)
	}
}

func TestAMappingsFaultsAreNamed(t *testing.T) {
	m := &Mapping{Kind: "daily", Format: "xml", Zone: "Nowhere/Town", DayCut: "25:00", Fields: map[string]Field{}}
	err := m.Check()
	for _, field := range []string{"channel", "kind", "format", "zone", "day_cut", "name", "signature.type", "currency", "trailer"} {
		if err == nil || !strings.Contains("\n"+err.Error(), "\n"+field+": ") {
			t.Errorf("no fault of %s in\n%v", field, err)
		}
	}
}

func TestAFileMustBeSignedByTheChannel(t *testing.T) {
	dir := t.TempDir()
	file, key := filepath.Join(dir, "f.csv"), filepath.Join(dir, "key")
	body := bytes.Repeat([]byte("line\n"), 1000)
	put := func(path string, raw []byte) {
		t.Helper()
		if err := os.WriteFile(path, raw, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	secret := []byte("0123456789abcdef")
	mac := hmac.New(sha256.New, secret)
	mac.Write(body)
	pub, priv, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	sum := sha512.Sum512(body)
	signed, err := priv.Sign(nil, sum[:], &ed25519.Options{Hash: crypto.SHA512})
	if err != nil {
		t.Fatal(err)
	}
	for kind, c := range map[string]struct{ key, sig []byte }{
		"hmac-sha256": {append(secret, '\n'), []byte(hex.EncodeToString(mac.Sum(nil)) + "\n")},
		"ed25519":     {[]byte(base64.StdEncoding.EncodeToString(pub)), []byte(base64.StdEncoding.EncodeToString(signed))},
	} {
		m := &Mapping{Signature: Signature{Type: kind, KeyFile: key}}
		put(key, c.key)
		put(file, body)
		put(file+SignatureSuffix, c.sig)
		want := sha256.Sum256(body)
		if digest, err := m.Verify(file); err != nil || digest != hex.EncodeToString(want[:]) {
			t.Errorf("%s: %s, %v", kind, digest, err)
		}
		put(file, append(body, '\n'))
		if _, err := m.Verify(file); !errors.Is(err, ErrSignature) {
			t.Errorf("%s: an altered file: %v", kind, err)
		}
		if err := os.Remove(file + SignatureSuffix); err != nil {
			t.Fatal(err)
		}
		if _, err := m.Verify(file); !errors.Is(err, ErrSignature) {
			t.Errorf("%s: a file without a signature: %v", kind, err)
		}
	}
}

// fetched brings a day from the mapping's source and gives what came.
func fetched(t *testing.T, m *Mapping, day string) []string {
	t.Helper()
	inbox := filepath.Join(t.TempDir(), "inbox")
	names, err := m.Fetch(t.Context(), day, inbox, func(string) bool { return false })
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range names {
		for _, part := range []string{n, n + SignatureSuffix} {
			if raw, err := os.ReadFile(filepath.Join(inbox, part)); err != nil || string(raw) != "text of "+part {
				t.Errorf("%s: %q, %v", part, raw, err)
			}
		}
	}
	if again, err := m.Fetch(t.Context(), day, inbox, func(string) bool { return false }); err != nil || len(again) > 0 {
		t.Errorf("fetched again: %q, %v", again, err)
	}
	if loaded, err := m.Fetch(t.Context(), day, filepath.Join(t.TempDir(), "other"), func(string) bool { return true }); err != nil || len(loaded) > 0 {
		t.Errorf("what is loaded was fetched: %q, %v", loaded, err)
	}
	return names
}

// outbox is a channel's directory.
func outbox(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for _, n := range []string{"acme_20261120.csv", "acme_20261121.csv", "notes.txt"} {
		for _, part := range []string{n, n + SignatureSuffix} {
			if err := os.WriteFile(filepath.Join(dir, part), []byte("text of "+part), 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	return dir
}

func TestFilesComeFromADirectoryAndOverHTTP(t *testing.T) {
	m := mapping(t, "business")
	m.Source = Source{URL: outbox(t)}
	if got := fetched(t, m, ""); len(got) != 2 {
		t.Errorf("%q", got)
	}
	if got := fetched(t, m, "20261121"); len(got) != 1 {
		t.Errorf("%q", got)
	}
	token := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(token, []byte("secret\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	files := http.FileServer(http.Dir(outbox(t)))
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "Bearer secret" {
			http.Error(w, "no", http.StatusUnauthorized)
			return
		}
		files.ServeHTTP(w, r)
	}))
	defer srv.Close()
	m.Source = Source{URL: srv.URL + "/acme_{day}.csv", TokenFile: token}
	if got := fetched(t, m, "20261120"); len(got) != 1 {
		t.Errorf("%q", got)
	}
	if got := fetched(t, m, "20261130"); len(got) != 0 { // not there yet
		t.Errorf("%q", got)
	}
}

// sftpServer serves a real SFTP server to whoever has the key, and gives its address and its host key.
func sftpServer(t *testing.T, client ssh.PublicKey) (addr string, host ssh.PublicKey) {
	t.Helper()
	_, priv, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	signer, err := ssh.NewSignerFromKey(priv)
	if err != nil {
		t.Fatal(err)
	}
	c := &ssh.ServerConfig{PublicKeyCallback: func(_ ssh.ConnMetadata, key ssh.PublicKey) (*ssh.Permissions, error) {
		if !bytes.Equal(key.Marshal(), client.Marshal()) {
			return nil, errors.New("unknown key")
		}
		return nil, nil
	}}
	c.AddHostKey(signer)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go serveSFTP(conn, c)
		}
	}()
	return l.Addr().String(), signer.PublicKey()
}

func serveSFTP(conn net.Conn, c *ssh.ServerConfig) {
	defer conn.Close()
	_, chans, reqs, err := ssh.NewServerConn(conn, c)
	if err != nil {
		return
	}
	go ssh.DiscardRequests(reqs)
	for nc := range chans {
		ch, reqs, err := nc.Accept()
		if err != nil {
			return
		}
		go func() {
			for r := range reqs {
				_ = r.Reply(r.Type == "subsystem" && string(r.Payload[4:]) == "sftp", nil)
			}
		}()
		if s, err := sftp.NewServer(ch, sftp.ReadOnly()); err == nil {
			if err := s.Serve(); err == nil || errors.Is(err, io.EOF) {
				s.Close()
			}
		}
	}
}

func TestFilesComeOverSFTPFromAHostThatIsKnown(t *testing.T) {
	dir := t.TempDir()
	pub, priv, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	block, err := ssh.MarshalPrivateKey(priv, "")
	if err != nil {
		t.Fatal(err)
	}
	client, err := ssh.NewPublicKey(pub)
	if err != nil {
		t.Fatal(err)
	}
	addr, host := sftpServer(t, client)
	key, known, wrong := filepath.Join(dir, "key"), filepath.Join(dir, "known"), filepath.Join(dir, "wrong")
	for path, text := range map[string]string{key: string(pem.EncodeToMemory(block)), known: knownhosts.Line([]string{addr}, host) + "\n", wrong: knownhosts.Line([]string{addr}, client) + "\n"} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	m := mapping(t, "business")
	m.Source = Source{URL: "sftp://acme@" + addr + outbox(t), KeyFile: key, KnownHosts: known}
	if got := fetched(t, m, ""); len(got) != 2 {
		t.Errorf("%q", got)
	}
	for _, hosts := range []string{wrong, ""} {
		m.Source.KnownHosts = hosts
		if _, err := m.Fetch(t.Context(), "", t.TempDir(), func(string) bool { return false }); err == nil {
			t.Errorf("files were taken from a host whose key is not known (%q)", hosts)
		}
	}
}

func FuzzLine(f *testing.F) {
	f.Add("m,1,,1.50,CNY,SUCCESS,2026-11-20 12:00:00")
	f.Add(`"m","2,""x""",r1,0.01,CNY,REFUND,2026-11-20 12:00:01`)
	m, err := LoadMapping("../../../deploy/example/recon-business.yaml")
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, line string) {
		if strings.ContainsAny(line, "\n\r") || strings.HasPrefix(line, "T") {
			return
		}
		good, bad, totals, _ := readAll(m, head+line+"\nT,1,0.00\n")
		if totals.Lines == 1 && len(good)+len(bad) != 1 {
			t.Errorf("a line was dropped: %d good, %d bad", len(good), len(bad))
		}
		for _, l := range good {
			if l.Amount <= 0 || l.OrderNo == "" || len(l.Currency) != 3 {
				t.Errorf("%+v", l)
			}
		}
	})
}
