package main

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"

	kafkago "github.com/segmentio/kafka-go"
)

// kafkaVersion names the jars in the cache: those of deploy/dev/kafka/pom.xml.
const kafkaVersion = "4.3.1"

// kafkaJars is where the jars are kept between runs. It is made whole or not at all.
func kafkaJars() (string, error) {
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("a directory for Kafka's jars: %w", err)
	}
	return filepath.Join(cache, "lockstep-dev", "kafka-"+kafkaVersion), nil
}

// haveJars says whether they are there.
func haveJars() bool {
	dir, err := kafkaJars()
	if err != nil {
		return false
	}
	_, err = os.Stat(filepath.Join(dir, "kafka_2.13-"+kafkaVersion+".jar"))
	return err == nil
}

// fetchJars copies Kafka's jars from Maven's repository into the cache, where they are not there yet.
func (h *installed) fetchJars(ctx context.Context, progress io.Writer) error {
	dir, err := kafkaJars()
	if err != nil || haveJars() {
		return err
	}
	module, err := root(ctx)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return err
	}
	part, err := os.MkdirTemp(filepath.Dir(dir), ".new-*")
	if err != nil {
		return err
	}
	defer os.RemoveAll(part)
	fmt.Fprintln(progress, "fetching Apache Kafka's jars with Maven")
	cmd := exec.CommandContext(ctx, h.mvn, "-q", "-B", "-f", filepath.Join(module, "deploy", "dev", "kafka", "pom.xml"),
		"dependency:copy-dependencies", "-DincludeScope=runtime", "-DoutputDirectory="+part)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	if b, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("fetch Kafka's jars: %w\n%s", err, b)
	}
	if err := os.Chmod(part, 0o755); err != nil {
		return err
	}
	if err := os.Rename(part, dir); err != nil && !haveJars() { // another devctl may have been faster
		return err
	}
	return nil
}

func (h installed) kafkaArgv(class string, args ...string) ([]string, error) {
	dir, err := kafkaJars()
	if err != nil {
		return nil, err
	}
	return append([]string{h.java, "-Xms128m", "-Xmx512m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-cp", filepath.Join(dir, "*"), class}, args...), nil
}

// kafkaConfig is one broker that is its own controller. Writes are synced: a topic's replica is one.
func kafkaConfig(sv *server, data string) string {
	return fmt.Sprintf(`process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:%[2]d
listeners=PLAINTEXT://127.0.0.1:%[1]d,CONTROLLER://127.0.0.1:%[2]d
advertised.listeners=PLAINTEXT://127.0.0.1:%[1]d
controller.listener.names=CONTROLLER
inter.broker.listener.name=PLAINTEXT
log.dirs=%[3]s
auto.create.topics.enable=false
num.partitions=1
offsets.topic.replication.factor=1
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
group.initial.rebalance.delay.ms=0
`, sv.Port, sv.PeerPort, filepath.Join(data, "log"))
}

// initKafka formats the storage. The configuration names the directory that part will be renamed to.
func (s *serverSet) initKafka(ctx context.Context, sv *server, part string) error {
	for file, config := range map[string]string{"server.properties": kafkaConfig(sv, s.dataPath(sv.Name)), "format.properties": kafkaConfig(sv, part)} {
		if err := os.WriteFile(filepath.Join(part, file), []byte(config), 0o600); err != nil {
			return err
		}
	}
	id := make([]byte, 16)
	if _, err := rand.Read(id); err != nil {
		return err
	}
	id[0] &= 0x7f // its text must not begin with a hyphen
	argv, err := s.have.kafkaArgv("kafka.tools.StorageTool", "format", "-t", base64.RawURLEncoding.EncodeToString(id), "-c", filepath.Join(part, "format.properties"))
	if err != nil {
		return err
	}
	return s.tool(ctx, sv, argv[0], argv[1:]...)
}

// pingKafka asks for the cluster's brokers, which the broker answers once it serves.
func pingKafka(ctx context.Context, addr string) error {
	c, err := kafkago.DialContext(ctx, "tcp", addr)
	if err != nil {
		return err
	}
	defer c.Close()
	if deadline, ok := ctx.Deadline(); ok {
		if err := c.SetDeadline(deadline); err != nil {
			return err
		}
	}
	brokers, err := c.Brokers()
	if err != nil {
		return err
	}
	for _, b := range brokers {
		if b.Host+":"+strconv.Itoa(b.Port) == addr {
			return nil
		}
	}
	return errors.New("the broker does not list itself yet")
}
