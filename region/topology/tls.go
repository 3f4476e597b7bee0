package topology

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"os"
)

// KafkaTLS is how the region's brokers are spoken with; nil: in the clear. The files are read once. A certificate of ours is
// shown where kafka-cert and kafka-key name one.
func (r Region) KafkaTLS() (*tls.Config, error) {
	if r.KafkaCa == "" {
		return nil, nil
	}
	pem, err := os.ReadFile(r.KafkaCa)
	if err != nil {
		return nil, fmt.Errorf("kafka-ca: %w", err)
	}
	c := &tls.Config{RootCAs: x509.NewCertPool(), MinVersion: tls.VersionTLS12}
	if !c.RootCAs.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("kafka-ca: %s has no certificate in PEM", r.KafkaCa)
	}
	if r.KafkaCert != "" {
		own, err := tls.LoadX509KeyPair(r.KafkaCert, r.KafkaKey)
		if err != nil {
			return nil, fmt.Errorf("kafka-cert, kafka-key: %w", err)
		}
		c.Certificates = []tls.Certificate{own}
	}
	return c, nil
}
