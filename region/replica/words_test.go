package replica

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/lockstep-tx/lockstep/region/eventlog"
)

// TestARegionsWordIsTheSumOfItsCoordinators: each beat and each answer is of one coordinator.
func TestARegionsWordIsTheSumOfItsCoordinators(t *testing.T) {
	start := time.Now()
	say := func(member string, open, unpublished int) eventlog.Live {
		return eventlog.Live{Member: member, Open: open, Unpublished: unpublished}
	}
	for _, c := range []struct {
		name  string
		words []eventlog.Live
		at    []time.Duration
		want  eventlog.Live
	}{
		{"nobody", nil, nil, eventlog.Live{}},
		{"two", []eventlog.Live{say("a", 5, 1), say("b", 7, 2)}, []time.Duration{0, 0}, say("", 12, 3)},
		{"the later word of one counts", []eventlog.Live{say("a", 5, 1), say("b", 7, 2), say("a", 1, 0)}, []time.Duration{0, 0, time.Second}, say("", 8, 2)},
		{"of before ids: the last", []eventlog.Live{say("", 5, 1), say("", 7, 2)}, []time.Duration{0, time.Second}, say("", 7, 2)},
		{"one is gone while the other speaks", []eventlog.Live{say("a", 5, 1), say("b", 7, 2), say("b", 7, 2)}, []time.Duration{0, 0, wordKept + time.Second}, say("", 7, 2)},
		{"one is late", []eventlog.Live{say("a", 5, 1), say("b", 7, 2)}, []time.Duration{0, wordKept}, say("", 12, 3)},
	} {
		var w words
		for i, one := range c.words {
			w.learn(one, start.Add(c.at[i]))
		}
		if got := w.sum(); got != c.want {
			t.Errorf("%s: %+v, want %+v", c.name, got, c.want)
		}
	}
}

// TestTheExposureIsTheSumOfTheCoordinators: one coordinator of east publishes everything and is heard by its heartbeats, the other is
// heard only when it is asked itself.
func TestTheExposureIsTheSumOfTheCoordinators(t *testing.T) {
	d := &deployment{t: t, brokers: embedded, url: databaseOf["sqlite"], suffix: "words"}
	east, west := d.region("east"), d.region("west")
	other := http.NewServeMux()
	server := httptest.NewServer(other)
	t.Cleanup(server.Close)
	east.shape = func(c *Config) {
		c.Live = func() eventlog.Live { return eventlog.Live{Member: "east-1", Open: 5, Unpublished: 1} }
	}
	east.start()
	east.shape = func(c *Config) {
		c.Live = func() eventlog.Live { return eventlog.Live{Member: "east-2", Open: 7, Unpublished: 2} }
		c.Mine = func(int) bool { return false }
	}
	second := east.make(east.open())
	second.Mount(other)
	east.run(second)
	west.shape = func(c *Config) { c.Peers[0].AdminURLs = append(c.Peers[0].AdminURLs, server.URL) }
	west.start()
	eventually(t, "west knows what both coordinators of east have open", func() string {
		var x Exposure
		if code, text := west.call("GET", "/v1/region/exposure?origin="+east.name, nil, &x); code != 200 || x.Open != 12 || x.Unpublished != 3 {
			return fmt.Sprint(code, text)
		}
		return ""
	})
	east.stop()
	east.server.Close()
	server.Close()
	until := time.Now().Add(2 * time.Second)
	for time.Now().Before(until) { // nobody speaks any more: it is the bound at the last word
		if x, err := west.service.Exposure(east.name); err != nil || x.Open != 12 || x.Unpublished != 3 {
			t.Fatal(x, err)
		}
		rest(context.Background(), 100*time.Millisecond)
	}
}

// TestWordsWithoutAMemberAreRead: coordinators of different versions hear each other.
func TestWordsWithoutAMemberAreRead(t *testing.T) {
	beat := &eventlog.Beat{At: 5, Live: eventlog.Live{Member: "east-1", Open: 3, Unpublished: 2}}
	b := beat.Encode()
	if got, err := eventlog.DecodeBeat(b); err != nil || got.Live != beat.Live {
		t.Error(got, err)
	}
	old := b[:len(b)-1-len("east-1")]
	if got, err := eventlog.DecodeBeat(old); err != nil || got.Live != (eventlog.Live{Open: 3, Unpublished: 2}) {
		t.Error(got, err)
	}
	if _, err := eventlog.DecodeBeat(b[:len(b)-1]); err == nil {
		t.Error("half a member was read")
	}
	a := &answer{live: beat.Live}
	b = a.encode()
	if got, err := decodeAnswer(b); err != nil || got.live != beat.Live {
		t.Error(got, err)
	}
	if got, err := decodeAnswer(b[:len(b)-1-len("east-1")]); err != nil || got.live != (eventlog.Live{Open: 3, Unpublished: 2}) {
		t.Error(got, err)
	}
}
