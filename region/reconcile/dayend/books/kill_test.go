package books_test

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/lockstep-tx/lockstep/region/reconcile/channelfile"
	"github.com/lockstep-tx/lockstep/region/reconcile/dayend"
)

// TestTheProcessThatIsKilled is not a test: it is the process that the one below kills.
func TestTheProcessThatIsKilled(t *testing.T) {
	dir := os.Getenv("DAYEND_LOAD_IN")
	if dir == "" {
		t.Skip("it is started by TestALoadThatWasKilledIsRepeated")
	}
	b, m := opened(t, dir)
	if _, err := b.Load(t.Context(), m, filepath.Join(dir, "acme_20261120.csv")); err != nil {
		t.Fatal(err)
	}
}

func opened(t *testing.T, dir string) (*dayend.Book, *channelfile.Mapping) {
	t.Helper()
	b, err := dayend.Open(t.Context(), "sqlite:"+filepath.Join(dir, "recon.db"), filepath.Join(dir, "recon"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.DB.Close() })
	m, err := channelfile.LoadMapping("../../../../deploy/example/recon-business.yaml")
	if err != nil {
		t.Fatal(err)
	}
	m.Signature.Type = "none"
	return b, m
}

// A process that is killed while it loads, at whatever moment, leaves a file that is loaded whole or not at all; the next
// load takes it whole, once.
func TestALoadThatWasKilledIsRepeated(t *testing.T) {
	const n = 60_000
	dir := t.TempDir()
	f, err := os.Create(filepath.Join(dir, "acme_20261120.csv"))
	if err != nil {
		t.Fatal(err)
	}
	w := bufio.NewWriter(f)
	fmt.Fprint(w, "H,20261120,2026-11-20 22:00:00\ntitles\n")
	for i := range n {
		fmt.Fprintf(w, "m,%d,,1.00,CNY,SUCCESS,2026-11-20 12:00:00\n", i)
	}
	fmt.Fprintf(w, "nonsense\nT,%d,%d.00\n", n+1, n)
	if err := w.Flush(); err != nil {
		t.Fatal(err)
	}
	f.Close()
	killed := 0
	for i := range 8 {
		cmd := exec.Command(os.Args[0], "-test.run=^TestTheProcessThatIsKilled$")
		cmd.Env = append(os.Environ(), "DAYEND_LOAD_IN="+dir)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Duration(20+i*40) * time.Millisecond)
		_ = cmd.Process.Kill()
		if err := cmd.Wait(); err != nil {
			killed++
		}
		b, _ := opened(t, dir)
		files, err := b.Files(t.Context(), "acme", channelfile.Business, "20261120")
		if err != nil || len(files) > 1 || len(files) == 1 && (files[0].Lines != n+1 || files[0].Bad != 1) {
			t.Fatalf("after a kill: %+v, %v", files, err)
		}
		b.DB.Close()
	}
	if killed == 0 {
		t.Error("no process was killed in time: nothing was tested")
	}
	b, m := opened(t, dir)
	if got, err := b.Load(t.Context(), m, filepath.Join(dir, "acme_20261120.csv")); err != nil || got.Lines != n+1 || got.Bad != 1 {
		t.Fatalf("%+v, %v", got, err)
	}
	bad := 0
	if err := b.Each(t.Context(), dayend.Filter{}, func(dayend.Finding) error { bad++; return nil }); err != nil || bad != 1 {
		t.Fatalf("%d bad lines, %v", bad, err)
	}
}
