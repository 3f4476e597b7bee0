package replica

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"reflect"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/lockstep-tx/lockstep/coordinator/engine"
	"github.com/lockstep-tx/lockstep/coordinator/record"
	"github.com/lockstep-tx/lockstep/region/eventlog"
	"github.com/lockstep-tx/lockstep/region/slot"
)

// numbered gives events new numbers after a head, in an epoch, and the rows of them.
func numbered(head record.Head, epoch uint64, rows []engine.Row) ([]engine.Row, []record.Event) {
	rows = slices.Clone(rows)
	for i := range rows {
		r := &rows[i]
		r.DecisionEpoch, r.FinishEpoch = epoch, epoch
		r.Decision = head.Next(r.Slot, epoch, record.KindDecision, r.Gid, r.Closed)
		r.Finish = r.Decision.Next(r.Slot, epoch, record.KindFinish, r.Gid, r.Progress)
		head = r.Finish
	}
	return rows, eventsOf(rows)
}

func forcedSeal(e *record.Event) slot.Seal {
	s := *slot.SealOf(slot.Epoch(e.Epoch), e.Head.Seq, e.Head.Chain[:])
	s.Forced = true
	return s
}

// owned is the ownership as a test has it; nil before.
type owned struct{ atomic.Pointer[slot.Map] }

func (o *owned) taken(n int, by *area, seal slot.Seal) {
	m := &slot.Map{}
	m[n] = slot.Owner{Region: by.name, Epoch: seal.Epoch.Next(by.index), Status: slot.Taken, Lost: seal.Epoch, Seal: &seal}
	o.Store(m)
}

func (a *area) call(method, path string, in, out any) (int, string) {
	a.d.t.Helper()
	var body io.Reader
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			a.d.t.Fatal(err)
		}
		body = bytes.NewReader(b)
	}
	req, err := http.NewRequest(method, a.server.URL+path, body)
	if err != nil {
		a.d.t.Fatal(err)
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		a.d.t.Fatal(err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		a.d.t.Fatal(err)
	}
	if res.StatusCode == http.StatusOK && out != nil {
		if err := json.Unmarshal(b, out); err != nil {
			a.d.t.Fatal(err)
		}
	}
	return res.StatusCode, string(b)
}

// chainIs waits until a region's journal has exactly these events of a chain.
func (a *area) chainIs(origin, n int, want []record.Event) {
	a.d.t.Helper()
	defer func() {
		if a.d.t.Failed() {
			a.d.t.Logf("log of %s:\n%.8000s", a.name, a.logs)
		}
	}()
	eventually(a.d.t, "the chain in "+a.name, func() string {
		got, err := a.journal.EventsAfter(context.Background(), origin, n, 0, len(want)+50)
		if err != nil || len(got) != len(want) {
			return fmt.Sprintf("%d events of %d, %v", len(got), len(want), err)
		}
		for i := range got {
			if got[i].Head != want[i].Head {
				return fmt.Sprintf("event %d is of epoch %d, not %d", i+1, got[i].Epoch, want[i].Epoch)
			}
		}
		return ""
	})
}

// diverged waits until a region has exactly these events of a chain as divergences.
func (a *area) diverged(origin, n int, want []record.Event) {
	a.d.t.Helper()
	eventually(a.d.t, "the divergences of "+a.name, func() string {
		list, err := a.journal.Diverged(context.Background(), origin, n)
		if err != nil || len(list) != len(want) {
			return fmt.Sprintf("%d of %d, %v", len(list), len(want), err)
		}
		for i, d := range list {
			if d.Seq != want[i].Head.Seq || d.Gid != want[i].Gid || d.Epoch != want[i].Epoch {
				return fmt.Sprintf("%d is %+v", i, d)
			}
		}
		return ""
	})
}

