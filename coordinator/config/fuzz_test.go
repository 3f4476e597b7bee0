package config

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"gopkg.in/yaml.v3"
)

// FuzzReadFile: a file gives known keys alone, or an error that names what is wrong; nothing in it is passed over in
// silence, and what was read means the same when it is written and read again.
func FuzzReadFile(f *testing.F) {
	for _, s := range []string{
		"", "---\n", "# nothing\n", "region: eu\n", "embedded: true\ndata-dir: /var/lib/x\n", "etcd-endpoints: [a:1, b:2]\n", "etcd-endpoints:\n- {a: b}\n", "etcd-endpoints: ['a,b']\n",
		"tokens: ~\n", "tokens:\n", "region: eu\n---\nregion: us\n", "region: eu\nregion: us\n", "regoin: eu\n", "config: x\n", "- a\n", "region: {a: b}\n", "a: &a [*a]\n", "region: &r eu\nlog-level: *r\n", "<<: {region: eu}\n", "{region: \"\\0\"}", "\xff",
		"wait-max: soon\nlive-max: many\n",
	} {
		f.Add([]byte(s))
	}
	path := filepath.Join(f.TempDir(), "fuzzed.yaml")
	read := func(t *testing.T, raw []byte) (map[string]string, error) {
		if err := os.WriteFile(path, raw, 0o600); err != nil {
			t.Fatal(err)
		}
		return ReadFile(path)
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		values, err := read(t, raw)
		if err != nil {
			for line := range strings.SplitSeq(err.Error(), "\n") {
				if !strings.Contains(line, ": ") {
					t.Errorf("the fault %q names no key", line)
				}
			}
			return
		}
		known := map[string]bool{}
		for _, k := range Keys() {
			known[k] = true
		}
		for k := range values {
			if !known[k] || k == "config" {
				t.Errorf("the key %q was taken", k)
			}
		}
		// What stands at the top of the file must be in what was read.
		var top map[string]any
		if yaml.Unmarshal(raw, &top) == nil && len(top) != len(values) {
			t.Errorf("the file has %d keys, %d were read: %v", len(top), len(values), values)
		}
		good, err := CheckValues(values, path)
		for k := range values {
			if _, ok := good[k]; !ok && (err == nil || !strings.Contains(err.Error(), k+": ")) {
				t.Errorf("the value of %s was dropped: %v", k, err)
			}
		}
		written, err := yaml.Marshal(values)
		if err != nil {
			t.Fatal(err)
		}
		again, err := read(t, written)
		if err != nil {
			t.Fatalf("written again as %q: %v", written, err)
		}
		if d := cmp.Diff(values, again); d != "" {
			t.Errorf("(-read +read again):\n%s", d)
		}
	})
}

// TestNothingInAFileIsPassedOver: what a reader could overlook is a fault that names its key, and null is no value.
func TestNothingInAFileIsPassedOver(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lockstep.yaml")
	read := func(text string) (map[string]string, error) {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return ReadFile(path)
	}
	for text, want := range map[string]string{
		"etcd-endpoints:\n- {a: b}\n": "etcd-endpoints: ", "etcd-endpoints: ['a:1,b:2']\n": "etcd-endpoints: ", "etcd-endpoints: [a:1, ~]\n": "etcd-endpoints: ", "allow-from: [[10.0.0.0/8]]\n": "allow-from: ",
		"region: eu\n---\nregion: us\n": "config: ", "region: eu\nregion: us\n": "region: ", "regoin: eu\n": "did you mean region?", "region: {a: b}\n": "region: ", "- a\n": "config: ",
	} {
		if got, err := read(text); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, %v; want %q", text, got, err, want)
		}
	}
	got, err := read("tokens: ~\nregion: null\nlog-level:\nalert-webhook: '~'\n")
	if d := cmp.Diff(map[string]string{"tokens": "", "region": "", "log-level": "", "alert-webhook": "~"}, got); err != nil || d != "" {
		t.Errorf("%v (-want +got):\n%s", err, d)
	}
}
