package fault

import (
	"encoding/json"
	"testing"
)

// TestASeedDrawsTheSameFaultsAgain: a schedule is of one to four faults of different kinds, another seed draws another, and over many
// seeds each fault is drawn.
func TestASeedDrawsTheSameFaultsAgain(t *testing.T) {
	text := func(all []Drawn) string {
		raw, err := json.Marshal(all)
		if err != nil {
			t.Fatal(err)
		}
		return string(raw)
	}
	drawn, different := map[string]bool{}, map[string]bool{}
	for seed := range uint64(400) {
		one := Sink{}.Schedule(seed)
		if text(one) != text(Sink{}.Schedule(seed)) {
			t.Fatalf("seed %d draws %v, and then something else", seed, one)
		}
		if len(one) < 1 || len(one) > 4 {
			t.Fatalf("seed %d draws %d faults", seed, len(one))
		}
		of := map[int]bool{}
		for _, d := range one {
			drawn[d.Fault] = true
			for i, kind := range kinds() {
				for _, f := range kind {
					if f.Name() != d.Fault {
						continue
					}
					if of[i] {
						t.Errorf("seed %d draws two of one kind: %v", seed, one)
					}
					of[i] = true
				}
			}
		}
		different[text(one)] = true
	}
	for _, kind := range kinds() {
		for _, f := range kind {
			if !drawn[f.Name()] {
				t.Errorf("%s is never drawn", f.Name())
			}
		}
	}
	if len(different) < 390 {
		t.Errorf("400 seeds draw %d schedules", len(different))
	}
	if text(Sink{Draw: 1}.Schedule(1)) == text(Sink{Draw: 2}.Schedule(1)) {
		t.Error("two draws of one run are the same")
	}
}
