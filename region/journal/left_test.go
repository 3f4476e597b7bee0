package journal

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/lockstep-tx/lockstep/coordinator/record"
	"github.com/lockstep-tx/lockstep/coordinator/txn"
	"github.com/lockstep-tx/lockstep/region/journal/sample"
	"github.com/lockstep-tx/lockstep/region/slot"
)

// TestWhatIsUnfinishedIsWhatANewOwnerHasToKnow: decided and not finished, by whichever region; carried and live; and nothing
// that ended, nor what was carried before the last seal.
func TestWhatIsUnfinishedIsWhatANewOwnerHasToKnow(t *testing.T) {
	onEach(t, func(t *testing.T, url string) {
		ctx := context.Background()
		j := open(t, url)
		before, seal, _, row := moved(t) // of region 2: three finished, one decided and carried, a seal
		table := &seals{list: []slot.Seal{seal}}
		a := j.Applier(ApplyConfig{Own: 1, Seals: table.of})
		n := row.Slot
		live := func(gid txn.Gid) []byte {
			tx := record.Tx{State: txn.State{Gid: gid, Mode: txn.ModeTCC, Phase: txn.PhasePrepared, BegunAt: begin}}
			b, err := tx.Encode()
			if err != nil {
				t.Fatal(err)
			}
			return b
		}
		carry := func(gid txn.Gid) record.Event {
			return record.Event{Slot: n, Kind: record.KindCarry, Gid: gid, Body: live(gid)}
		}
		// region 2 carries three more, all live; region 3 decides one of them, finishes another, and decides one of its own
		rows := inSlot(&sample.Maker{Epoch: 203}, "a", 50, 3)
		events := chainOfRows(rows)
		head := before[len(before)-3].Head
		chain := append(slices.Clone(before[:len(before)-2]), numbered(head, 102, []record.Event{
			before[len(before)-2], carry(rows[0].Gid), carry(rows[1].Gid), carry("{a}:idle"), {Slot: n, Kind: record.KindSeal},
		})...)
		last := chain[len(chain)-1]
		table.list[0] = *slot.SealOf(102, last.Head.Seq, last.Head.Chain[:])
		if res := apply(t, a, Batch{Origin: 2, Offset: -1, Events: chain}); res.Applied != len(chain) {
			t.Fatalf("%+v", res)
		}
		must := func(want ...txn.Gid) []Left {
			t.Helper()
			got, err := j.Unfinished(ctx, n)
			if err != nil {
				t.Fatal(err)
			}
			var gids []txn.Gid
			for _, l := range got {
				tx, err := record.Decode(l.Record)
				if err != nil || tx.State.Gid != l.Gid || tx.State.Phase.Decided() != l.Decided || tx.State.Phase.Finished() {
					t.Fatalf("%q: %+v, %v", l.Gid, tx, err)
				}
				gids = append(gids, l.Gid)
			}
			slices.Sort(want)
			if !slices.Equal(gids, want) {
				t.Fatalf("%q are left, want %q", gids, want)
			}
			if any, err := j.AnyUnfinished(ctx, []int{n, (n + 1) % slot.Count}); err != nil || any[n] != (len(want) > 0) || len(any) > 1 {
				t.Fatalf("anything is left in %v (%v), want %q in slot %d", any, err, want, n)
			}
			return got
		}
		must(row.Gid, rows[0].Gid, rows[1].Gid, "{a}:idle")
		three := numbered(record.Head{}, 203, []record.Event{events[0], events[2], events[3], events[4]})
		if res := apply(t, a, Batch{Origin: 3, Offset: -1, Events: three}); res.Applied != 4 {
			t.Fatalf("%+v", res)
		}
		for _, l := range must(row.Gid, rows[0].Gid, rows[2].Gid, "{a}:idle") {
			tx, _ := record.Decode(l.Record)
			if l.Decided != (l.Gid != "{a}:idle") || l.Decided && tx.Decision.Seq == 0 {
				t.Fatalf("%+v", l)
			}
		}
		sealed := numbered(three[3].Head, 203, []record.Event{carry("{a}:again"), {Slot: n, Kind: record.KindSeal}})
		if res := apply(t, a, Batch{Origin: 3, Offset: -1, Events: sealed}); res.Applied != 2 {
			t.Fatalf("%+v", res)
		}
		must(row.Gid, rows[0].Gid, rows[2].Gid, "{a}:again") // the idle one was not carried on: it had ended
	})
}

