package eventlog

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kfake"

	"github.com/lockstep-tx/lockstep/region/slot"
	"github.com/lockstep-tx/lockstep/region/topology"
)

// issue writes a certificate and its key; signed by itself where parent is nil.
func issue(t *testing.T, dir, name string, parent *x509.Certificate, signer *ecdsa.PrivateKey) (*x509.Certificate, *ecdsa.PrivateKey) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name}, NotAfter: time.Now().Add(time.Hour), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		IsCA: parent == nil, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	if parent == nil {
		parent, signer = c, key
	}
	der, err := x509.CreateCertificate(rand.Reader, c, parent, &key.PublicKey, signer)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	for file, block := range map[string]*pem.Block{name + ".pem": {Type: "CERTIFICATE", Bytes: der}, name + ".key": {Type: "EC PRIVATE KEY", Bytes: raw}} {
		if err := os.WriteFile(filepath.Join(dir, file), pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	made, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return made, key
}

// TestEventsGoOverTLS: as the regions file says it, with a broker that asks for a certificate; one without ours gets nowhere.
func TestEventsGoOverTLS(t *testing.T) {
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	ca, key := issue(t, dir, "ca", nil, nil)
	issue(t, dir, "broker", ca, key)
	issue(t, dir, "own", ca, key)
	server, err := tls.LoadX509KeyPair(at("broker.pem"), at("broker.key"))
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(ca)
	_, k := cluster(t, kfake.TLS(&tls.Config{Certificates: []tls.Certificate{server}, ClientCAs: pool, ClientAuth: tls.RequireAndVerifyClientCert, MinVersion: tls.VersionTLS12}))
	if k.TLS, err = (topology.Region{KafkaCa: at("ca.pem")}).KafkaTLS(); err != nil {
		t.Fatal(err)
	}
	if err := Ensure(t.Context(), k, 2, 0); err == nil {
		t.Fatal("a client without a certificate got through")
	}
	if k.TLS, err = (topology.Region{KafkaCa: at("ca.pem"), KafkaCert: at("own.pem"), KafkaKey: at("own.key")}).KafkaTLS(); err != nil {
		t.Fatal(err)
	}
	s := &source{}
	n := s.add("tag", 5)[0].Slot
	run(t, NewPublisher(s.config(k)))
	r := NewReader(ReaderConfig{Kafka: k, Index: 1, Partition: n % 2, Partitions: 2})
	defer r.Close()
	until(t, r, func(all []Message, _ Chunk) bool { return len(numbers(all, n)) == 5 })
	if n != slot.Of("{tag}") {
		t.Fatal(n)
	}
	if _, err := (topology.Region{KafkaCa: at("ca.key")}).KafkaTLS(); err == nil {
		t.Error("a key was taken for a CA")
	}
}
