package eventlog

import (
	"context"
	"crypto/tls"
	"fmt"
	"log/slog"
	"net"
	"os"
	"strconv"
	"time"

	"github.com/twmb/franz-go/pkg/kfake"
)

// BrokerConfig of the embedded broker.
type BrokerConfig struct {
	// Addr is where it listens, host:port. The port must be fixed where clients are to find it again after a restart; 0
	// takes a free one.
	Addr string
	// Dir keeps what was published, synced before it is acknowledged. It is made if it is missing. One process at a time.
	Dir string
	// TLS, where set, is asked of all clients.
	TLS *tls.Config
	// Ready, where set, is told the address when clients may connect.
	Ready func(addr string)
	Log   *slog.Logger
}

// retentionEvery is how often expired records are dropped.
const retentionEvery = time.Minute

// RunBroker runs one embedded broker (kfake of franz-go) until ctx ends. It is for development, demos and small
// deployments: it has no replicas, so that its disk is the only copy, and no authentication. What is lost with it is
// filled from the origin's journal.
func RunBroker(ctx context.Context, cfg BrokerConfig) error {
	host, text, err := net.SplitHostPort(cfg.Addr)
	if err != nil {
		return fmt.Errorf("broker: %w", err)
	}
	port, err := strconv.Atoi(text)
	if err != nil {
		return fmt.Errorf("broker: port %q is no number", text)
	}
	if err := os.MkdirAll(cfg.Dir, 0o700); err != nil {
		return fmt.Errorf("broker: %w", err)
	}
	opts := []kfake.Opt{
		kfake.NumBrokers(1), kfake.Ports(port), kfake.DataDir(cfg.Dir), kfake.SyncWrites(), kfake.ClusterID("lockstep"),
		kfake.BrokerConfigs(map[string]string{"message.max.bytes": strconv.Itoa(eventBytes)}),
		kfake.WithLogger(&brokerLog{logger(cfg.Log)}),
		kfake.ListenFn(func(network, address string) (net.Listener, error) {
			_, p, err := net.SplitHostPort(address)
			if err != nil {
				return nil, err
			}
			l, err := net.Listen(network, net.JoinHostPort(host, p))
			if err == nil && cfg.TLS != nil {
				l = tls.NewListener(l, cfg.TLS)
			}
			return l, err
		}),
	}
	c, err := kfake.NewCluster(opts...)
	if err != nil {
		return fmt.Errorf("broker at %s: %w", cfg.Addr, err)
	}
	defer c.Close()
	if cfg.Ready != nil {
		cfg.Ready(c.ListenAddrs()[0])
	}
	expire := time.NewTicker(retentionEvery)
	defer expire.Stop()
	for {
		select {
		case <-expire.C:
			c.ApplyRetention()
		case <-ctx.Done():
			return nil
		}
	}
}

// brokerLog takes the broker's log lines.
type brokerLog struct{ l *slog.Logger }

// Logf is kfake.Logger's.
func (b *brokerLog) Logf(level kfake.LogLevel, format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	switch level {
	case kfake.LogLevelError:
		b.l.Error("broker", "text", text)
	case kfake.LogLevelWarn:
		b.l.Warn("broker", "text", text)
	default:
		b.l.Debug("broker", "text", text)
	}
}
