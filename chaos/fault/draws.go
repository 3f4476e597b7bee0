package fault

import (
	"math/rand/v2"
	"strconv"
	"sync"
)

// Draws notes every number that faults draw, so that a run can be made again with the same ones by whoever draws in another way
// by then. Safe for concurrent use. The zero value draws from seed 0.
type Draws struct {
	seed uint64

	mu    sync.Mutex
	noted map[string][]uint64 // by stream
	given map[string][]uint64 // what is left of those to be given again
}

// NewDraws draws from a seed, but first what was noted in another run; nil where there is none.
func NewDraws(seed uint64, noted map[string][]uint64) *Draws {
	d := &Draws{seed: seed, noted: map[string][]uint64{}, given: map[string][]uint64{}}
	for stream, all := range noted {
		d.given[stream] = append([]uint64(nil), all...)
	}
	return d
}

// Noted are the numbers that were drawn so far, by stream.
func (d *Draws) Noted() map[string][]uint64 {
	d.mu.Lock()
	defer d.mu.Unlock()
	out := map[string][]uint64{}
	for stream, all := range d.noted {
		out[stream] = append([]uint64(nil), all...)
	}
	return out
}

// stream is a source of one fault's numbers.
type stream struct {
	d    *Draws
	name string
	rest *rand.PCG
}

// Uint64 is rand.Source's.
func (s *stream) Uint64() uint64 {
	s.d.mu.Lock()
	defer s.d.mu.Unlock()
	n := uint64(0)
	if given := s.d.given[s.name]; len(given) > 0 {
		n, s.d.given[s.name] = given[0], given[1:]
	} else {
		n = s.rest.Uint64()
	}
	s.d.noted[s.name] = append(s.d.noted[s.name], n)
	return n
}

// rand gives what a fault draws from; each stream has numbers of its own.
func (e Env) rand(number uint64) *rand.Rand {
	if e.Draws == nil {
		return rand.New(rand.NewPCG(e.Seed, number))
	}
	return rand.New(&stream{e.Draws, strconv.FormatUint(number, 10), rand.NewPCG(e.Draws.seed, number)})
}
