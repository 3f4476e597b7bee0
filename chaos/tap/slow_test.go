package tap

import (
	"context"
	"fmt"
	"net/http"
	"testing"
	"time"
)

// patience is long enough for a busy machine.
const patience = 20 * time.Second

// TestAnAnswerCanBeLate: what was asked is done once, whether or not its caller has waited; both are told.
func TestAnAnswerCanBeLate(t *testing.T) {
	k, p := newTap(t)
	ask := func(gid string, within time.Duration) error {
		ctx, cancel := context.WithTimeout(t.Context(), within)
		defer cancel()
		req, err := http.NewRequestWithContext(ctx, http.MethodPost, k.URL()+"/wallet/pay/try?gid="+gid+"&branch_id=pay&op=try", nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := http.DefaultClient.Do(req)
		if err == nil {
			resp.Body.Close()
		}
		return err
	}
	k.Set(Rules{SlowShare: 1, SlowMax: time.Millisecond})
	if err := ask("soon", patience); err != nil {
		t.Fatal(err)
	}
	if late := k.Slowed(); len(late) != 1 || late[0].Left {
		t.Errorf("%+v", late)
	}
	k.Set(Rules{SlowShare: 1, SlowMax: time.Hour})
	if err := ask("late", time.Second); err == nil {
		t.Error("it was answered before its caller gave up")
	}
	for end := time.Now().Add(patience); len(k.Slowed()) < 2 && time.Now().Before(end); time.Sleep(time.Millisecond) {
	}
	if late := k.Slowed(); len(late) != 2 || !late[1].Left {
		t.Errorf("%+v", late)
	}
	k.Set(Rules{})
	if err := ask("after", patience); err != nil || len(k.Slowed()) != 2 {
		t.Errorf("after the healing: %v, %d answers were late", err, len(k.Slowed()))
	}
	for _, gid := range []string{"soon", "late", "after"} {
		if n := p.count(fmt.Sprintf("%s/try", gid)); n != 1 {
			t.Errorf("%s came %d times", gid, n)
		}
	}
}
