package fault

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/lockstep-tx/lockstep/chaos/check"
	"github.com/lockstep-tx/lockstep/chaos/history"
	"github.com/lockstep-tx/lockstep/region/slot"
)

// Rebuilt is Lost, but the region's disks are gone, the broker's and the wallets' too: it starts on empty ones, an operator says that
// what it alone had is given up, its journal comes back from the other region and its copies from the journal, what is in doubt is
// settled as clients were told, what drift names is accepted, and its slots go home by plan (O4).
type Rebuilt struct{ off bool }

// Name is the fault's.
func (Rebuilt) Name() string { return "region-rebuilt-from-nothing" }

// Available wants all of the region's data in files of the suite's.
func (Rebuilt) Available(e Env) error {
	_, err := e.Deployment.Disk(e.Deployment.Regions[0])
	return err
}

func (r Rebuilt) disabled() Fault { r.off = true; return r }

// emptyStore is what a coordinator says that knows from the arbiter of slots that its store never had.
const emptyStore = "was it started with empty disks?"

// Inject kills, takes the slots, and erases.
func (r Rebuilt) Inject(ctx context.Context, e Env) (Active, error) {
	a := &rebuilt{lost: newLost(Lost(r), e), named: map[string]bool{}}
	var err error
	if a.disk, err = e.Deployment.Disk(a.lost.lost()); err != nil || r.off {
		return a, err
	}
	if err := a.lose(ctx); err != nil {
		return a, err
	}
	if err := a.remember(ctx); err != nil {
		return a, err
	}
	for _, path := range a.disk {
		if _, err := os.Stat(path); err == nil {
			a.erased++
		}
		if err := os.RemoveAll(path); err != nil {
			return a, err
		}
	}
	return a, nil
}

type rebuilt struct {
	*lost
	disk   []string // the files and directories with all that it has
	erased int      // of them, those that were there
	// givenUp are the transactions that the lost region may have had alone: begun before the kill in slots of its own, and without a
	// decision in the heir's journal when the disks went.
	givenUp []string
	// accepted are findings of what the heir's books have of those; named their transactions.
	accepted int
	named    map[string]bool
	empty    bool // its coordinator has said that its store is
}

// Erased is the region whose disks are gone, and when the last of its processes was; "" where nothing was done.
func (a *rebuilt) Erased() (region string, at int64) {
	if a.l.off {
		return "", 0
	}
	return a.name(), a.dead
}

func (a *rebuilt) name() string { return a.lost.lost().Name }

// GivenUp are the transactions that may have gone with the disks.
func (a *rebuilt) GivenUp() []string { return a.givenUp }

// remember notes what may go with the disks, by what clients asked and what the heir's journal has.
func (a *rebuilt) remember(ctx context.Context) error {
	decided, _, err := check.ReadJournal(ctx, a.heir().Name, a.heir().Journal)
	if err != nil {
		return err
	}
	known := map[string]bool{}
	for _, d := range decided {
		known[d.Gid] = true
	}
	for _, op := range append(a.e.Log.Flying(), a.e.Log.Ops()...) {
		// At first even slots are the first region's.
		if op.Kind == history.Read || op.Start > a.dead || known[op.Gid] || slot.Of(op.Gid)%2 != 0 {
			continue
		}
		known[op.Gid] = true
		a.givenUp = append(a.givenUp, op.Gid)
	}
	return nil
}

// Effective wants, beside what a lost region shows, all of its data to be gone.
func (a *rebuilt) Effective(ctx context.Context) (Evidence, error) {
	ev, err := a.lost.Effective(ctx)
	if err != nil {
		return ev, err
	}
	return until(ctx, 0, func() (Evidence, bool, error) {
		left := 0
		for _, path := range a.disk {
			if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
				left++
			}
		}
		ev := Evidence{fmt.Sprintf("%s; of %d files and directories with all that %s had %d were there, and %d are left; %d transactions may have gone with them", ev.What, len(a.disk), a.name(), a.erased, left, len(a.givenUp)), ev.Counts}
		ev.Counts["erased"], ev.Counts["given_up"] = int64(a.erased), int64(len(a.givenUp))
		return ev, a.erased == len(a.disk) && left == 0, nil
	})
}