// TestAFrozenSlotWaitsForItsSealAndWhatIsLateDiverges: everything comes through one Kafka topic, the late events of the old
// epoch before those of the next one, between them and after them.
func TestAFrozenSlotWaitsForItsSealAndWhatIsLateDiverges(t *testing.T) {
	onEach(t, func(t *testing.T, d *deployment) {
		east, west := faulty(d)
		rows := east.tagged("a", 0, 8)
		old := eventsOf(rows)
		n := rows[0].Slot
		seal := forcedSeal(&old[5])
		_, again := numbered(old[5].Head, uint64(seal.Epoch.Next(east.index)), east.tagged("a", 100, 4))
		east.events(old[:4]...)
		west.chainIs(east.index, n, old[:4])
		var answer FreezeAnswer
		ask := FreezeRequest{Origin: east.name, Slots: []FreezeSlot{{n, seal.Epoch}}}
		if code, text := west.call("POST", "/v1/region/freeze", ask, &answer); code != 200 || len(answer.Marks) != 1 || answer.Marks[0].Seq != 4 ||
			answer.Marks[0].Chain != slot.SealOf(1, 4, old[3].Head.Chain[:]).Chain || answer.Marks[0].Epoch != seal.Epoch {
			t.Fatal(code, text)
		}
		east.events(old[4:9]...)
		eventually(t, "the slot waits", func() string {
			if st := west.originOf(east.area); st.Waiting != 1 || len(st.Stopped) != 0 {
				return fmt.Sprintf("%+v", st)
			}
			return ""
		})
		eventually(t, "what is not applied is told", func() string {
			var x Exposure
			code, text := west.call("GET", "/v1/region/exposure?origin="+east.name, nil, &x)
			if code != 200 || x.Unapplied != 5 || x.HeardMillis < 0 || len(x.Slots) != 1 || x.Slots[0] != (ExposedSlot{Slot: n, Applied: 4, Head: 9}) {
				return fmt.Sprint(code, text)
			}
			return ""
		})
		time.Sleep(200 * time.Millisecond)
		west.chainIs(east.index, n, old[:4])
		d.seals.add(n, seal)
		west.chainIs(east.index, n, old[:6])
		west.diverged(east.index, n, old[6:9])
		eventually(t, "what diverged is counted", func() string { // after it is written
			if n := counted(t, west, "lockstep_replication_diverged_total"); n < 3 {
				return fmt.Sprint(n)
			}
			return ""
		})
		had := counted(t, west, "lockstep_replication_diverged_total")
		time.Sleep(300 * time.Millisecond)
		if now := counted(t, west, "lockstep_replication_diverged_total"); now != had {
			t.Fatalf("what diverged is applied again and again: %v, %v", had, now)
		}
		// reordered with the next epoch: its numbers first, then what is late with them
		east.events(again[1], again[2], old[7], old[8], again[0], old[9], old[10])
		west.chainIs(east.index, n, slices.Concat(old[:6], again[:3]))
		east.events(again[3:]...)
		east.events(old...)
		all := slices.Concat(old[:6], again)
		west.chainIs(east.index, n, all)
		west.diverged(east.index, n, old[6:])
		west.quietly()
		if counted(t, west, "lockstep_replication_diverged_total") < 10 || strings.Count(west.logs.String(), "come after the forced seal") != 1 {
			t.Fatal("it was not told once that events diverge")
		}
	})
}

// TestWhatIsLateWithTheNextEpochsNumbersIsKeptApart: without a freeze, and the seal is there only when both wait in a lane.
func TestWhatIsLateWithTheNextEpochsNumbersIsKeptApart(t *testing.T) {
	onEach(t, func(t *testing.T, d *deployment) {
		east, west := faulty(d)
		rows := east.tagged("a", 0, 6)
		old := eventsOf(rows)
		n := rows[0].Slot
		seal := forcedSeal(&old[5])
		_, again := numbered(old[5].Head, uint64(seal.Epoch.Next(east.index)), east.tagged("a", 100, 3))
		d.seals.add(n, seal)
		// nothing can be applied before the first event: everything waits by its number
		east.events(slices.Concat(old[6:9], again, old[9:], old[1:6])...)
		time.Sleep(300 * time.Millisecond)
		east.events(old[0])
		west.chainIs(east.index, n, slices.Concat(old[:6], again))
		west.diverged(east.index, n, old[6:])
		west.quietly()
	})
}

// dead is an address that takes connections and says nothing.
func dead(t testing.TB) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l.Addr().String()
}

