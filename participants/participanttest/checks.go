package participanttest

import (
	"errors"
	"fmt"
	"maps"
	"net/http"
	"sync"

	"github.com/lockstep-tx/lockstep/participants/barrier"
)

const (
	try, confirm, cancel = barrier.OpTry, barrier.OpConfirm, barrier.OpCancel
	repeats              = 3
	inParallel           = 8
)

// probe makes the first try, and cleans up after it.
func (r *run) probe() error {
	g := r.gid()
	if a := r.do(g, try); a.status != http.StatusOK {
		return fmt.Errorf("the first try is answered %s: nothing can be checked", a)
	}
	return r.want(g, cancel, http.StatusOK)
}

// want makes a call and compares its answer.
func (r *run) want(gid, op string, status int) error {
	if a := r.do(gid, op); a.status != status {
		return fmt.Errorf("%s of %s is answered %s, want %d", op, gid, a, status)
	}
	return nil
}

// noSuccess makes a call that must not succeed.
func (r *run) noSuccess(c call) error {
	if a := r.send(c); a.status == http.StatusOK {
		return fmt.Errorf("%s of %s succeeded", c.op, c.gid)
	}
	return nil
}

// times makes a call several times; all must succeed.
func (r *run) times(n int, gid, op string) error {
	for i := range n {
		if err := r.want(gid, op, http.StatusOK); err != nil {
			return fmt.Errorf("call %d: %w", i+1, err)
		}
	}
	return nil
}

func (r *run) emptyCancel() error {
	return r.times(repeats, r.gid(), cancel)
}

func (r *run) lateTry() error {
	g := r.gid()
	return errors.Join(r.want(g, cancel, http.StatusOK), r.want(g, try, http.StatusConflict), r.want(g, cancel, http.StatusOK))
}

func (r *run) repeatedConfirm() error {
	g := r.gid()
	return errors.Join(r.times(repeats, g, try), r.times(repeats, g, confirm), r.times(1, g, try))
}

func (r *run) repeatedCancel() error {
	g := r.gid()
	return errors.Join(r.times(repeats, g, try), r.times(repeats, g, cancel))
}

func (r *run) cancelAfterConfirm() error {
	g := r.gid()
	if err := errors.Join(r.want(g, try, http.StatusOK), r.want(g, confirm, http.StatusOK)); err != nil {
		return err
	}
	return errors.Join(r.noSuccess(r.newCall(g, cancel, r.epoch())), r.want(g, confirm, http.StatusOK))
}

func (r *run) confirmAfterCancel() error {
	g := r.gid()
	if err := errors.Join(r.want(g, try, http.StatusOK), r.want(g, cancel, http.StatusOK)); err != nil {
		return err
	}
	return errors.Join(r.noSuccess(r.newCall(g, confirm, r.epoch())), r.want(g, cancel, http.StatusOK))
}

// together makes a call several times at once and then until it succeeds: a repeat that meets the first one under way may
// be told to come again, but none may be refused.
func (r *run) together(gid, op string) error {
	errs := make([]error, inParallel)
	var wg sync.WaitGroup
	for i := range errs {
		wg.Go(func() {
			switch a := r.send(r.newCall(gid, op, r.epoch())); a.status {
			case http.StatusConflict, http.StatusPreconditionFailed, http.StatusBadRequest:
				errs[i] = fmt.Errorf("a repeat of %s of %s is answered %s", op, gid, a)
			}
		})
	}
	wg.Wait()
	return errors.Join(append(errs, r.want(gid, op, http.StatusOK))...)
}

func (r *run) parallel() error {
	g, h := r.gid(), r.gid()
	return errors.Join(r.together(g, try), r.together(g, confirm), r.together(h, try), r.together(h, cancel))
}

func (r *run) brokenPayload() error {
	g := r.gid()
	c := r.newCall(g, try, r.epoch())
	c.payload = []byte("\x00{broken")
	return errors.Join(r.noSuccess(c), r.want(g, cancel, http.StatusOK))
}

// refusal makes a try that the business refuses.
func (r *run) refusal(gid string) error {
	c := r.newCall(gid, try, r.epoch())
	c.payload = r.target.Refused
	if a := r.send(c); a.status != http.StatusConflict {
		return fmt.Errorf("the try of %s with the payload that is to be refused is answered %s, want 409", gid, a)
	}
	return nil
}

func (r *run) businessRefusal() error {
	g := r.gid()
	return errors.Join(r.refusal(g), r.refusal(g), r.want(g, cancel, http.StatusOK), r.refusal(g))
}

func (r *run) stale() error {
	g, h := "{"+r.gid()+"}a", "" // two gids of one slot
	h = g[:len(g)-1] + "b"
	if err := errors.Join(r.want(g, try, http.StatusOK), r.want(g, confirm, http.StatusOK)); err != nil {
		return err
	}
	var errs []error
	for _, gid := range []string{g, h} {
		for _, op := range []string{try, confirm, cancel} {
			if a := r.send(r.newCall(gid, op, r.epoch()-1)); a.status != http.StatusPreconditionFailed {
				errs = append(errs, fmt.Errorf("%s of %s at the older epoch is answered %s, want 412", op, gid, a))
			}
		}
	}
	return errors.Join(errs...)
}