func TestADivergenceIsListedUntilItIsSettled(t *testing.T) {
	onEach(t, func(t *testing.T, url string) {
		ctx := context.Background()
		f, table := forcedAt(8), &seals{}
		j := open(t, url)
		table.add(f.seal)
		a := j.Applier(ApplyConfig{Own: 1, Seals: table.of})
		apply(t, a, Batch{Origin: 2, Offset: -1, Events: f.old})
		list, err := j.Divergences(ctx, 10)
		if err != nil || len(list) != 2 || list[0].Seq != 10 || list[0].Sealed != 102 || !strings.Contains(list[0].Reason, "after the forced seal of epoch 102, which is event 8") {
			t.Fatalf("%+v, %v", list, err)
		}
		for _, text := range []string{"by ann: it was paid by hand", "by bob: too late"} {
			if err := j.SettleDivergence(ctx, list[0].ID, text); err != nil {
				t.Fatal(err)
			}
		}
		if err := j.SettleDivergence(ctx, 1<<40, "x"); !errors.Is(err, ErrNoDivergence) {
			t.Fatal(err)
		}
		for _, text := range []string{"", strings.Repeat("x", SettleBytesMax+1)} {
			if err := j.SettleDivergence(ctx, list[1].ID, text); err == nil {
				t.Fatal("taken")
			}
		}
		if list, err = j.Divergences(ctx, 10); err != nil || len(list) != 1 || list[0].Seq != 9 {
			t.Fatalf("%+v, %v", list, err)
		}
		apply(t, a, Batch{Origin: 2, Offset: -1, Events: f.old})
		all := mustDiverge(t, j, 2, f.n, f.old[8:]...)
		if all[1].Settled != "by ann: it was paid by hand" || all[1].SettledAt == 0 || all[0].Settled != "" {
			t.Fatalf("%+v", all)
		}
	})
}

// TestAJournalFromBeforeForcedSealsIsUpgraded: with what it has.
func TestAJournalFromBeforeForcedSealsIsUpgraded(t *testing.T) {
	onEach(t, func(t *testing.T, url string) {
		ctx := context.Background()
		f := forcedAt(4)
		j := open(t, url)
		apply(t, j.Applier(ApplyConfig{Own: 1}), Batch{Origin: 2, Offset: -1, Events: f.old[:4]})
		drop, later := "DROP INDEX lockstep_divergence_chain", "DROP INDEX lockstep_event_kind"
		if j.d.name == "mysql" {
			drop += " ON lockstep_divergence"
			later += " ON lockstep_event"
		}
		for _, stmt := range []string{
			later, drop, "DROP TABLE lockstep_cut", "ALTER TABLE lockstep_watermark DROP COLUMN frozen", "ALTER TABLE lockstep_watermark DROP COLUMN bounded",
			"ALTER TABLE lockstep_divergence DROP COLUMN epoch", "ALTER TABLE lockstep_divergence DROP COLUMN gid", "ALTER TABLE lockstep_divergence DROP COLUMN seal",
			"ALTER TABLE lockstep_divergence DROP COLUMN settled", "ALTER TABLE lockstep_divergence DROP COLUMN settled_at",
			"DELETE FROM lockstep_journal_version WHERE version >= 5",
		} {
			if _, err := j.write.ExecContext(ctx, stmt); err != nil {
				t.Fatal(stmt, err)
			}
		}
		if _, err := j.write.ExecContext(ctx, j.d.bind("INSERT INTO lockstep_divergence (origin, slot, seq, at, reason, event) VALUES (2, ?, 9, 1, 'x', ?)"), f.n, encoded(&f.old[8])); err != nil {
			t.Fatal(err)
		}
		again := open(t, url)
		if m := mustMark(t, again, 2, f.n, f.old[3].Head); m.Frozen+m.Bounded != 0 {
			t.Fatalf("%+v", m)
		}
		if list, err := again.Divergences(ctx, 5); err != nil || len(list) != 1 || list[0].Gid != f.old[8].Gid || list[0].Epoch != 102 || list[0].ID == 0 {
			t.Fatalf("%+v, %v", list, err)
		}
	})
}
