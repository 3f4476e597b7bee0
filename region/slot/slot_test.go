package slot

import (
	"hash/fnv"
	"testing"
	"time"
)

func TestSlotIsFNVOfTheTagOrOfTheWholeText(t *testing.T) {
	for _, tc := range []struct{ id, tag string }{
		{"abc", "abc"}, {"{user42}01J", "user42"}, {"x{u}y{v}", "u"}, {"{}abc", "{}abc"}, {"{abc", "{abc"},
		{"a}b{c}", "c"}, {"", ""}, {"{{a}", "{a"},
	} {
		h := fnv.New64a()
		h.Write([]byte(tc.tag))
		if got, want := Of(tc.id), int(h.Sum64()%1024); got != want {
			t.Errorf("Of(%q) = %d, want %d", tc.id, got, want)
		}
		if got := Tag(tc.id); got != tc.tag {
			t.Errorf("Tag(%q) = %q, want %q", tc.id, got, tc.tag)
		}
	}
}

func TestOnlyTheSlotsOfAMemberMoveWhenItLeaves(t *testing.T) {
	all := []string{"a", "b", "c"}
	count := map[string]int{}
	for n := range Count {
		before := Prefer(n, all)
		count[before]++
		if after := Prefer(n, []string{"c", "a"}); before != "b" && after != before {
			t.Fatalf("slot %d moved from %q to %q though %q stayed", n, before, after, before)
		}
	}
	for _, m := range all {
		if count[m] < Count/6 {
			t.Errorf("%s holds %d of %d slots: not spread", m, count[m], Count)
		}
	}
	if got := Prefer(3, nil); got != "" {
		t.Errorf("Prefer without members = %q", got)
	}
}

func FuzzOf(f *testing.F) {
	f.Add("{a}b")
	f.Fuzz(func(t *testing.T, id string) {
		if n := Of(id); n < 0 || n >= Count || n != Of(Tag(id)) && Tag(Tag(id)) == Tag(id) {
			t.Fatalf("Of(%q) = %d", id, n)
		}
	})
}

func TestNewGidCarriesItsTimeAndFallsIntoAnAcceptedSlot(t *testing.T) {
	now := time.UnixMilli(1_790_000_000_123)
	seen := map[string]bool{}
	for range 1000 {
		gid := NewGid(now, func(n int) bool { return n < 32 })
		if Of(gid) >= 32 {
			t.Fatalf("%s is in slot %d", gid, Of(gid))
		}
		if at, ok := TimeOf(gid); !ok || !at.Equal(now) {
			t.Fatalf("TimeOf(%s) = %v, %v", gid, at, ok)
		}
		if seen[gid] {
			t.Fatalf("%s came twice", gid)
		}
		seen[gid] = true
	}
	if a, b := NewGid(now, nil), NewGid(now.Add(time.Millisecond), nil); a >= b {
		t.Errorf("%s does not sort before %s", a, b)
	}
	for _, other := range []string{"", "abc", "ls1", "ls1!000000000000000000000", NewGid(now, nil) + "x"} {
		if _, ok := TimeOf(other); ok {
			t.Errorf("TimeOf(%q) found a time", other)
		}
	}
}
