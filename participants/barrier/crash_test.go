package barrier_test

import (
	"bufio"
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/lockstep-tx/lockstep/participants/barrier"
)

func itoa(n int) string { return strconv.Itoa(n) }

// crashPlace and crashAt tell the child where and when: a place as JSON, and a way with a point.
const (
	crashPlace = "LOCKSTEP_BARRIER_CRASH_PLACE"
	crashAt    = "LOCKSTEP_BARRIER_CRASH_AT"
)

// TestMain turns the test binary into the participant that TestKilled… kills, when its environment says so.
func TestMain(m *testing.M) {
	if p := os.Getenv(crashPlace); p != "" {
		crashChild(p, os.Getenv(crashAt))
	}
	os.Exit(m.Run())
}

// crashGids are the branches that the child works on.
var crashGids = []string{"g1", "g2", "g3"}

// crashChild makes its confirms in a way (single calls, a batch, a set), says on stdout when it has reached the point,
// and stays there until it is killed.
func crashChild(where, wayAt string) {
	way, at, _ := strings.Cut(wayAt, ": ")
	reach := func(point string) {
		if point != at {
			return
		}
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
	var told struct {
		Dialect     barrier.Dialect
		URL, Schema string
	}
	check(json.Unmarshal([]byte(where), &told))
	ctx := context.Background()
	c, err := place{told.Dialect, told.URL, told.Schema}.handle(ctx, barrier.Options{})
	check(err)
	var calls []*barrier.Call
	for _, gid := range crashGids {
		calls = append(calls, call("tcc", gid, "confirm", 2)) // 2: the fence is raised on the way
	}
	all := func(set []int, tx *sql.Tx) error {
		reach("between row and business")
		for n, i := range set {
			if n == 1 {
				reach("amid the business")
			}
			if err := c.effect(calls[i].Gid)(tx); err != nil {
				return err
			}
		}
		reach("between business and commit")
		return nil
	}
	switch way {
	case "single":
		for i, call := range calls {
			_, err := c.b.Do(ctx, call, func(tx *sql.Tx) error { return all([]int{i}, tx) })
			check(err)
			reach("after commit")
		}
	case "batch", "set":
		ran := 0
		work := barrier.Work{All: all, One: func(i int, tx *sql.Tx) error {
			if ran++; ran == 1 {
				reach("between row and business")
			}
			if ran == 2 {
				reach("amid the business")
			}
			if err := c.effect(calls[i].Gid)(tx); err != nil {
				return err
			}
			if ran == len(calls) {
				reach("between business and commit")
			}
			return nil
		}}
		if way == "set" {
			work.Set = func(int) int { return 0 }
		}
		for _, r := range c.b.DoWork(ctx, 0, calls, work) {
			check(r.Err)
		}
		reach("after commit")
	}
	check(errors.New("the point was not reached"))
}

// Rule (G5): a participant killed with SIGKILL at any point of a call, or of a batch, has done it or not, and the repeat
// makes it once.
func TestKilledParticipantActsOnce(t *testing.T) {
	onEach(t, func(t *testing.T, d barrier.Dialect) {
		for _, way := range []string{"single", "batch", "set"} {
			for at, want := range map[string]barrier.Outcome{
				"between row and business":    barrier.Done,
				"amid the business":           barrier.Done,
				"between business and commit": barrier.Done,
				"after commit":                barrier.Repeated,
			} {
				if way == "single" && at == "amid the business" {
					continue
				}
				t.Run(way+": "+at, func(t *testing.T) { killedAt(t, d, way, at, want) })
			}
		}
	})
}

func killedAt(t *testing.T, d barrier.Dialect, way, at string, want barrier.Outcome) {
	p := freshPlace(t, d)
	c := p.open(t, barrier.Options{})
	for i, gid := range crashGids {
		c.do(t, call("tcc", gid, "try", 1), barrier.Done, nil, i+1)
	}
	where, err := json.Marshal(map[string]any{"Dialect": p.dialect, "URL": p.url, "Schema": p.schema})
	if err != nil {
		t.Fatal(err)
	}
	child := exec.Command(os.Args[0])
	child.Env = append(os.Environ(), crashPlace+"="+string(where), crashAt+"="+way+": "+at)
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
	for i, gid := range crashGids {
		want := want
		if way == "single" && i > 0 {
			want = barrier.Done // the child was killed at its first call
		}
		for _, want := range []barrier.Outcome{want, barrier.Repeated} {
			got, err := c.b.Do(t.Context(), call("tcc", gid, "confirm", 2), c.effect(gid))
			if n := c.effects(t, gid); got != want || err != nil || n != 1 {
				t.Fatalf("%s: %s, %v, its effect is there %d times; want %s", gid, got, err, n, want)
			}
		}
		if got, err := c.b.Do(t.Context(), call("tcc", gid, "confirm", 1), c.effect(gid)); !errors.Is(err, barrier.ErrStale) {
			t.Fatal(got, err)
		}
	}
}

// Rule (G5): of many simultaneous repeats, over several connections to one file, exactly one acts, and all succeed.
func TestConcurrentRepeatsActOnce(t *testing.T) {
	onEach(t, func(t *testing.T, d barrier.Dialect) {
		p := freshPlace(t, d)
		var handles []counter
		for range 4 { // as four processes would hold it
			handles = append(handles, p.open(t, barrier.Options{}))
		}
		type step struct {
			gid, transType, op string
			first              barrier.Outcome
		}
		for _, s := range []step{
			{"g1", "tcc", "try", barrier.Done}, {"g1", "tcc", "confirm", barrier.Done},
			{"g2", "tcc", "try", barrier.Done}, {"g2", "tcc", "cancel", barrier.Done},
			{"g3", "tcc", "cancel", barrier.Empty}, {"g4", "tcc", "confirm", barrier.Done},
			{"g5", "workflow", "action", barrier.Done}, {"g5", "workflow", "commit", barrier.Done},
			{"g6", "workflow", "action", barrier.Done}, {"g6", "workflow", "rollback", barrier.Done},
			{"g7", "workflow", "rollback", barrier.Empty}, {"g8", "saga", "compensate", barrier.Empty},
		} {
			outcomes := make([]barrier.Outcome, 32)
			errs := make([]error, len(outcomes))
			var wg sync.WaitGroup
			for i := range outcomes {
				wg.Go(func() {
					outcomes[i], errs[i] = handles[i%4].b.Do(context.Background(), call(s.transType, s.gid, s.op, 1), p.effect(s.gid+s.op))
				})
			}
			wg.Wait()
			first := 0
			for i, o := range outcomes {
				if errs[i] != nil || (o != s.first && o != barrier.Repeated) {
					t.Fatalf("%v %d: %s, %v", s, i, o, errs[i])
				}
				if o == s.first {
					first++
				}
			}
			want := 0
			if s.first == barrier.Done {
				want = 1
			}
			if n := handles[0].effects(t, s.gid+s.op); first != 1 || n != want {
				t.Errorf("%v: %d say they were first, its effect is there %d times", s, first, n)
			}
		}
	})
}

// Rule (G5): when confirm, cancel and try of one branch race, either the cancel or the confirm acts, never both, and a
// try acts only if it came before the cancel.
func TestRacingOperationsExcludeEachOther(t *testing.T) {
	onEach(t, func(t *testing.T, d barrier.Dialect) {
		p := freshPlace(t, d)
		handles := []counter{p.open(t, barrier.Options{}), p.open(t, barrier.Options{}), p.open(t, barrier.Options{})}
		for round := range 40 {
			gid := fmt.Sprintf("g%d", round)
			outcomes := map[string]*barrier.Outcome{"try": new(barrier.Outcome), "confirm": new(barrier.Outcome), "cancel": new(barrier.Outcome)}
			if round%2 == 0 { // half of the rounds have their try before
				if _, err := handles[0].b.Do(context.Background(), call("tcc", gid, "try", 1), p.effect(gid+"try")); err != nil {
					t.Fatal(err)
				}
			}
			var wg sync.WaitGroup
			for i, op := range []string{"try", "confirm", "cancel"} {
				wg.Go(func() {
					*outcomes[op], _ = handles[i].b.Do(context.Background(), call("tcc", gid, op, 1), p.effect(gid+op))
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
	})
}
