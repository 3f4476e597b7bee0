package main

import (
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/lockstep-tx/lockstep/region/slot"
	"github.com/lockstep-tx/lockstep/region/topology"
)

// A region's exposure is that of all its coordinators, each of which knows its own partitions alone.
func TestARegionIsWhatAllItsCoordinatorsSay(t *testing.T) {
	serve := func(answer string) string {
		s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path != "/v1/region/status" || answer == "" {
				http.Error(w, "it is starting", http.StatusServiceUnavailable)
				return
			}
			_, _ = io.WriteString(w, answer)
		}))
		t.Cleanup(s.Close)
		return s.URL
	}
	one := serve(`{"region":"east","open":3,"unpublished":2,"unacknowledged":{"west":5,"south":1},"held":10,"arbiter_ms":7}`)
	two := serve(`{"region":"east","open":4,"unpublished":1,"unacknowledged":{"west":6},"held":20,"arbiter_ms":8,"unpublishable":{"9":"broken","4":"broken too"}}`)
	a := &asker{client: http.DefaultClient, o: &opened{file: &topology.File{Regions: map[string]topology.Region{
		"east": {Admin: []string{one, two}}, "west": {Admin: []string{serve(""), two}}, "south": {Admin: []string{serve("")}}, "north": {},
	}}}}
	owners := &slot.Map{}
	owners[1] = slot.Owner{Region: "east", Status: slot.Active}
	v := a.view(t.Context(), "east", owners)
	if v.State != "up" || v.Error != "" || v.Slots[slot.Active] != 1 || v.Status.Open != 7 || v.Status.Unpublished != 3 || v.Status.Held != 30 ||
		v.Status.Unacknowledged["west"] != 11 || v.Status.Unacknowledged["south"] != 1 || exposed(v.Status) != 14 || unpublishable(v.Status) != 4 || v.Status.ArbiterMillis != 7 {
		t.Errorf("%+v %+v", v, v.Status)
	}
	if v := a.view(t.Context(), "west", owners); v.State != "up 1/2" || !strings.Contains(v.Error, "it is starting") || v.Status == nil || v.Status.Open != 4 {
		t.Errorf("one of two: %+v %+v", v, v.Status)
	}
	for _, region := range []string{"south", "north"} {
		if v := a.view(t.Context(), region, owners); v.State != "unreachable" || v.Error == "" || v.Status != nil {
			t.Errorf("%s: %+v", region, v)
		}
	}
}
