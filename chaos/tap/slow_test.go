package tap

import (
	"fmt"
	"testing"
	"time"
)

// TestAnAnswerCanBeLate: what was asked is done once, whether or not its caller has waited; both are told.
func TestAnAnswerCanBeLate(t *testing.T) {
	k, p := newTap(t)
	k.Set(Rules{SlowShare: 1, SlowMax: time.Millisecond})
	if _, err := call(t, k, "soon", "try", 1); err != nil {
		t.Fatal(err)
	}
	if late := k.Slowed(); len(late) != 1 || late[0].Left {
		t.Errorf("%+v", late)
	}
	k.Set(Rules{SlowShare: 1, SlowMax: time.Hour})
	if _, err := call(t, k, "late", "try", 1); err == nil {
		t.Error("it was answered before its caller gave up")
	}
	for end := time.Now().Add(10 * time.Second); len(k.Slowed()) < 2 && time.Now().Before(end); time.Sleep(time.Millisecond) {
	}
	if late := k.Slowed(); len(late) != 2 || !late[1].Left {
		t.Errorf("%+v", late)
	}
	k.Set(Rules{})
	if _, err := call(t, k, "after", "try", 1); err != nil || len(k.Slowed()) != 2 {
		t.Errorf("after the healing: %v, %d answers were late", err, len(k.Slowed()))
	}
	for _, gid := range []string{"soon", "late", "after"} {
		if n := p.count(fmt.Sprintf("%s/try", gid)); n != 1 {
			t.Errorf("%s came %d times", gid, n)
		}
	}
}
