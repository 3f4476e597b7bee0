package barrier_test

import (
	"bufio"
	"context"
	"database/sql"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/lockstep-tx/lockstep/participants/barrier"
)

func itoa(n int) string { return strconv.Itoa(n) }

const (
	crashFile = "LOCKSTEP_BARRIER_CRASH_FILE"
	crashAt   = "LOCKSTEP_BARRIER_CRASH_AT"
)

// TestMain turns the test binary into the participant that TestKilled… kills, when its environment says so.
func TestMain(m *testing.M) {
	if file := os.Getenv(crashFile); file != "" {
		crashChild(file, os.Getenv(crashAt))
	}
	os.Exit(m.Run())
}

// crashChild makes one confirm, says on stdout when it has reached the point, and stays there until it is killed.
func crashChild(file, at string) {
	ctx := context.Background()
	stay := func() {
		fmt.Println("reached " + at)
		_, _ = bufio.NewReader(os.Stdin).ReadByte() // the parent never writes; it also ends the child if it dies itself
		os.Exit(3)
	}
	check := func(err error) {
		if err != nil {
			fmt.Println(err)
			os.Exit(4)
		}
	}
	db, err := barrier.OpenSQLite(ctx, file)
	check(err)
	b, err := barrier.New(db, barrier.SQLite, barrier.Options{})
	check(err)
	_, err = b.Do(ctx, call("tcc", "g1", "confirm", 1), func(tx *sql.Tx) error {
		if at == "between row and business" {
			stay()
		}
		if err := effect("confirm")(tx); err != nil {
			return err
		}
		if at == "between business and commit" {
			stay()
		}
		return nil
	})
	check(err)
	stay()
}

// Rule (G5): a participant killed with SIGKILL at any point of a call has done it or not, and the repeat makes it once.
func TestKilledParticipantActsOnce(t *testing.T) {
	for at, want := range map[string]barrier.Outcome{
		"between row and business":    barrier.Done,
		"between business and commit": barrier.Done,
		"after commit":                barrier.Repeated,
	} {
		t.Run(at, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "x.db")
			c := openCounter(t, file, barrier.Options{})
			c.do(t, call("tcc", "g1", "try", 1), barrier.Done, nil, 1)

			child := exec.Command(os.Args[0])
			child.Env = append(os.Environ(), crashFile+"="+file, crashAt+"="+at)
			if _, err := child.StdinPipe(); err != nil {
				t.Fatal(err)
			}
			stdout, err := child.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := child.Start(); err != nil {
				t.Fatal(err)
			}
			line, err := bufio.NewReader(stdout).ReadString('\n')
			if kerr := child.Process.Kill(); kerr != nil { // SIGKILL
				t.Fatal(kerr)
			}
			_ = child.Wait()
			if err != nil || strings.TrimSpace(line) != "reached "+at {
				t.Fatalf("the child said %q (%v)", line, err)
			}
			c.do(t, call("tcc", "g1", "confirm", 1), want, nil, 1)
			c.do(t, call("tcc", "g1", "confirm", 1), barrier.Repeated, nil, 1)
		})
	}
}

// Rule (G5): of many simultaneous repeats, over several connections to one file, exactly one acts, and all succeed.
func TestConcurrentRepeatsActOnce(t *testing.T) {
	file := filepath.Join(t.TempDir(), "x.db")
	var handles []counter
	for range 4 { // as four processes would hold it
		handles = append(handles, openCounter(t, file, barrier.Options{}))
	}
	for _, op := range []string{"try", "confirm"} {
		outcomes := make([]barrier.Outcome, 32)
		errs := make([]error, len(outcomes))
		var wg sync.WaitGroup
		for i := range outcomes {
			wg.Go(func() {
				outcomes[i], errs[i] = handles[i%4].b.Do(context.Background(), call("tcc", "g1", op, 1), effect(op))
			})
		}
		wg.Wait()
		done := 0
		for i, o := range outcomes {
			if errs[i] != nil || (o != barrier.Done && o != barrier.Repeated) {
				t.Fatalf("%s %d: %s, %v", op, i, o, errs[i])
			}
			if o == barrier.Done {
				done++
			}
		}
		if n := handles[0].effects(t, op); done != 1 || n != 1 {
			t.Errorf("%s: %d say they did it, its effect is there %d times", op, done, n)
		}
	}
}

// Rule (G5): when confirm, cancel and try of one branch race, either the cancel or the confirm acts, never both, and a
// try acts only if it came before the cancel.
func TestRacingOperationsExcludeEachOther(t *testing.T) {
	file := filepath.Join(t.TempDir(), "x.db")
	handles := []counter{openCounter(t, file, barrier.Options{}), openCounter(t, file, barrier.Options{}), openCounter(t, file, barrier.Options{})}
	for round := range 40 {
		gid := fmt.Sprintf("g%d", round)
		outcomes := map[string]*barrier.Outcome{"try": new(barrier.Outcome), "confirm": new(barrier.Outcome), "cancel": new(barrier.Outcome)}
		if round%2 == 0 { // half of the rounds have their try before
			if _, err := handles[0].b.Do(context.Background(), call("tcc", gid, "try", 1), effect(gid+"try")); err != nil {
				t.Fatal(err)
			}
		}
		var wg sync.WaitGroup
		for i, op := range []string{"try", "confirm", "cancel"} {
			wg.Go(func() {
				*outcomes[op], _ = handles[i].b.Do(context.Background(), call("tcc", gid, op, 1), effect(gid+op))
			})
		}
		wg.Wait()
		try, confirm, cancel := handles[0].effects(t, gid+"try"), handles[0].effects(t, gid+"confirm"), handles[0].effects(t, gid+"cancel")
		cancelled := *outcomes["cancel"] == barrier.Done || *outcomes["cancel"] == barrier.Empty
		if (*outcomes["confirm"] == barrier.Done) == cancelled || confirm > 1 || cancel > 1 || try > 1 || (cancel == 1 && try == 0) {
			t.Fatalf("%s: outcomes try %s, confirm %s, cancel %s; effects %d, %d, %d", gid, *outcomes["try"], *outcomes["confirm"],
				*outcomes["cancel"], try, confirm, cancel)
		}
	}
}
