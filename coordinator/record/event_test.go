package record

import "testing"

func TestAnEventFollowsTheOneBeforeItAndNoOther(t *testing.T) {
	first := Event{Slot: 7, Kind: KindDecision, Gid: "g", Epoch: 203, Body: []byte("body")}
	first.Head = Head{}.Next(first.Slot, first.Epoch, first.Kind, first.Gid, first.Body)
	seal := Event{Slot: 7, Kind: KindSeal, Epoch: 203}
	seal.Head = first.Head.Next(7, 203, KindSeal, "", nil)
	if !first.Follows(Head{}) || !seal.Follows(first.Head) || first.Origin() != 3 {
		t.Fatal("sound events do not follow one another")
	}
	for name, spoil := range map[string]func(*Event){
		"slot": func(e *Event) { e.Slot++ }, "kind": func(e *Event) { e.Kind = KindFinish }, "gid": func(e *Event) { e.Gid = "h" },
		"epoch": func(e *Event) { e.Epoch++ }, "body": func(e *Event) { e.Body = []byte("bodY") }, "seq": func(e *Event) { e.Head.Seq++ },
		"chain": func(e *Event) { e.Head.Chain[31] ^= 1 },
	} {
		e := first
		spoil(&e)
		if e.Follows(Head{}) {
			t.Errorf("an event with another %s still follows", name)
		}
	}
	if seal.Follows(Head{}) {
		t.Error("an event follows across a gap")
	}
}
