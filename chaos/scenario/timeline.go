package scenario

import "github.com/lockstep-tx/lockstep/chaos/history"

// Second is how many operations ended in one second of a run, by outcome.
type Second struct {
	OK      int `json:"ok"`
	Fail    int `json:"fail"`
	Unknown int `json:"unknown"`
}

// Timeline counts a run's operations by the second in which they ended, from the first second on, those without any
// included: a gap is what is looked for.
func Timeline(ops []history.Op) []Second {
	var out []Second
	for _, op := range ops {
		at := int(op.End / 1e9)
		for len(out) <= at {
			out = append(out, Second{})
		}
		switch op.Outcome {
		case history.OK:
			out[at].OK++
		case history.Fail:
			out[at].Fail++
		case history.Unknown:
			out[at].Unknown++
		}
	}
	return out
}
