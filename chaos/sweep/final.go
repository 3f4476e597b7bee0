package sweep

import (
	"context"
	"fmt"
	"maps"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/lockstep-tx/lockstep/chaos/check"
	"github.com/lockstep-tx/lockstep/chaos/history"
)

// restLimit is how long is waited for everything to come to rest.
const restLimit = 30 * time.Second

// words are ids as they stand in a text.
var words = regexp.MustCompile(`[^\s,:;"()]+`)

// rest waits until both regions have the same and nothing is open but what is a person's.
func (w *world) rest(ctx context.Context) (*reading, error) {
	for end := time.Now().Add(w.scaled(restLimit)); ; {
		r, err := w.read(ctx)
		if err != nil {
			return r, err
		}
		open := w.level(r)
		if open == "" {
			return r, nil
		}
		if time.Now().After(end) { // it is for the checkers
			w.o.Say("not at rest: %s", open)
			return r, nil
		}
		if !sleep(ctx, 300*time.Millisecond) {
			return nil, ctx.Err()
		}
	}
}

// level says what is still open or on its way; "": nothing.
func (w *world) level(r *reading) string {
	for gid, rows := range r.rows {
		if (rows[0] == nil || rows[1] == nil || !rows[0].Finished || !rows[1].Finished) && !w.ours(0, gid) && !w.ours(1, gid) {
			return gid + " is not finished in both journals"
		}
	}
	for i := range r.books {
		for _, t := range r.books[i].Transfers {
			if t.State == "pending" && !w.ours(i, t.Gid) {
				return fmt.Sprintf("%s of %s is held in %s", t.Branch, t.Gid, r.books[i].Region)
			}
		}
		for gid, rows := range r.rows {
			if rows[0] == nil || rows[0].Phase != committed || w.ours(i, gid) {
				continue
			}
			if posted := r.by[i].posted(gid); posted < branches {
				return fmt.Sprintf("%s has %d branches posted in %s", gid, posted, r.books[i].Region)
			}
		}
	}
	return ""
}

// final counts at rest: the product has nothing more to find than what is a person's, and the suite's own checkers see nothing
// more than that.
func (w *world) final(ctx context.Context) error {
	r, err := w.rest(ctx)
	if err != nil {
		return err
	}
	w.remember()
	if err := w.judge(ctx, r); err != nil {
		return err
	}
	if err := w.look(ctx); err != nil {
		return err
	}
	// What stays a person's, and what was never found or never repaired, is seen by the checkers: that is counted already.
	names := map[string]bool{}
	standing := false
	for _, s := range w.seeds {
		if s.Decided > 0 { // the rows of its tries are lost for good
			for gid := range s.gids {
				names[gid] = true
			}
		}
		if s.Clean.IsZero() {
			standing = true
			for _, name := range append(s.accounts(), s.Gid, s.OtherGid, s.Planted.Gid) {
				names[name] = true
			}
			for gid := range s.gids {
				names[gid] = true
			}
		}
	}
	delete(names, "")
	e := &check.Evidence{Opened: w.d.Opened, Ops: w.log.Ops(), Books: r.books[:], Events: r.events}
	for _, gid := range slices.Sorted(maps.Keys(r.rows)) {
		for _, d := range r.rows[gid] {
			if d != nil {
				e.Decided = append(e.Decided, *d)
			}
		}
	}
	for _, c := range check.Whole(e) {
		for _, text := range c.Violations {
			if !w.explained(text, names, standing) {
				w.spoiled[c.ID+": "+text] = true
			}
		}
	}
	return history.Save(filepath.Join(w.dir, "seeds.jsonl"), w.seeds)
}

// explained says whether a violation is of something that stands for a person: it names it, or it is of a whole book's sums.
func (w *world) explained(text string, names map[string]bool, standing bool) bool {
	if standing && (strings.Contains(text, "at the end: wallets have") || strings.Contains(text, "house:passage:")) {
		return true
	}
	return slices.ContainsFunc(words.FindAllString(text, -1), func(word string) bool { return names[word] })
}