// TestTheTargetFetchesUpToTheSealFromAThirdRegion: the origin and its Kafka take connections and say nothing.
func TestTheTargetFetchesUpToTheSealFromAThirdRegion(t *testing.T) {
	onEach(t, func(t *testing.T, d *deployment) {
		east, west, north := d.puppet("east"), d.region("west"), d.region("north")
		east.ensure()
		var owners owned
		west.shape = func(c *Config) {
			c.Owners = owners.Load
			c.Peers[0].Brokers, c.Peers[0].AdminURLs = []string{dead(t)}, []string{"http://" + dead(t)}
		}
		d.start()
		rows := east.tagged("a", 0, 700)
		old := eventsOf(rows)
		n := rows[0].Slot
		east.events(old[:1300]...)
		north.chainIs(east.index, n, old[:1300])
		seal := forcedSeal(&old[1200]) // north did not answer the freeze, and is past it
		for _, a := range []*area{west} {
			if _, err := a.service.Freeze(context.Background(), FreezeRequest{Origin: east.name, Slots: []FreezeSlot{{n, seal.Epoch}}}); err != nil {
				t.Fatal(err)
			}
		}
		d.seals.add(n, seal)
		owners.taken(n, west, seal)
		start := time.Now()
		west.chainIs(east.index, n, old[:1201])
		if took := time.Since(start); took > 4900*time.Millisecond {
			t.Errorf("it took %v: the dead region was waited for", took)
		}
		west.diverged(east.index, n, nil)
		eventually(t, "west has reached the seal", func() string {
			if ok, err := west.journal.Reached(context.Background(), n, &seal); err != nil || !ok {
				return fmt.Sprint(ok, err)
			}
			if x, err := west.service.Exposure(east.name); err != nil || x.Unapplied != 0 || len(x.Slots) != 0 {
				return fmt.Sprint(x, err)
			}
			return ""
		})
		// what the target does as the owner makes north cut
		west.maker.Epoch = uint64(seal.Epoch.Next(west.index))
		mine := west.tagged("a", 2000, 3)
		west.append(mine...)
		north.has(mine)
		north.chainIs(east.index, n, old[:1201])
		north.diverged(east.index, n, old[1201:1300])
	})
}

// sealsBack ends the area's epoch of a slot by plan, after rows of it.
func (a *area) sealsBack(n int, after []engine.Row) (slot.Seal, record.Event) {
	a.d.t.Helper()
	sealed := record.Event{Slot: n, Kind: record.KindSeal, Epoch: a.maker.Epoch}
	sealed.Head = after[len(after)-1].Finish.Next(n, sealed.Epoch, sealed.Kind, "", nil)
	if err := a.journal.AppendEvents(context.Background(), []record.Event{sealed}); err != nil {
		a.d.t.Fatal(err)
	}
	seal := *slot.SealOf(slot.Epoch(sealed.Epoch), sealed.Head.Seq, sealed.Head.Chain[:])
	a.d.seals.add(n, seal)
	return seal, sealed
}

