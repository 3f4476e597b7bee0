package scenario

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/lockstep-tx/lockstep/chaos/history"
	"github.com/lockstep-tx/lockstep/chaos/proc"
	"github.com/lockstep-tx/lockstep/chaos/workload"
)

// drawn is a schedule of n operations.
func drawn(n int) *Schedule {
	s := &Schedule{Version: scheduleVersion, Scenario: "P1", Seed: 7, Lanes: 4, Wallets: OnMariaDB, Volumes: []string{"wallet"},
		Faults: []Planned{{Name: "kill", At: 3 * time.Second, Until: 4 * time.Second, Draws: map[string][]uint64{"10": {1<<64 - 1, 5}}}}}
	s.Participant = &proc.Participant{Command: []string{"./till", "{listen}"}, Ready: "/up", Pay: proc.Branch{Try: "/a", Confirm: "/b", Cancel: "/c"}, Receive: proc.Branch{Try: "/d", Confirm: "/e", Cancel: "/f"},
		Payload: "{account} {amount}", Account: "card", OpenPath: "/cards", Open: "{account} {amount}", Balances: "/cards"}
	for i := range n {
		s.Operations = append(s.Operations, workload.Operation{At: time.Duration(i) * time.Millisecond, Lane: i % 4, Kind: history.Execute, Gid: fmt.Sprintf("{a}%d", i), From: "a", To: "b", Amount: 5, Via: 3})
	}
	return s
}

func TestAScheduleIsReadAsItWasWritten(t *testing.T) {
	dir, want := t.TempDir(), drawn(9)
	if err := want.Save(dir); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{dir, filepath.Join(dir, "schedule.json")} {
		if got, err := LoadSchedule(path); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%s: %v\n%+v\nwant\n%+v", path, err, got, want)
		}
	}
}

func TestAScheduleThatCannotBeDoneIsRefused(t *testing.T) {
	for what, spoil := range map[string]func(*Schedule){
		"version 2":                      func(s *Schedule) { s.Version = 2 },
		`scenario "P0"`:                  func(s *Schedule) { s.Scenario = "P0" },
		`scenario ""`:                    func(s *Schedule) { s.Scenario = "" },
		"lanes 0":                        func(s *Schedule) { s.Lanes, s.Operations = 0, nil },
		"operations[1]: lane 9":          func(s *Schedule) { s.Operations[1].Lane = 9 },
		"operations[2]: lane 2 of 4, at": func(s *Schedule) { s.Operations[2].At = -1 },
		`of gid ""`:                      func(s *Schedule) { s.Operations[0].Gid = "" },
		"2 faults":                       func(s *Schedule) { s.Faults = append(s.Faults, s.Faults[0]) },
		"fault pause: P1 has kill":       func(s *Schedule) { s.Faults[0].Name = "pause" },
		"from 3s to 2s":                  func(s *Schedule) { s.Faults[0].Until = 2 * time.Second },
		"participant.balances":           func(s *Schedule) { s.Participant.Balances = "" },
		`wallets on "Oracle"`:            func(s *Schedule) { s.Wallets = "Oracle" },
	} {
		s := drawn(3)
		spoil(s)
		raw, err := json.Marshal(s)
		if err != nil {
			t.Fatal(err)
		}
		file := filepath.Join(t.TempDir(), "x.json")
		if err := os.WriteFile(file, raw, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := LoadSchedule(file); err == nil || !strings.Contains(err.Error(), what) {
			t.Errorf("%s: %v", what, err)
		}
	}
}

func gids(s *Schedule) (out []string) {
	for _, op := range s.Operations {
		out = append(out, op.Gid)
	}
	return out
}

// TestShrinkLeavesWhatIsNeeded: of a hundred operations two are needed, with the fault or without it; what was given stays as it
// was.
func TestShrinkLeavesWhatIsNeeded(t *testing.T) {
	never := func() bool { return false }
	for _, faultNeeded := range []bool{false, true} {
		s, runs := drawn(100), 0
		red := func(c *Schedule) bool {
			runs++
			return slices.Contains(gids(c), "{a}17") && slices.Contains(gids(c), "{a}83") && (!faultNeeded || len(c.Faults) == 1)
		}
		small := Shrink(s, red, never)
		if got := gids(small); !slices.Equal(got, []string{"{a}17", "{a}83"}) || (len(small.Faults) == 1) != faultNeeded {
			t.Errorf("left are %v and %d faults after %d runs", got, len(small.Faults), runs)
		}
		if !reflect.DeepEqual(s, drawn(100)) {
			t.Error("the schedule that was given was altered")
		}
		if runs > 80 {
			t.Errorf("%d runs for two of a hundred operations", runs)
		}
	}
}

func TestShrinkEndsWhenItIsEnough(t *testing.T) {
	runs := 0
	small := Shrink(drawn(64), func(*Schedule) bool { runs++; return true }, func() bool { return runs >= 3 })
	if runs != 3 || len(small.Operations) != 16 {
		t.Errorf("%d runs, %d operations left", runs, len(small.Operations))
	}
}

// TestPartsAreAllThereIs: what the parts leave out is each operation once.
func TestPartsAreAllThereIs(t *testing.T) {
	for _, n := range []int{1, 2, 7, 100} {
		for parts := 1; parts <= n; parts++ {
			left := 0
			for i := range parts {
				left += n - len(drawn(n).Without(i, parts).Operations)
			}
			if left != n {
				t.Errorf("%d parts of %d leave out %d", parts, n, left)
			}
		}
	}
}
