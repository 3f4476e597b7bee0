package topology

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func load(t *testing.T, text string) (*File, error) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "regions.yaml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return Load(path)
}

func TestAFileOfTwoRegions(t *testing.T) {
	f, err := load(t, `
arbiter: [a:1, b:1, c:1]
regions:
  west: {grpc: [w:2], admin: ["https://w:3"], kafka: [w:4, x:4]}
  east: {grpc: [e:2], admin: ["http://e:3"], kafka: [e:4]}
`)
	if err != nil || strings.Join(f.Names(), " ") != "east west" || f.Partitions != DefaultPartitions || len(f.Regions["west"].Kafka) != 2 {
		t.Fatalf("%+v, %v", f, err)
	}
}

func TestEveryFaultIsReportedAtOnceWithItsKey(t *testing.T) {
	_, err := load(t, "arbiter: [nowhere]\npartitions: 5000\nregions:\n  east: {grpc: [], admin: [e:3], kafka: [k]}\n")
	for _, key := range []string{"arbiter:", "partitions:", "regions.east.grpc", "regions.east.admin", "regions.east.kafka"} {
		if err == nil || !strings.Contains(err.Error(), key) {
			t.Errorf("%v does not name %s", err, key)
		}
	}
	if _, err := load(t, "arbitre: [a:1]\n"); err == nil || !strings.Contains(err.Error(), "arbitre") {
		t.Errorf("an unknown key: %v", err)
	}
}