// Recover does what the runbook of a returned region says of one whose disks are gone.
func (a *rebuilt) Recover(ctx context.Context) error {
	if a.l.off {
		return nil
	}
	if err := a.start(ctx); err != nil {
		return err
	}
	if out, err := a.tool(ctx, 30*time.Second, "settle", "--from", a.name(), "--confirm-region", a.name(), "--why", "its disks are gone"); err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	if _, err := until(ctx, a.e.wait(60*time.Second), func() (Evidence, bool, error) {
		n, err := a.forced(ctx)
		return Evidence{What: fmt.Sprintf("%d slots were taken by force and are not worked off", n)}, n == 0, err
	}); err != nil {
		return err
	}
	if _, err := until(ctx, a.e.wait(60*time.Second), func() (Evidence, bool, error) {
		left, err := a.resolve(ctx)
		return Evidence{What: fmt.Sprintf("%d transactions are in doubt", left)}, left == 0, err
	}); err != nil {
		return err
	}
	if _, err := until(ctx, a.e.wait(60*time.Second), a.accept(ctx)); err != nil {
		return err
	}
	_, err := a.tool(ctx, 60*time.Second, "failback", "--from", a.heir().Name, "--to", a.name(), "--batch", "256", "--deadline", "30s", "--max-lag", "30s", "--why", "it is rebuilt")
	return err
}

// start starts the region on what is left, which is nothing. Its wallets get accounts when its coordinators have told them that they
// are copies: an account that is there before would hold a try that a client makes itself, and nobody would end it.
func (a *rebuilt) start(ctx context.Context) error {
	r := a.lost.lost()
	if err := errors.Join(r.Broker.Start(ctx), r.Wallet.Start(ctx)); err != nil {
		return err
	}
	for _, c := range r.Coordinators {
		if err := c.Start(ctx); err != nil {
			return err
		}
	}
	if _, err := until(ctx, a.e.wait(30*time.Second), func() (Evidence, bool, error) {
		said, err := os.ReadFile(r.Coordinators[0].Log())
		a.empty = strings.Contains(string(said), emptyStore)
		told, terr := homes(ctx, r.Tap.URL())
		return Evidence{What: fmt.Sprintf("its coordinator says that its store is empty: %v; its wallets know of %d slots where their home is", a.empty, told)}, a.empty && told == slot.Count, errors.Join(err, terr)
	}); err != nil {
		return err
	}
	return a.e.Deployment.OpenAccounts(ctx, r)
}

// homes is of how many slots a participant has been told where their home is.
func homes(ctx context.Context, url string) (int, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url+"/lockstep/state", nil)
	if err != nil {
		return 0, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	var all []struct{ Slot int }
	if resp.StatusCode != http.StatusOK {
		return 0, fmt.Errorf("%s/lockstep/state: %s", url, resp.Status)
	}
	err = json.NewDecoder(resp.Body).Decode(&all)
	return len(all), err
}

// resolve ends what is in doubt: nobody is left who knows, but clients. left is how many there were.
func (a *rebuilt) resolve(ctx context.Context) (left int, err error) {
	admin := a.heir().Admin[0]
	out, err := a.e.Deployment.Tool(ctx, "tx", "list", "--in-doubt", "--admin-addr", admin, "-o", "json")
	var list struct{ Transactions []struct{ Gid string } }
	if err == nil {
		err = json.Unmarshal([]byte(out), &list)
	}
	if err != nil {
		return 0, fmt.Errorf("%w: %s", err, out)
	}
	told := map[string]bool{}
	for _, op := range a.e.Log.Ops() {
		if op.Outcome == history.OK && op.Value == history.Committed {
			told[op.Gid] = true
		}
	}
	for _, t := range list.Transactions {
		as := "--abort"
		if told[t.Gid] {
			as = "--commit"
		}
		if out, err := a.e.Deployment.Tool(ctx, "tx", "resolve", t.Gid, as, "--reason", "the disks are gone; as its client was told", "--admin-addr", admin); err != nil {
			return len(list.Transactions), fmt.Errorf("tx resolve %s %s: %w: %s", t.Gid, as, err, out)
		}
		a.settled[t.Gid] = true
	}
	return len(list.Transactions), nil
}

