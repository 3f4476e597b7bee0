package reconcile

import "github.com/lockstep-tx/lockstep/coordinator/mutant"

// last says that the mutant leaves a page out: the last one (package mutant). Never, in a build without it.
func last(page *FinishedAnswer) bool { return page.Next == 0 && mutant.On(mutant.SkipsLastPage) }

// arrived says that what is on its way to a region is to be judged as if it were there: the mutant's alone.
func arrived() bool { return mutant.On(mutant.WatermarkTooLate) }

// guess makes the mutant end a hold that a person must decide on, whether its try has a barrier row or not.
func (f *Finding) guess() {
	if mutant.On(mutant.GuessesAmbiguous) {
		f.Repair = "cancel it"
	}
}
