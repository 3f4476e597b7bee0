package fault

import (
	"slices"
	"testing"
)

// TestWhatWasDrawnIsDrawnAgain: also from another seed; beyond what was noted it goes on from the seed, and streams do not mix.
func TestWhatWasDrawnIsDrawnAgain(t *testing.T) {
	draw := func(e Env, stream uint64, n int) (out []int64) {
		r := e.rand(stream)
		for range n {
			out = append(out, r.Int64N(1000))
		}
		return out
	}
	first := Env{Seed: 7, Draws: NewDraws(7, nil)}
	want, other := draw(first, 10, 5), draw(first, 9, 3)
	if plain := draw(Env{Seed: 7}, 10, 5); !slices.Equal(plain, want) {
		t.Errorf("with nobody to note it %v is drawn, else %v", plain, want)
	}
	again := Env{Seed: 8, Draws: NewDraws(8, first.Draws.Noted())}
	if got := draw(again, 9, 3); !slices.Equal(got, other) {
		t.Errorf("%v, want %v", got, other)
	}
	if got := draw(again, 10, 5); !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
	if n := len(again.Draws.Noted()["10"]); n != len(first.Draws.Noted()["10"]) {
		t.Errorf("%d numbers are noted of the second run", n)
	}
	if more := draw(again, 10, 50); slices.Equal(more[:5], want) {
		t.Error("the stream begins again")
	}
}