// accept looks for drift until there is nothing but what the heir's books have of transactions that nobody has any more, and accepts
// that. Any other finding is none of a region that was rebuilt.
func (a *rebuilt) accept(ctx context.Context) func() (Evidence, bool, error) {
	gone := map[string]bool{}
	for _, gid := range a.givenUp {
		gone[gid] = true
	}
	return func() (Evidence, bool, error) {
		out, err := a.e.Deployment.Tool(ctx, "drift", "run", "--context", a.heir().File, "-o", "json", "--since", "5m")
		other, more := "", 0
		for line := range strings.Lines(out) {
			var f struct{ ID, Class, Region, Gid, Status string }
			if !strings.HasPrefix(line, "{") || json.Unmarshal([]byte(line), &f) != nil || f.ID == "" {
				continue // the summary
			}
			if !gone[f.Gid] || f.Class != "D14" || f.Region != a.heir().Name {
				other = line
				continue
			}
			a.named[f.Gid] = true
			if f.Status != "quarantined" {
				continue
			}
			more++
			if out, derr := a.e.Deployment.Tool(ctx, "drift", "decide", f.ID, "--accept", "--reason", "the disks are gone", "--context", a.heir().File); derr != nil {
				return Evidence{What: out}, false, fmt.Errorf("drift decide %s: %w", f.ID, derr)
			}
			a.accepted++
		}
		unnamed, uerr := a.unnamed(ctx)
		return Evidence{What: fmt.Sprintf("%d findings were accepted; %d transactions are posted and nobody names them: %v; drift says: %s %s", a.accepted, len(unnamed), unnamed, other, lastLine(out))},
			other == "" && more == 0 && len(unnamed) == 0, errors.Join(err, uerr)
	}
}

// unnamed are transactions of which the heir's books have something posted, its journal has no record, and no finding speaks.
func (a *rebuilt) unnamed(ctx context.Context) (gids []string, err error) {
	book, err := check.ReadBook(ctx, a.heir().Name, a.heir().DB, a.heir().Barrier)
	if err != nil {
		return nil, err
	}
	decided, _, err := check.ReadJournal(ctx, a.heir().Name, a.heir().Journal)
	if err != nil {
		return nil, err
	}
	told := map[string]bool{}
	for _, d := range decided {
		told[d.Gid] = true
	}
	for _, t := range book.Transfers {
		if t.State == "posted" && slices.Contains(a.givenUp, t.Gid) && !told[t.Gid] && !a.named[t.Gid] {
			gids = append(gids, t.Gid)
		}
	}
	return gids, nil
}

// Recovered wants nothing in doubt, and a coordinator that has found its store empty.
func (a *rebuilt) Recovered(ctx context.Context) (Evidence, error) {
	ev, err := a.lost.Recovered(ctx)
	if err != nil || a.l.off {
		return ev, err
	}
	return Evidence{fmt.Sprintf("%s has started on empty disks and said so: %v; %d transactions were in doubt and were ended as clients had been told; %d findings, of %d transactions that nobody has any more, were accepted; its slots are home",
		a.name(), a.empty, len(a.settled), a.accepted, len(a.named)), map[string]int64{"settled": int64(len(a.settled)), "accepted": int64(a.accepted), "in_doubt": ev.Counts["in_doubt"]}}, nil
}
