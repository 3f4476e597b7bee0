package slot

import (
	"testing"
	"time"
)

func TestAnEpochNamesItsRegionAndGrowsWithEveryChange(t *testing.T) {
	e := Initial(2)
	if e != 102 || e.Region() != 2 {
		t.Fatalf("the first epoch of region 2 is %d of region %d", e, e.Region())
	}
	for _, region := range []int{1, 99, 1, 2, 2} {
		next := e.Next(region)
		if next <= e || next.Region() != region {
			t.Fatalf("after %d comes %d of region %d, want a larger one of region %d", e, next, next.Region(), region)
		}
		if released := e.Released(); released <= e || released >= next {
			t.Fatalf("the epoch %d of a release is not between %d and %d", released, e, next)
		}
		e = next
	}
}

func TestASlotGoesFromActiveOverDrainingAndSealedToItsNextOwner(t *testing.T) {
	o := Owner{Region: "east", Epoch: Initial(1), Status: Active}
	at := time.UnixMilli(5)
	d, err := o.Drain("west", "op", at)
	if err != nil || d.Status != Draining || d.To != "west" || d.DeadlineMillis != 5 || d.Epoch != o.Epoch {
		t.Fatalf("%+v, %v", d, err)
	}
	s, err := d.Close(SealOf(d.Epoch, 9, []byte{0xab}))
	if err != nil || s.Status != Sealed || s.Seal.Chain != "ab" {
		t.Fatalf("%+v, %v", s, err)
	}
	g, err := s.Give(2)
	if err != nil || g.Region != "west" || g.Epoch != 202 || g.Status != Active || g.Seal.Seq != 9 || g.Op != "" {
		t.Fatalf("%+v, %v", g, err)
	}
	for _, from := range []Owner{d, s} {
		u, err := from.Undo()
		if err != nil || u.Region != "east" || u.Epoch != 201 || u.Status != Active || u.To != "" {
			t.Fatalf("undone from %s: %+v, %v", from.Status, u, err)
		}
	}
}

func TestASlotTakesNoStepThatItsStatusDoesNotAllow(t *testing.T) {
	active := Owner{Region: "east", Epoch: 101, Status: Active}
	draining, _ := active.Drain("west", "op", time.UnixMilli(1))
	if _, err := active.Drain("east", "op", time.UnixMilli(1)); err == nil {
		t.Error("a slot drained to its own region")
	}
	if _, err := draining.Drain("west", "op", time.UnixMilli(1)); err == nil {
		t.Error("a slot drained twice")
	}
	if _, err := draining.Close(SealOf(1, 1, nil)); err == nil {
		t.Error("closed with the seal of another epoch")
	}
	if _, err := draining.Give(2); err == nil {
		t.Error("given away without a seal")
	}
	if _, err := active.Undo(); err == nil {
		t.Error("an active slot was undone")
	}
	if _, err := active.Close(SealOf(101, 1, nil)); err == nil {
		t.Error("an active slot was closed")
	}
}

func TestASlotTakenByForceIsServedOnlyUnderASealOfItsLostEpoch(t *testing.T) {
	active := Owner{Region: "east", Epoch: 101, Status: Active}
	draining, _ := active.Drain("west", "move", time.UnixMilli(1))
	for _, from := range []Owner{active, draining} {
		o, err := from.Take("west", "op", 2, Risk{Policy: Limit, Cap: 5})
		if err != nil || o.Region != "west" || o.Epoch != 202 || o.Status != Taken || o.Lost != 101 || o.Op != "op" || o.To != "" {
			t.Fatalf("taken from %s: %+v, %v", from.Status, o, err)
		}
		if _, err := o.Serve(); err == nil {
			t.Error("served without a seal")
		}
		if _, err := o.Bound(&Seal{Epoch: 202, Forced: true}); err == nil {
			t.Error("bound by a seal of another epoch")
		}
		o, err = o.Bound(&Seal{Epoch: 101, Seq: 7, Chain: "ab", Forced: true})
		if err != nil {
			t.Fatal(err)
		}
		o, err = o.Serve()
		if err != nil || o.Status != Active || o.Epoch != 202 || o.Lost != 101 || o.Seal.Seq != 7 || o.Op != "" || o.Risk.Cap != 5 {
			t.Fatalf("served: %+v, %v", o, err)
		}
		if _, err := o.Drain("east", "back", time.UnixMilli(1)); err == nil {
			t.Error("a slot went back before the loss was worked off")
		}
		o, err = o.Settled()
		if err != nil || o.Lost != 0 || o.Risk.Cap != 5 || !o.Forced() {
			t.Fatalf("settled: %+v, %v", o, err)
		}
		if _, err := o.Drain("east", "back", time.UnixMilli(1)); err != nil {
			t.Error(err)
		}
	}
	if _, err := active.Take("east", "op", 1, Risk{}); err == nil {
		t.Error("a region took its own slot by force")
	}
	if _, err := active.Bound(&Seal{Epoch: 101}); err == nil {
		t.Error("an active slot was bound")
	}
}

// TestASealThatWasUndoneAndCutIsOvertaken: a seal that its owner wrote stands for ever, but where the move was undone and the
// region's chain was then ended below it by force, nobody can reach it.
func TestASealThatWasUndoneAndCutIsOvertaken(t *testing.T) {
	undone := Seal{Epoch: 101, Seq: 18}
	for name, c := range map[string]struct {
		later Seal
		want  bool
	}{
		"cut below it":              {Seal{Epoch: 201, Seq: 17, Forced: true}, true},
		"cut at it":                 {Seal{Epoch: 201, Seq: 18, Forced: true}, false},
		"cut above it":              {Seal{Epoch: 201, Seq: 30, Forced: true}, false},
		"another region was lost":   {Seal{Epoch: 202, Seq: 2, Forced: true}, false},
		"the next one is by plan":   {Seal{Epoch: 201, Seq: 25}, false},
		"it was cut before it once": {Seal{Epoch: 1, Seq: 3, Forced: true}, false},
	} {
		if got := Overtaken([]Seal{undone, c.later}, undone); got != c.want {
			t.Errorf("%s: %v", name, got)
		}
	}
}
