package sim

import "errors"

// Shrunk is a smallest way to a violation that was found.
type Shrunk struct {
	Result
	Options Options
	// Runs is how many runs it took.
	Runs int
}

// Shrink takes faults out of the script of a run that failed, and transactions out of its load, as long as what is left still
// fails, whatever the violation. It gives nothing where the run does not fail. Every step is a run of the same seed, so what is
// left replays exactly.
func Shrink(seed uint64, opt Options) (*Shrunk, bool) {
	s := &Shrunk{Options: opt, Runs: 1}
	s.Result = Run(seed, opt)
	if s.Err == nil {
		return nil, false
	}
	s.Options.Script, s.Options.Mode = s.Script, opt.Mode
	if s.Options.Clients == 0 {
		s.Options.Clients = defaultClients
	}
	for smaller := true; smaller; {
		smaller = s.faults() || s.clients()
	}
	return s, true
}

// try runs a smaller one, and takes it if it fails.
func (s *Shrunk) try(opt Options) bool {
	s.Runs++
	r := Run(s.Seed, opt)
	fails := r.Err != nil && !errors.Is(r.Err, ErrNothingProven)
	if fails {
		s.Result, s.Options = r, opt
	}
	return fails
}

// faults leaves out runs of faults: halves first, single ones last.
func (s *Shrunk) faults() (smaller bool) {
	for size := max(1, len(s.Options.Script)/2); ; size /= 2 {
		for i := 0; i+size <= len(s.Options.Script); {
			opt := s.Options
			opt.Script = append(append(Script{}, s.Options.Script[:i]...), s.Options.Script[i+size:]...)
			if s.try(opt) {
				smaller = true
			} else {
				i++
			}
		}
		if size <= 1 {
			return smaller
		}
	}
}

// clients halves the load.
func (s *Shrunk) clients() bool {
	if s.Options.Clients < 2 {
		return false
	}
	opt := s.Options
	opt.Clients /= 2
	return s.try(opt)
}
