package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/lockstep-tx/lockstep/chaos/fault"
	"github.com/lockstep-tx/lockstep/chaos/report"
	"github.com/lockstep-tx/lockstep/chaos/syncfs"
)

// TestMain serves what a probe of this program asks for.
func TestMain(m *testing.M) {
	syncfs.Child()
	os.Exit(m.Run())
}

// TestTheDoctorSaysWhatIsMissing: every capability has its line, and --strict is red where scenarios would be skipped.
func TestTheDoctorSaysWhatIsMissing(t *testing.T) {
	dir := t.TempDir()
	for _, program := range []string{"lockstep", "lockstep-participants"} {
		if err := os.WriteFile(filepath.Join(dir, program), nil, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("LOCKSTEP_TEST_POSTGRES_URL", "")
	var out bytes.Buffer
	if code := run(t.Context(), []string{"doctor", "--bin", dir}, &out, &out); code != 0 {
		t.Errorf("exit %d\n%s", code, out.String())
	}
	for _, k := range fault.Capabilities() {
		want := "ok       " + k.Name + "\n"
		if err := k.Probe(); err != nil {
			want = "missing  " + k.Name
		}
		if !strings.Contains(out.String(), want) {
			t.Errorf("there is no line %q in\n%s", want, out.String())
		}
	}
	if code := run(t.Context(), []string{"doctor", "--strict", "--bin", dir}, &out, &out); code != report.ExitInconclusive {
		t.Errorf("without a server --strict exits with %d", code)
	}
}
