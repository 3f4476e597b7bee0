package journal

import (
	"bufio"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/lockstep-tx/lockstep/coordinator/engine"
	"github.com/lockstep-tx/lockstep/coordinator/txn"
	"github.com/lockstep-tx/lockstep/region/journal/sample"
)

const writerVariable = "LOCKSTEP_JOURNAL_TEST_WRITER"

func TestMain(m *testing.M) {
	if spec := os.Getenv(writerVariable); spec != "" {
		url, prefix, _ := strings.Cut(spec, "\n")
		fmt.Println("error:", writeForEver(url, prefix))
		os.Exit(1)
	}
	code := m.Run()
	if err := goleak.Find(); code == 0 && err != nil {
		fmt.Println(err)
		code = 1
	}
	os.Exit(code)
}

// crashBatch is large enough for two statements on a server, so that a batch is a transaction of several.
const crashBatch = 1200

// crashRows gives the rows of a batch: every second one completes a decision of the batch before.
func crashRows(m *sample.Maker, prefix string, batch int) []engine.Row {
	gid := func(batch, i int) txn.Gid { return txn.Gid(fmt.Sprintf("%s%05d-%04d", prefix, batch, i)) }
	rows := make([]engine.Row, 0, crashBatch*3/2)
	for i := range crashBatch {
		rows = append(rows, m.Row(sample.Payment{Gid: gid(batch, i), BegunAt: begin, Decided: i%2 == 0}))
		if i%2 == 0 && batch > 0 {
			rows = append(rows, m.Row(sample.Payment{Gid: gid(batch-1, i), BegunAt: begin}))
		}
	}
	return rows
}

// writeForEver appends batches and says after each that it was acknowledged, until the process is killed.
func writeForEver(url, prefix string) error {
	j, err := Open(context.Background(), url)
	if err != nil {
		return err
	}
	var m sample.Maker
	fmt.Println("open")
	for batch := 0; ; batch++ {
		if err := j.Append(context.Background(), crashRows(&m, prefix, batch)); err != nil {
			return err
		}
		fmt.Println("acknowledged", batch)
	}
}

// Guarantee G10: what was acknowledged survives a kill at any instant; a batch is there as a whole or not at all.
func TestKilledInTheMiddleOfAppend(t *testing.T) {
	onEach(t, func(t *testing.T, url string) {
		for round := range 6 {
			prefix := fmt.Sprintf("k%d-", round)
			cmd := exec.Command(os.Args[0])
			cmd.Env = append(os.Environ(), writerVariable+"="+url+"\n"+prefix)
			out, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			acknowledged := -1
			lines := bufio.NewScanner(out)
			for lines.Scan() {
				if lines.Text() == "open" {
					time.AfterFunc(30*time.Millisecond+rand.N(300*time.Millisecond), func() { _ = cmd.Process.Kill() })
				} else if _, err := fmt.Sscanf(lines.Text(), "acknowledged %d", &acknowledged); err != nil {
					t.Errorf("the writer says: %s", lines.Text())
				}
			}
			_ = cmd.Wait()

			j := open(t, url)
			// A server may still be ending the killed process's last statement.
			var counts, finished map[int]int
			for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(10 * time.Millisecond) {
				counts, finished = crashCount(t, j, prefix)
				if wholeBatches(counts, finished) == nil || time.Now().After(deadline) {
					break
				}
			}
			if err := wholeBatches(counts, finished); err != nil {
				t.Fatalf("round %d: %v", round, err)
			}
			if len(counts) < acknowledged+1 || len(counts) > acknowledged+2 {
				t.Fatalf("round %d: %d batches are there, %d were acknowledged", round, len(counts), acknowledged+1)
			}
			t.Logf("round %d: %d batches acknowledged, %d there", round, acknowledged+1, len(counts))
		}
	})
}

// crashCount counts the rows of each batch, and those of them that are finished.
func crashCount(t *testing.T, j *Journal, prefix string) (rows, finished map[int]int) {
	rows, finished = map[int]int{}, map[int]int{}
	add := func(to map[int]int, gid string) {
		var batch, i int
		if rest, ok := strings.CutPrefix(gid, prefix); ok {
			if _, err := fmt.Sscanf(rest, "%d-%d", &batch, &i); err != nil {
				t.Fatal(err)
			}
			to[batch]++
		}
	}
	if err := j.Gids(context.Background(), func(gid txn.Gid) { add(rows, string(gid)) }); err != nil {
		t.Fatal(err)
	}
	for _, gid := range listed(t, j, engine.Filter{Slot: -1, GidPrefix: prefix}, 5000, 0) {
		add(finished, gid)
	}
	return rows, finished
}

func wholeBatches(rows, finished map[int]int) error {
	for batch := range len(rows) {
		want := crashBatch
		if batch == len(rows)-1 {
			want /= 2 // the next batch, which would finish the others, is not there
		}
		if rows[batch] != crashBatch || finished[batch] != want {
			return fmt.Errorf("batch %d of %d: %d rows, %d finished, want %d and %d", batch, len(rows), rows[batch], finished[batch], crashBatch, want)
		}
	}
	return nil
}
