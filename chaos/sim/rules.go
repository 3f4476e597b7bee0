package sim

// shortcuts are the rules by the names under which they are switched off.
var shortcuts = []struct {
	name string
	set  func(*Rules)
}{
	{"cancel-tried", func(r *Rules) { r.CancelTried = true }},
	{"spend-early", func(r *Rules) { r.SpendEarly = true }},
	{"seal-at-target", func(r *Rules) { r.SealAtTarget = true }},
	{"serve-early", func(r *Rules) { r.ServeEarly = true }},
	{"last-seal-alone", func(r *Rules) { r.LastSealAlone = true }},
	{"no-barrier", func(r *Rules) { r.Unbarriered = true }},
	{"cut-nothing", func(r *Rules) { r.CutNothing = true }},
}

// Shortcuts are the names of the rules that can be switched off.
func Shortcuts() []string {
	var out []string
	for _, s := range shortcuts {
		out = append(out, s.name)
	}
	return out
}

// Shortcut gives the rules with one of them switched off; false where the name is none of Shortcuts.
func Shortcut(name string) (r Rules, ok bool) {
	for _, s := range shortcuts {
		if s.name == name {
			s.set(&r)
			return r, true
		}
	}
	return r, false
}