func (r *run) unfenced() error {
	g, h := r.gid(), r.gid()
	if err := errors.Join(r.want(g, try, http.StatusOK), r.want(h, try, http.StatusOK)); err != nil {
		return err
	}
	return errors.Join(r.noSuccess(r.newCall(g, confirm, 0)), r.noSuccess(r.newCall(h, cancel, 0)),
		r.want(g, cancel, http.StatusOK), r.want(h, cancel, http.StatusOK))
}

func (r *run) wrongSlot() error {
	c := r.newCall(r.gid(), try, r.epoch())
	c.slot = (c.slot + 1) % barrier.SlotCount
	return r.noSuccess(c)
}

func (r *run) batch() error {
	good, late, old := r.gid(), r.gid(), "{"+r.gid()+"}"
	if err := errors.Join(r.want(late, cancel, http.StatusOK), r.want(old+"a", try, http.StatusOK), r.want(old+"a", cancel, http.StatusOK)); err != nil {
		return err
	}
	e := r.epoch()
	broken := r.newCall(r.gid(), try, e)
	broken.payload = []byte("\x00{broken")
	calls := []call{r.newCall(good, try, e), r.newCall(late, try, e), broken, r.newCall(r.gid(), cancel, e), r.newCall(good, try, e)}
	wants := []int{200, 409, 0, 200, 200}
	if !r.target.Unfenced {
		calls, wants = append(calls, r.newCall(old+"b", try, e-1)), append(wants, 412)
	}
	answers, err := r.sendBatch(calls)
	if err != nil {
		return err
	}
	var errs []error
	for i, a := range answers {
		if wants[i] != a.status && (wants[i] != 0 || a.status == http.StatusOK) {
			errs = append(errs, fmt.Errorf("member %d, %s of %s, is answered %s, want %d (0: any but 200)", i+1, calls[i].op, calls[i].gid, a, wants[i]))
		}
	}
	return errors.Join(append(errs, r.want(good, confirm, http.StatusOK), r.want(good, try, http.StatusOK))...)
}

// moved gives how balances change while f runs.
func (r *run) moved(f func() error) (map[string]int64, error) {
	before, err := r.balances()
	if err != nil {
		return nil, err
	}
	if err := f(); err != nil {
		return nil, err
	}
	after, err := r.balances()
	if err != nil {
		return nil, err
	}
	delta := map[string]int64{}
	for name, n := range after {
		if d := n - before[name]; d != 0 {
			delta[name] = d
		}
	}
	for name, n := range before {
		if _, ok := after[name]; !ok && n != 0 {
			delta[name] = -n
		}
	}
	return delta, nil
}

func (r *run) movesNothing(f func() error) error {
	d, err := r.moved(f)
	if err == nil && len(d) > 0 {
		err = fmt.Errorf("balances moved by %v", d)
	}
	return err
}

// once is what one try and one confirm move.
func (r *run) once() (map[string]int64, error) {
	d, err := r.moved(func() error {
		g := r.gid()
		return errors.Join(r.want(g, try, http.StatusOK), r.want(g, confirm, http.StatusOK))
	})
	if err == nil && len(d) == 0 {
		err = errors.New("a try and its confirm move no balance that the state URL shows: nothing can be concluded")
	}
	return d, err
}

func (r *run) conserved() error {
	var errs []error
	at := func(what string, f func() error) {
		d, err := r.moved(f)
		sum := int64(0)
		for _, n := range d {
			sum += n
		}
		if sum != 0 {
			err = errors.Join(err, fmt.Errorf("%s changes the sum by %d (%v)", what, sum, d))
		}
		errs = append(errs, err)
	}
	g, h := r.gid(), r.gid()
	for _, s := range []struct{ gid, op string }{{g, try}, {g, confirm}, {h, try}, {h, cancel}} {
		at(s.op, func() error { return r.want(s.gid, s.op, http.StatusOK) })
	}
	if _, err := r.once(); err != nil {
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

func (r *run) cancelRestores() error { return r.movesNothing(r.repeatedCancel) }

func (r *run) emptyCancelRestores() error {
	return r.movesNothing(func() error { return errors.Join(r.emptyCancel(), r.lateTry()) })
}

func (r *run) repeatsMoveOnce() error { return r.movesAsOne(r.repeatedConfirm) }

func (r *run) parallelMovesOnce() error { return r.movesAsOne(r.parallel) }

// movesAsOne runs f, which confirms one transaction and cancels the others.
func (r *run) movesAsOne(f func() error) error {
	want, err := r.once()
	if err != nil {
		return err
	}
	got, err := r.moved(f)
	if err == nil && !maps.Equal(got, want) {
		err = fmt.Errorf("balances moved by %v, one transaction moves %v", got, want)
	}
	return err
}

func (r *run) staleMovesNothing() error {
	g := "{" + r.gid() + "}a"
	if err := errors.Join(r.want(g, try, http.StatusOK), r.want(g, cancel, http.StatusOK)); err != nil {
		return err
	}
	return r.movesNothing(func() error {
		h := g[:len(g)-1] + "b"
		for _, op := range []string{try, confirm, cancel} {
			r.send(r.newCall(h, op, r.epoch()-1))
		}
		return nil
	})
}

func (r *run) refusedMovesNothing() error {
	return r.movesNothing(func() error {
		g := r.gid()
		c := r.newCall(g, try, r.epoch())
		c.payload = []byte("\x00{broken")
		err := errors.Join(r.noSuccess(c), r.want(g, cancel, http.StatusOK), r.want(g, try, http.StatusConflict))
		if len(r.target.Refused) > 0 {
			err = errors.Join(err, r.businessRefusal())
		}
		return err
	})
}
