package replica

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"testing"
	"time"

	"github.com/lockstep-tx/lockstep/region/journal"
	"github.com/lockstep-tx/lockstep/region/reconcile"
)

// forever is a topic that keeps what is as old as these tests' payments.
type forever struct{ *Service }

func (forever) Keeps() time.Duration { return 100 * 365 * 24 * time.Hour }

// TestWhatIsNotedAsPublishedAndIsNotInTheTopic (D22): the note is ahead of the topic. The other region has the events all the same,
// also the last one, which nothing follows, from the origin's journal; the reconciler finds that the topic lacks them, and they
// are published again, once.
func TestWhatIsNotedAsPublishedAndIsNotInTheTopic(t *testing.T) {
	onEach(t, func(t *testing.T, d *deployment) {
		east, west := d.region("east"), d.region("west")
		rows := east.pay("lost", 30)
		heads := map[int]journal.Mark{}
		for _, r := range rows {
			heads[r.Slot] = journal.Mark{Origin: east.index, Slot: r.Slot, Head: r.Finish}
		}
		var marks []journal.Mark
		for _, m := range heads {
			marks = append(marks, m)
		}
		if err := east.journal.SetPublished(t.Context(), marks); err != nil {
			t.Fatal(err)
		}
		d.start()
		sent := east.pay("sent", 20)
		west.has(rows)
		west.has(sent)
		mux := http.NewServeMux()
		(&reconcile.Served{Journal: east.journal, Index: east.index, Topic: forever{east.service}}).Mount(mux)
		east.mux = mux
		ask := func(method, path string, body []byte, into any) {
			t.Helper()
			req, err := http.NewRequestWithContext(t.Context(), method, east.server.URL+path, bytes.NewReader(body))
			if err != nil {
				t.Fatal(err)
			}
			resp, err := http.DefaultClient.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			raw, err := io.ReadAll(resp.Body)
			if err != nil || resp.StatusCode != http.StatusOK {
				t.Fatalf("%s: %s %s %v", path, resp.Status, raw, err)
			}
			if err := json.Unmarshal(raw, into); err != nil {
				t.Fatal(err)
			}
		}
		outbox := func() (a reconcile.OutboxAnswer, unsent int) {
			t.Helper()
			ask(http.MethodGet, fmt.Sprintf("/v1/drift/outbox?from=%d&to=%d", begin-1000, begin+1_000_000), nil, &a)
			for _, u := range a.Unsent {
				unsent += len(u.Seqs)
			}
			return a, unsent
		}
		var a reconcile.OutboxAnswer
		eventually(t, "what was sent is noted", func() string {
			var unsent int
			if a, unsent = outbox(); a.Checked != 100 || unsent != 60 {
				return fmt.Sprintf("%d events looked for, %d not there, of 100 and 60", a.Checked, unsent)
			}
			return ""
		})
		published := func(want int) {
			t.Helper()
			sum := 0
			for _, u := range a.Unsent {
				body, err := json.Marshal(u)
				if err != nil {
					t.Fatal(err)
				}
				var n struct{ Published int }
				ask(http.MethodPost, "/v1/drift/publish", body, &n)
				sum += n.Published
			}
			if sum != want {
				t.Errorf("%d events were published, not %d", sum, want)
			}
		}
		published(60)
		if _, unsent := outbox(); unsent != 0 {
			t.Errorf("%d events are not there after they were published again", unsent)
		}
		published(0)
		// What is not asked for stands between.
		ask(http.MethodGet, fmt.Sprintf("/v1/drift/outbox?from=%d&to=%d", rows[20].FinishedAt, begin+1_000_000), nil, &a)
		if a.Checked == 0 || a.Checked >= 100 || len(a.Unsent) != 0 {
			t.Errorf("of a part of the time: %+v", a)
		}
	})
}
