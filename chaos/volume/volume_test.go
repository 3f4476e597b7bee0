package volume

import (
	"os"
	"path/filepath"
	"testing"
)

func open(t *testing.T) *Volume {
	t.Helper()
	if err := Probe(); err != nil {
		t.Skipf("no volumes here: %v", err)
	}
	v, err := Open(filepath.Join(t.TempDir(), "v"), 16<<20)
	if v != nil {
		t.Cleanup(func() {
			if err := v.Close(); err != nil {
				t.Error(err)
			}
		})
	}
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// TestAPowerCutTakesWhatWasNotSynced: and nothing that was.
func TestAPowerCutTakesWhatWasNotSynced(t *testing.T) {
	v := open(t)
	if no, err := v.Refuses(); err == nil || no {
		t.Errorf("there is no sentinel yet: %v, %v", no, err)
	}
	if err := v.Mark(); err != nil {
		t.Fatal(err)
	}
	if no, err := v.Refuses(); err != nil || no {
		t.Errorf("a write before the cut is refused: %v, %v", no, err)
	}
	if err := v.Cut(); err != nil {
		t.Fatal(err)
	}
	if no, err := v.Refuses(); err != nil || !no {
		t.Errorf("a write after the cut is not refused: %v, %v", no, err)
	}
	if err := v.Restore(); err != nil {
		t.Fatal(err)
	}
	if kept, lost, err := v.Left(); err != nil || kept != Synced || lost != Unsynced {
		t.Errorf("%d bytes kept, %d lost, %v", kept, lost, err)
	}
	if err := os.WriteFile(filepath.Join(v.Dir(), "after"), []byte("x"), 0o600); err != nil {
		t.Errorf("the volume is of no use after the cut: %v", err)
	}
}

// TestASyncReachesTheImage: what was not synced by its writer, and by Sync, is no loss: a cut that takes nothing is told.
func TestASyncReachesTheImage(t *testing.T) {
	v := open(t)
	if err := v.Mark(); err != nil {
		t.Fatal(err)
	}
	if err := v.Sync(); err != nil {
		t.Fatal(err)
	}
	if err := v.Cut(); err != nil {
		t.Fatal(err)
	}
	if err := v.Restore(); err != nil {
		t.Fatal(err)
	}
	if kept, lost, err := v.Left(); err != nil || kept != Synced || lost != 0 {
		t.Errorf("%d bytes kept, %d lost, %v", kept, lost, err)
	}
}
