package fault

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/lockstep-tx/lockstep/chaos/check"
)

// Truncated cuts the end off a file of a member of the first region's etcd while it does not run: of its log, or of its database, by
// seed (K6). Then it is started: it must get from the others what it lacks, or end; one that ends is replaced.
type Truncated struct{ off bool }

// The least and the most that is cut, in bytes: some records of a log, some pages of a database.
const (
	logCutMin, logCutMax   = 64, 4 << 10
	bookCutMin, bookCutMax = 4 << 10, 64 << 10
)

// Name is the fault's.
func (Truncated) Name() string { return "etcd-member-truncated" }

// Available wants three members.
func (Truncated) Available(e Env) error { return KillMember{}.Available(e) }

func (t Truncated) disabled() Fault { t.off = true; return t }

// Inject kills the last member, cuts, starts it, and sees what becomes of it.
func (t Truncated) Inject(ctx context.Context, e Env) (Active, error) {
	a := &truncated{replaced: *last(e)}
	if t.off {
		return a, nil
	}
	err := a.kill(ctx)
	if err == nil {
		err = a.cutFile()
	}
	if err == nil {
		a.came, err = a.returns(ctx)
	}
	if err != nil || a.came {
		return a, err
	}
	a.flipped = a.cut + "it ended when it was started" + a.words() + "; "
	return a, a.remove(ctx)
}

type truncated struct {
	replaced
	cut  string // what was cut
	came bool   // it follows the others again, with its data
	at   int64  // the revision that it had to come to
}

// cutFile cuts what was written last off the log, or off the database: both have room beyond that, in which there is nothing.
func (a *truncated) cutFile() error {
	rnd := a.e.rand(6)
	name, least, most := filepath.Join("wal", "*.wal"), int64(logCutMin), int64(logCutMax)
	if a.e.Seed%2 == 1 {
		name, least, most = filepath.Join("snap", "db"), bookCutMin, bookCutMax
	}
	files, err := filepath.Glob(filepath.Join(a.n.Data(), "*", "member", name))
	if err != nil || len(files) == 0 {
		return fmt.Errorf("%s has no %s: %w", a.n.Name, name, err)
	}
	file := slices.Max(files)
	raw, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	end := int64(len(raw))
	for end > 0 && raw[end-1] == 0 {
		end--
	}
	n := min(least+rnd.Int64N(most-least), end)
	a.cut = fmt.Sprintf("of the %d bytes that are written of %s's %s the last %d were cut off; ", end, a.n.Name, filepath.Base(file), n)
	return os.Truncate(file, end-n)
}

// returns starts it, and says whether it has what the others had then, or has ended. One that does neither is an error.
func (a *truncated) returns(ctx context.Context) (bool, error) {
	others, err := check.ReadMembers(ctx, "", addresses(a.r.Etcd[:len(a.r.Etcd)-1]))
	if err != nil {
		return false, err
	}
	for _, m := range others {
		a.at = max(a.at, m.Revision)
	}
	_ = a.n.Start(ctx) // that its port was open says nothing: it listens before it reads what it has
	_, err = until(ctx, a.e.wait(20*time.Second), func() (Evidence, bool, error) {
		if !a.n.Alive() {
			return Evidence{}, true, nil
		}
		ev, ok, err := a.follows(ctx)
		return ev, ok, err
	})
	if err != nil {
		return false, fmt.Errorf("%s%s neither has what the others have, nor ends: %w", a.cut, a.n.Name, err)
	}
	return a.n.Alive(), nil
}

// follows says whether it follows a leader, is at least where the others were when it was started, and has the same as they.
func (a *truncated) follows(ctx context.Context) (Evidence, bool, error) {
	all, err := check.ReadMembers(ctx, "", addresses(a.r.Etcd))
	if err != nil {
		return Evidence{}, false, err
	}
	own := all[len(all)-1]
	same := !slices.ContainsFunc(all, func(m check.Member) bool { return m.Leader == 0 || m.Leader != own.Leader || m.Hash != own.Hash })
	return Evidence{What: fmt.Sprintf("%s is at revision %d, where the others were at %d; all have the same: %v", a.n.Name, own.Revision, a.at, same)}, same && own.Revision >= a.at, nil
}

// Effective wants something to have been cut, and the member to have come back or to be as one that is to be replaced.
func (a *truncated) Effective(ctx context.Context) (Evidence, error) {
	if a.cut == "" {
		return Evidence{}, fmt.Errorf("%w: nothing was cut off", ErrNoEffect)
	}
	if !a.came {
		return a.replaced.Effective(ctx)
	}
	return until(ctx, a.e.wait(10*time.Second), func() (Evidence, bool, error) {
		ev, ok, err := a.follows(ctx)
		ev.What = a.cut + "it got from the others what it lacked: " + ev.What
		return ev, ok, err
	})
}

// Recover replaces one that has ended.
func (a *truncated) Recover(ctx context.Context) error {
	if a.came && !a.n.Alive() {
		return errors.New("it had come back, and has ended since" + a.words())
	}
	if a.came {
		return nil
	}
	return a.replaced.Recover(ctx)
}

// Recovered wants it, or the one in its place, to have what the others have.
func (a *truncated) Recovered(ctx context.Context) (Evidence, error) {
	if !a.came {
		return a.replaced.Recovered(ctx)
	}
	return until(ctx, a.e.wait(20*time.Second), func() (Evidence, bool, error) { return a.follows(ctx) })
}