// TestTheLostRegionCutsAndGoesOnAtItsNextEpoch: it comes back with events that never left, publishes one of them, cuts, owns
// the slot again, and in the end all journals have the same chains.
func TestTheLostRegionCutsAndGoesOnAtItsNextEpoch(t *testing.T) {
	onEach(t, func(t *testing.T, d *deployment) {
		east, west, north := d.region("east"), d.region("west"), d.region("north")
		var owners owned
		for _, a := range d.regions {
			a.shape = func(c *Config) { c.Owners = owners.Load }
		}
		told := make(chan uint64, 10)
		east.shape = func(c *Config) { c.Owners = owners.Load; c.Cut = func(_, _ int, seq uint64) { told <- seq } }
		d.start()
		rows := east.tagged("a", 0, 10)
		old := eventsOf(rows)
		n := rows[0].Slot
		east.append(rows[:4]...)
		west.has(rows[:4])
		north.has(rows[:4])
		seal := forcedSeal(&old[7])
		ask := FreezeRequest{Origin: east.name, Slots: []FreezeSlot{{n, seal.Epoch}}}
		for _, a := range []*area{west, north} {
			if code, text := a.call("POST", "/v1/region/freeze", ask, nil); code != 200 {
				t.Fatal(code, text)
			}
		}
		d.seals.add(n, seal)
		owners.taken(n, west, seal)
		east.append(rows[4:]...) // it does not know yet, and goes on
		west.diverged(east.index, n, old[8:])
		north.diverged(east.index, n, old[8:])
		west.maker.Epoch = uint64(seal.Epoch.Next(west.index))
		mine := west.tagged("a", 100, 3)
		west.append(mine...)
		north.has(mine)
		eventually(t, "east waits for its own cut", func() string {
			if st := east.originOf(west); st.Waiting != 1 || len(st.Stopped) != 0 {
				return fmt.Sprintf("%+v", st)
			}
			return ""
		})
		for range 2 {
			got, err := east.service.Returned(context.Background(), n, seal)
			if err != nil || len(got) != 12 || got[0].Head != old[8].Head {
				t.Fatal(len(got), err)
			}
			if seq := <-told; seq != 8 {
				t.Fatal(seq)
			}
		}
		for _, h := range east.service.pub.Heads() {
			if h.Slot == n && h.Head != old[7].Head {
				t.Fatalf("the publisher is at event %d", h.Head.Seq)
			}
		}
		if _, err := east.service.Returned(context.Background(), n, slot.Seal{Epoch: slot.Initial(west.index), Forced: true}); err == nil {
			t.Fatal("another region's seal was taken")
		}
		east.has(mine)
		// west gives it back by plan
		back, sealed := west.sealsBack(n, mine)
		m := &slot.Map{}
		m[n] = slot.Owner{Region: east.name, Epoch: back.Epoch.Next(east.index), Status: slot.Active, Seal: &back}
		owners.Store(m)
		next, events := numbered(old[7].Head, uint64(back.Epoch.Next(east.index)), east.tagged("a", 200, 3)) // fewer than it had: what is remembered of the old numbers would show
		for _, r := range next {
			east.append(r)
		}
		for _, a := range d.regions {
			a.chainIs(east.index, n, slices.Concat(old[:8], events))
			a.chainIs(west.index, n, append(eventsOf(mine), sealed))
			a.diverged(east.index, n, old[8:])
		}
		for _, a := range d.regions {
			a.quietly()
		}
		eventually(t, "what the peers have is known", func() string {
			if st := east.service.Status(); st.Unpublished != 0 || st.Unacknowledged[west.name] != 0 || len(st.Unpublishable) != 0 {
				return fmt.Sprintf("%+v", st)
			}
			acks, err := east.journal.Acknowledged(context.Background(), east.index)
			if err != nil || acks[west.index][n] != uint64(8+len(events)) {
				return fmt.Sprint(acks[west.index][n], err)
			}
			return ""
		})
	})
}

