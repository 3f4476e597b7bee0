package volume

import (
	"os"
	"path/filepath"
	"testing"
)

// TestAFullVolumeTakesNothing: and is of use again when it is emptied.
func TestAFullVolumeTakesNothing(t *testing.T) {
	v := open(t)
	if full, err := v.Full(); full || err != nil {
		t.Fatalf("it is full at first: %v, %v", full, err)
	}
	if err := v.Fill(); err != nil {
		t.Fatal(err)
	}
	if full, err := v.Full(); !full || err != nil {
		t.Errorf("it is not full: %v, %v", full, err)
	}
	for range 2 {
		if err := v.Empty(); err != nil {
			t.Fatal(err)
		}
	}
	if full, err := v.Full(); full || err != nil {
		t.Errorf("it is full for ever: %v, %v", full, err)
	}
	if err := os.WriteFile(filepath.Join(v.Dir(), "x"), make([]byte, 1<<20), 0o600); err != nil {
		t.Error(err)
	}
}
