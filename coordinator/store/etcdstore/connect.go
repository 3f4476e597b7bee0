package etcdstore

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"os"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc"
)

// Cluster names an external etcd. The files turn TLS on; a certificate and a key make it mutual.
type Cluster struct {
	Endpoints                 []string
	CAFile, CertFile, KeyFile string
	// RequireLeader has a member that sees no leader refuse at once, so that the next one is asked: who cannot wait for a member that
	// is cut off from the others. Without it a request waits for an election, which is over in a second or two.
	RequireLeader bool
}

// Connect makes a client and proves with a real request that the cluster answers.
func Connect(ctx context.Context, c Cluster) (*clientv3.Client, error) {
	cfg := clientv3.Config{
		Endpoints: c.Endpoints, DialTimeout: DialTimeout, DialKeepAliveTime: 10 * time.Second, DialKeepAliveTimeout: 3 * time.Second,
		Logger: zap.NewNop(), MaxCallRecvMsgSize: 64 << 20,
	}
	if c.RequireLeader {
		cfg.DialOptions = append(cfg.DialOptions, grpc.WithChainUnaryInterceptor(requireLeader))
	}
	if c.CAFile != "" || c.CertFile != "" {
		t := &tls.Config{MinVersion: tls.VersionTLS12}
		if c.CAFile != "" {
			raw, err := os.ReadFile(c.CAFile)
			if err != nil {
				return nil, err
			}
			t.RootCAs = x509.NewCertPool()
			if !t.RootCAs.AppendCertsFromPEM(raw) {
				return nil, fmt.Errorf("%s holds no PEM certificate", c.CAFile)
			}
		}
		if c.CertFile != "" {
			// Read at every handshake, so that a renewed certificate needs no restart.
			t.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
				pair, err := tls.LoadX509KeyPair(c.CertFile, c.KeyFile)
				return &pair, err
			}
		}
		cfg.TLS = t
	}
	cli, err := clientv3.New(cfg)
	if err != nil {
		return nil, err
	}
	cctx, cancel := context.WithTimeout(ctx, DialTimeout)
	defer cancel()
	if _, err := cli.Get(cctx, Prefix+"probe"); err != nil {
		cli.Close()
		return nil, fmt.Errorf("no answer from %v: %w", c.Endpoints, err)
	}
	return cli, nil
}

func requireLeader(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
	return invoke(clientv3.WithRequireLeader(ctx), method, req, reply, cc, opts...)
}