func TestFreezeExposureAndDivergenceRefuseWhatTheyDoNotKnow(t *testing.T) {
	d := &deployment{t: t, brokers: func(testing.TB) []string { return []string{"127.0.0.1:1"} }, url: databaseOf["sqlite"], suffix: "wire"}
	east, west := d.region("east"), d.region("west")
	west.service = west.make(west.journal)
	west.service.Mount(west.mux)
	one := []FreezeSlot{{1, 101}}
	many := make([]FreezeSlot, slot.Count+1)
	for i := range many {
		many[i] = FreezeSlot{i % slot.Count, 101}
	}
	for _, c := range []struct {
		in   any
		word string
	}{
		{FreezeRequest{Origin: "nobody", Slots: one}, "origin"}, {FreezeRequest{Origin: west.name, Slots: one}, "origin"}, {FreezeRequest{Origin: east.name}, "slots"},
		{FreezeRequest{Origin: east.name, Slots: []FreezeSlot{{slot.Count, 101}}}, "slots"}, {FreezeRequest{Origin: east.name, Slots: []FreezeSlot{{1, 102}}}, "slots"},
		{FreezeRequest{Origin: east.name, Slots: many}, "slots"}, {map[string]string{"origine": "x"}, "origine"}, {strings.Repeat("x", requestBytes), "body"},
	} {
		if code, text := west.call("POST", "/v1/region/freeze", c.in, nil); code != 400 || !strings.Contains(text, c.word) {
			t.Errorf("%.80v: %d %s", c.in, code, text)
		}
	}
	if code, text := west.call("GET", "/v1/region/exposure?origin=nobody", nil, nil); code != 400 || !strings.Contains(text, "origin") {
		t.Error(code, text)
	}
	var x Exposure
	if code, text := west.call("GET", "/v1/region/exposure?origin="+east.name, nil, &x); code != 200 || x.HeardMillis != -1 || x.Slots == nil {
		t.Error(code, text)
	}
	for _, before := range []string{"0", "-1", "x"} {
		if code, text := west.call("GET", "/v1/region/divergence?before="+before, nil, nil); code != 400 || !strings.Contains(text, "before:") {
			t.Error(before, code, text)
		}
	}
	for _, limit := range []string{"0", "1001", "x"} {
		if code, _ := west.call("GET", "/v1/region/divergence?limit="+limit, nil, nil); code != 400 {
			t.Error(limit, code)
		}
	}
	// an own cut gives some
	rows := west.tagged("a", 0, 2)
	west.append(rows...)
	seal := slot.Seal{Epoch: slot.Initial(west.index), Forced: true}
	if _, err := west.service.Returned(context.Background(), rows[0].Slot, seal); err != nil {
		t.Fatal(err)
	}
	var list []DivergenceInfo
	if code, text := west.call("GET", "/v1/region/divergence", nil, &list); code != 200 || len(list) != 4 {
		t.Fatal(code, text)
	}
	var pages []DivergenceInfo // two at a time
	for before := ""; len(pages) < 4; {
		var page []DivergenceInfo
		if code, text := west.call("GET", "/v1/region/divergence?limit=2"+before, nil, &page); code != 200 || len(page) != 2 {
			t.Fatal(code, text)
		}
		pages, before = append(pages, page...), fmt.Sprintf("&before=%d", page[1].ID)
	}
	if !reflect.DeepEqual(pages, list) {
		t.Errorf("by pages it is %+v, in one %+v", pages, list)
	}
	if f := list[0]; f.Origin != west.name || f.Seq != 4 || f.Epoch != seal.Epoch || f.Gid != string(rows[1].Gid) || f.Kind != "finish" || f.Decided != "commit" || f.Phase == "" || f.Reason == "" || f.At == 0 {
		t.Errorf("%+v", f)
	}
	if f := list[1]; f.Kind != "decision" || f.Decided != "commit" {
		t.Errorf("%+v", f)
	}
	for _, c := range []struct {
		in   SettleRequest
		code int
	}{{SettleRequest{list[0].ID, "by ann"}, 200}, {SettleRequest{1 << 40, "by ann"}, 404}, {SettleRequest{list[0].ID, ""}, 400}} {
		if code, text := west.call("POST", "/v1/region/divergence/settle", c.in, nil); code != c.code {
			t.Error(c, code, text)
		}
	}
	if west.call("GET", "/v1/region/divergence?limit=10", nil, &list); len(list) != 3 {
		t.Error(len(list))
	}
}

// TestAPeerThatHasNotCutAcknowledgesNothingPastTheCut: the numbers past it are the next epoch's.
func TestAPeerThatHasNotCutAcknowledgesNothingPastTheCut(t *testing.T) {
	d := &deployment{t: t, brokers: func(testing.TB) []string { return []string{"127.0.0.1:1"} }, url: databaseOf["sqlite"], suffix: "acks"}
	east, west := d.region("east"), d.region("west")
	s := east.make(east.journal)
	rows := east.tagged("a", 0, 4)
	east.append(rows...)
	n, ctx := rows[0].Slot, context.Background()
	if err := s.acknowledged(ctx, west.index, []eventlog.Head{{Slot: n, Head: rows[2].Finish}}); err != nil {
		t.Fatal(err)
	}
	old := eventsOf(rows)
	seal := forcedSeal(&old[2])
	if _, err := s.Returned(ctx, n, seal); err != nil {
		t.Fatal(err)
	}
	next, events := numbered(old[2].Head, uint64(seal.Epoch.Next(east.index)), east.tagged("a", 100, 3))
	east.append(next...)
	if err := s.acknowledged(ctx, west.index, []eventlog.Head{{Slot: n, Head: rows[3].Finish}}); err != nil {
		t.Fatal(err)
	}
	if acks, err := east.journal.Acknowledged(ctx, east.index); err != nil || acks[west.index][n] != 3 {
		t.Fatal(acks, err)
	}
	if err := s.acknowledged(ctx, west.index, []eventlog.Head{{Slot: n, Head: events[1].Head}}); err != nil {
		t.Fatal(err)
	}
	if acks, err := east.journal.Acknowledged(ctx, east.index); err != nil || acks[west.index][n] != events[1].Head.Seq {
		t.Fatal(acks, err)
	}
}
