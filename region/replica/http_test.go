package replica

import (
	"context"
	"io"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/lockstep-tx/lockstep/coordinator/record"
	"github.com/lockstep-tx/lockstep/region/eventlog"
)

func TestAJournalAnswersForItsChains(t *testing.T) {
	d := &deployment{t: t, brokers: func(testing.TB) []string { return []string{"127.0.0.1:1"} }, url: databaseOf["sqlite"], suffix: "http"}
	east := d.region("east")
	d.region("west")
	east.service = east.make(east.journal)
	east.service.Mount(east.mux)
	rows := east.tagged("a", 0, 300)
	east.append(rows...)
	n := rows[0].Slot
	get := func(query string) (int, []byte) {
		t.Helper()
		res, err := http.Get(east.server.URL + query)
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		b, err := io.ReadAll(res.Body)
		if err != nil {
			t.Fatal(err)
		}
		return res.StatusCode, b
	}
	at := "/v1/region/events?origin=1&slot=" + strconv.Itoa(n)
	code, b := get(at + "&after=7&limit=1000000")
	events, err := decodeEvents(b)
	if code != 200 || err != nil || len(events) != fillEvents || events[0].Head.Seq != 8 || events[0].Head != eventsOf(rows)[7].Head {
		t.Fatal(code, err, len(events))
	}
	if code, b := get(at + "&after=600&limit=5"); code != 200 || len(b) != 0 {
		t.Fatal(code, len(b))
	}
	for _, bad := range []string{"", "&after=x&limit=5", "&after=1", "&after=1&limit=0", "&after=1&limit=-1", "&after=99999999999999999999&limit=1"} {
		if code, _ := get(at + bad); code != 400 {
			t.Errorf("%q: %d", bad, code)
		}
	}
	if code, _ := get("/v1/region/events?origin=1&slot=1024&after=0&limit=1"); code != 400 {
		t.Error(code)
	}
	if _, err := east.journal.Trim(context.Background(), time.Now().UnixMilli(), 0, 1000); err != nil {
		t.Fatal(err)
	}
	if code, b := get(at + "&after=0&limit=5"); code != 410 || !strings.Contains(string(b), "trimmed") {
		t.Fatalf("%d %s", code, b)
	}
	code, b = get("/v1/region/heads")
	if a, err := decodeAnswer(b); code != 200 || err != nil || a.live.Unpublished != 0 || len(a.heads) != 0 {
		t.Fatalf("%d %+v %v", code, a, err)
	}
}

func FuzzAnswer(f *testing.F) {
	a := &answer{live: eventlog.Live{Open: 2}, heads: map[int][]eventlog.Head{3: {{Slot: 9, Head: record.Head{Seq: 4}}}}}
	f.Add(a.encode())
	f.Fuzz(func(t *testing.T, b []byte) {
		if a, err := decodeAnswer(b); err == nil && len(a.encode()) > len(b) {
			t.Fatalf("%x", b)
		}
		_, _ = decodeEvents(b)
	})
}
