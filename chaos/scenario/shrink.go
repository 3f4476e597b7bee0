package scenario

// Shrink takes out of a schedule what is not needed for it to be red: first its fault, then parts of its operations, halves
// before quarters and so on, until no single one can be left out, or red says that it is enough. red makes a run by a schedule
// and says whether the checker that is looked for was red in it; enough ends the search.
func Shrink(s *Schedule, red func(*Schedule) bool, enough func() bool) *Schedule {
	if len(s.Faults) > 0 && !enough() {
		if c := s.Faultless(); red(c) {
			s = c
		}
	}
	for parts := 2; len(s.Operations) > 1 && !enough(); {
		parts = min(parts, len(s.Operations))
		smaller := false
		for i := 0; i < parts && !smaller && !enough(); i++ {
			if c := s.Without(i, parts); red(c) {
				s, smaller = c, true
			}
		}
		switch {
		case smaller:
			parts = max(2, parts-1)
		case parts == len(s.Operations):
			return s
		default:
			parts *= 2
		}
	}
	return s
}
