package barrier_test

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/lockstep-tx/lockstep/participants/barrier"
)

// The epochs of a region before it was lost, and of the one that took its slots.
const lost, taken = 202, 301

func takeNothing(*sql.Tx, int, []barrier.Row) (json.RawMessage, error) { return nil, nil }

func (c counter) tell(t *testing.T, gid string, epoch int64, here bool) {
	t.Helper()
	if err := c.b.Homes(t.Context(), []barrier.Home{{Slot: barrier.SlotOf(gid), Epoch: epoch, Here: here}}, takeNothing); err != nil {
		t.Fatal(err)
	}
}

func (c counter) home(t *testing.T, gid string) (epoch int64, here bool) {
	t.Helper()
	all, err := c.b.State(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	h := all[barrier.SlotOf(gid)]
	return h.Epoch, h.Here
}

func (c counter) raise(t *testing.T, gid string, epoch int64) {
	t.Helper()
	if err := c.b.Raise(t.Context(), []barrier.SlotEpoch{{Slot: barrier.SlotOf(gid), Epoch: epoch}}); err != nil {
		t.Fatal(err)
	}
}

func TestAfterAFenceEveryCallWithALowerEpochIsStale(t *testing.T) {
	onEach(t, func(t *testing.T, d barrier.Dialect) {
		c := newCounter(t, d)
		c.do(t, call("tcc", "g1", "try", lost), barrier.Done, nil, 1)
		for range 2 {
			c.raise(t, "g1", taken)
			for _, op := range []string{"try", "confirm", "cancel"} {
				c.do(t, call("tcc", "g1", op, lost), barrier.Unknown, barrier.ErrStale, c.effects(t, op))
			}
		}
		c.raise(t, "g1", lost) // lower than what is there: it is left, and no error
		if epoch, here := c.home(t, "g1"); epoch != taken || !here {
			t.Errorf("the row is at %d, home %v", epoch, here)
		}
		c.do(t, call("tcc", "g1", "confirm", taken), barrier.Done, nil, 1)
		other := c.place.open(t, barrier.Options{}) // another process, which has seen nothing
		other.do(t, call("tcc", "g1", "confirm", lost), barrier.Unknown, barrier.ErrStale, 1)
	})
}

func TestAFenceLeavesACopyACopyAndManySlotsGoAtOnce(t *testing.T) {
	onEach(t, func(t *testing.T, d barrier.Dialect) {
		c := newCounter(t, d)
		c.tell(t, "g1", lost, false)
		var all []barrier.SlotEpoch
		for n := range barrier.SlotCount {
			all = append(all, barrier.SlotEpoch{Slot: n, Epoch: taken})
		}
		if err := c.b.Raise(t.Context(), append(all, all[7])); err != nil {
			t.Fatal(err)
		}
		if epoch, here := c.home(t, "g1"); epoch != taken || here {
			t.Errorf("the copy's row is at %d, home %v", epoch, here)
		}
		if n := c.count(t, `SELECT count(*) FROM {fence} WHERE epoch = ?`, taken); n != barrier.SlotCount {
			t.Errorf("%d rows are raised", n)
		}
		for field, bad := range map[string][]barrier.SlotEpoch{"slots: none": nil, "slots[0].slot": {{Slot: barrier.SlotCount, Epoch: 1}}, "slots[1].epoch": {{Epoch: 1}, {}}} {
			if err := c.b.Raise(t.Context(), bad); !errors.Is(err, barrier.ErrInvalid) || !strings.Contains(err.Error(), field) {
				t.Errorf("%v: %v", bad, err)
			}
		}
	})
}

// Whatever a confirm of the old epoch meets, it is done before the fence or not at all.
func TestAConfirmThatRacesAFenceIsBeforeItOrStale(t *testing.T) {
	onEach(t, func(t *testing.T, d barrier.Dialect) {
		c := newCounter(t, d)
		for round := range 4 {
			gid := func(i int) string { return fmt.Sprintf("{race%d}-%d", round, i) } // all of one slot
			for i := range 16 {
				c.do(t, call("tcc", gid(i), "try", lost), barrier.Done, nil, round*16+i+1)
			}
			before := c.effects(t, "confirm")
			var done atomic.Int64
			var fenced atomic.Bool
			var atFence int
			var wg sync.WaitGroup
			for i := range 16 {
				wg.Go(func() {
					late := fenced.Load()
					outcome, err := c.b.Do(context.Background(), call("tcc", gid(i), "confirm", lost), c.effect("confirm"))
					switch {
					case err == nil && outcome == barrier.Done && !late:
						done.Add(1)
					case !errors.Is(err, barrier.ErrStale):
						t.Errorf("confirm after the fence %v: %s, %v", late, outcome, err)
					}
				})
				if i == 7 {
					wg.Go(func() {
						if err := c.b.Raise(context.Background(), []barrier.SlotEpoch{{Slot: barrier.SlotOf(gid(0)), Epoch: taken}}); err != nil {
							t.Error(err)
						}
						if err := c.db.QueryRow(c.sql(`SELECT count(*) FROM {effect} WHERE op = 'confirm'`)).Scan(&atFence); err != nil {
							t.Error(err)
						}
						fenced.Store(true)
					})
				}
			}
			wg.Wait()
			if n := c.effects(t, "confirm"); n != atFence {
				t.Errorf("%d confirms have had their effect when the fence was there, and %d in the end", atFence, n)
			}
			if n := c.effects(t, "confirm") - before; n != int(done.Load()) {
				t.Errorf("%d confirms have had their effect, %d said so", n, done.Load())
			}
		}
	})
}

func TestTriesListsWhatNobodyEnded(t *testing.T) {
	onEach(t, func(t *testing.T, d barrier.Dialect) {
		c := newCounter(t, d)
		c.raise(t, "{a}", lost) // a region's coordinator has been here
		with := func(gid, branch, op string, epoch int64, global bool) {
			t.Helper()
			x := call("tcc", gid, op, epoch)
			x.BranchID, x.Global = branch, global
			if _, err := c.b.Do(t.Context(), x, c.effect(op)); err != nil {
				t.Fatal(err)
			}
		}
		with("{a}-open", "01", "try", lost, true)
		with("{a}-open", "02", "try", lost, true)
		with("{a}-open", "02", "confirm", lost, true)
		with("{a}-open", "03", "cancel", lost, true) // before its try
		with("{a}-dtm", "01", "try", 0, true)        // as DTM's clients make it
		with("{a}-plain", "01", "try", 0, false)
		with("{a}-ended", "01", "try", lost, false)
		with("{a}-ended", "01", "cancel", lost, false)
		with("{a}-done", "01", "try", lost, false)
		with("{a}-done", "01", "confirm", lost, false)
		with("{b}-other", "01", "try", 0, true) // of a slot that no coordinator has named here
		if _, err := c.b.Refuse(t.Context(), "{a}-open", lost, []string{"04"}); err != nil {
			t.Fatal(err)
		}
		show := func(slots ...int) (out []string) {
			t.Helper()
			tries, err := c.b.Tries(t.Context(), slots)
			if err != nil {
				t.Fatal(err)
			}
			for _, x := range tries {
				out = append(out, fmt.Sprint(x.Gid, x.Branch, x.TransType, x.Durability, x.State))
			}
			return out
		}
		a, b := barrier.SlotOf("{a}"), barrier.SlotOf("{b}")
		ofA := []string{"{a}-dtm01tccglobaltried", "{a}-open01tccglobaltried", "{a}-open02tccglobalconfirmed", "{a}-open03tccregionalcancelled", "{a}-plain01tccregionaltried"}
		if got := show(a, a); fmt.Sprint(got) != fmt.Sprint(ofA) {
			t.Errorf("slot %d: %v", a, got)
		}
		if got := show(b, a); len(got) != len(ofA)+1 || got[5] != "{b}-other01tccglobaltried" {
			t.Errorf("both slots: %v", got)
		}
		if got := show((a + 1) % barrier.SlotCount); len(got) != 0 {
			t.Errorf("another slot: %v", got)
		}
		for field, bad := range map[string][]int{"slots: none": {}, "slots[1]": {1, -1}} {
			if _, err := c.b.Tries(t.Context(), bad); !errors.Is(err, barrier.ErrInvalid) || !strings.Contains(err.Error(), field) {
				t.Errorf("%v: %v", bad, err)
			}
		}
	})
}

// More transactions than one statement takes.
func TestTriesListsManyTransactions(t *testing.T) {
	c := newCounter(t, barrier.SQLite)
	for i := range 130 {
		if _, err := c.b.Do(t.Context(), call("tcc", fmt.Sprintf("{m}-%03d", i), "try", lost), c.effect("try")); err != nil {
			t.Fatal(err)
		}
	}
	tries, err := c.b.Tries(t.Context(), []int{barrier.SlotOf("{m}")})
	if err != nil || len(tries) != 130 || tries[77].Gid != "{m}-077" {
		t.Errorf("%d tries, %v", len(tries), err)
	}
}

func TestAForcedAdoptionMakesACopyTheHome(t *testing.T) {
	onEach(t, func(t *testing.T, d barrier.Dialect) {
		c := newCounter(t, d)
		n := barrier.SlotOf("g1")
		limit := barrier.Policy{Risk: barrier.RiskLimit, Cap: 500}
		adopt := func(epoch int64, p barrier.Policy, want error) {
			t.Helper()
			if err := c.b.AdoptForced(t.Context(), p, barrier.SlotEpoch{Slot: n, Epoch: epoch}); !errors.Is(err, want) || want == nil && err != nil {
				t.Fatalf("adopted at %d: %v, want %v", epoch, err, want)
			}
		}
		seen := func(gid string, epoch int64) (p barrier.Policy) {
			t.Helper()
			x := call("tcc", gid, "try", epoch)
			if _, err := c.b.Do(t.Context(), x, func(*sql.Tx) error { p = x.Policy(); return nil }); err != nil {
				t.Fatal(err)
			}
			return p
		}
		c.tell(t, "g1", lost, false)
		c.raise(t, "g1", taken) // the fence comes first, and does not make it a home
		adopt(lost, limit, barrier.ErrStale)
		c.do(t, call("tcc", "g1", "try", taken), barrier.Unknown, barrier.ErrMoved, 0)
		for range 2 {
			adopt(taken, limit, nil)
			if epoch, here := c.home(t, "g1"); epoch != taken || !here {
				t.Fatalf("at %d, home %v", epoch, here)
			}
		}
		want := barrier.Policy{Risk: barrier.RiskLimit, Cap: 500, Since: taken}
		if p := seen("g1", taken); p != want {
			t.Errorf("the function sees %+v", p)
		}
		adopt(taken, barrier.Policy{Risk: barrier.RiskBlock}, nil) // a repeat changes nothing
		adopt(taken+100, barrier.Policy{Risk: barrier.RiskBlock}, nil)
		if p := seen("g1", taken+100); p != (barrier.Policy{}) && p != want {
			t.Errorf("a home that goes to another epoch sees %+v", p)
		}
		lift := func(epoch int64) {
			t.Helper()
			if err := c.b.LiftRisk(t.Context(), []barrier.SlotEpoch{{Slot: n, Epoch: epoch}}); err != nil {
				t.Fatal(err)
			}
		}
		lift(taken) // not its epoch any more
		if k := c.count(t, `SELECT count(*) FROM {fence} WHERE risk = 'limit'`); k != 1 {
			t.Errorf("%d slots at risk after the lift of another epoch", k)
		}
		for range 2 {
			lift(taken + 100)
			if k := c.count(t, `SELECT count(*) FROM {fence} WHERE risk <> ''`); k != 0 {
				t.Errorf("%d slots at risk after the lift", k)
			}
		}
		for field, p := range map[string]barrier.Policy{"at_risk": {}, "at_risk: \"no\"": {Risk: "no"}, "cap: -1": {Risk: barrier.RiskLimit, Cap: -1}, "cap: it goes": {Risk: barrier.RiskAllow, Cap: 1}} {
			if err := c.b.AdoptForced(t.Context(), p, barrier.SlotEpoch{Slot: n, Epoch: 900}); !errors.Is(err, barrier.ErrInvalid) || !strings.Contains(err.Error(), field) {
				t.Errorf("%+v: %v", p, err)
			}
		}
	})
}

func TestAPolicyGoesWithASlotThatIsMoved(t *testing.T) {
	onEach(t, func(t *testing.T, d barrier.Dialect) {
		a, b := newCounter(t, d), newCounter(t, d)
		n := barrier.SlotOf("g1")
		a.tell(t, "g1", lost, false)
		b.tell(t, "g1", lost, false)
		if err := a.b.AdoptForced(t.Context(), barrier.Policy{Risk: barrier.RiskBlock}, barrier.SlotEpoch{Slot: n, Epoch: taken}); err != nil {
			t.Fatal(err)
		}
		if err := a.b.Release(t.Context(), n, 400, func(*sql.Tx, []barrier.Row) (json.RawMessage, error) { return nil, nil }); err != nil {
			t.Fatal(err)
		}
		raw, err := a.b.Released(t.Context(), n, 400)
		if err != nil {
			t.Fatal(err)
		}
		if err := b.b.Adopt(t.Context(), n, 403, raw, func(*sql.Tx, json.RawMessage, []barrier.Row, []barrier.Row) error { return nil }); err != nil {
			t.Fatal(err)
		}
		if k, j := a.count(t, `SELECT count(*) FROM {fence} WHERE risk <> ''`), b.count(t, `SELECT count(*) FROM {fence} WHERE risk = 'block' AND risk_epoch = ?`, taken); k != 0 || j != 1 {
			t.Errorf("%d slots at risk where it was released, %d where it was adopted", k, j)
		}
	})
}

func TestAHomeThatIsElsewhereAtAHigherEpochLetsGoAndKeepsEvidence(t *testing.T) {
	onEach(t, func(t *testing.T, d barrier.Dialect) {
		c := newCounter(t, d)
		n := barrier.SlotOf("g1")
		c.tell(t, "g1", lost, true)
		c.do(t, call("tcc", "g1", "try", lost), barrier.Done, nil, 1)
		takes := 0
		tell := func(epoch int64) error {
			return c.b.Homes(t.Context(), []barrier.Home{{Slot: n, Epoch: epoch}}, func(tx *sql.Tx, slot int, rows []barrier.Row) (json.RawMessage, error) {
				takes++
				if slot != n || len(rows) != 1 || rows[0].Gid != "g1" {
					t.Errorf("take is given slot %d, %v", slot, rows)
				}
				return json.RawMessage(`{"holds":1}`), c.place.effect("taken")(tx)
			})
		}
		if err := tell(lost); err != nil || takes != 0 {
			t.Fatalf("told at its own epoch: %v, %d takes", err, takes)
		}
		failed := errors.New("the take failed")
		if err := c.b.Homes(t.Context(), []barrier.Home{{Slot: n, Epoch: taken}}, func(*sql.Tx, int, []barrier.Row) (json.RawMessage, error) { return nil, failed }); !errors.Is(err, failed) {
			t.Fatal(err)
		}
		if _, here := c.home(t, "g1"); !here {
			t.Fatal("a take that failed has ended the home")
		}
		for range 2 {
			if err := tell(taken); err != nil || takes != 1 || c.effects(t, "taken") != 1 {
				t.Fatalf("%v, %d takes", err, takes)
			}
		}
		if epoch, here := c.home(t, "g1"); epoch != taken || here {
			t.Errorf("at %d, home %v", epoch, here)
		}
		raw, err := c.b.Released(t.Context(), n, taken)
		if err != nil || !strings.Contains(string(raw), `"holds":1`) || !strings.Contains(string(raw), `"let_go":true`) {
			t.Errorf("evidence %s, %v", raw, err)
		}
		if last, err := c.b.LastReleased(t.Context(), n, 999); err != nil || last != nil {
			t.Errorf("the evidence is taken for a release: %s, %v", last, err)
		}
		give := func(*sql.Tx, json.RawMessage, []barrier.Row, []barrier.Row) error { return errors.New("given") }
		if err := c.b.Adopt(t.Context(), n, 402, raw, give); !errors.Is(err, barrier.ErrInvalid) {
			t.Errorf("the evidence is adopted: %v", err)
		}
		// A fence or a call may have brought the row to the epoch before anybody told where the home is.
		c.tell(t, "g3", lost, true)
		c.raise(t, "g3", taken)
		c.tell(t, "g3", taken, false)
		if epoch, here := c.home(t, "g3"); epoch != taken || here {
			t.Errorf("a home that was fenced before it was demoted: at %d, home %v", epoch, here)
		}
		// A home that was adopted at that very epoch is one, whoever says otherwise: two regions may share a database.
		if err := c.b.AdoptForced(t.Context(), barrier.Policy{Risk: barrier.RiskAllow}, barrier.SlotEpoch{Slot: barrier.SlotOf("g3"), Epoch: 401}); err != nil {
			t.Fatal(err)
		}
		c.tell(t, "g3", 401, false)
		if _, here := c.home(t, "g3"); !here {
			t.Error("a home that was adopted at an epoch is demoted at it")
		}
		// A planned move is not disturbed: it was released before, and take has run for it.
		c.tell(t, "g2", lost, true)
		if err := c.b.Release(t.Context(), barrier.SlotOf("g2"), 300, func(*sql.Tx, []barrier.Row) (json.RawMessage, error) { return nil, nil }); err != nil {
			t.Fatal(err)
		}
		if err := c.b.Homes(t.Context(), []barrier.Home{{Slot: barrier.SlotOf("g2"), Epoch: taken}}, func(*sql.Tx, int, []barrier.Row) (json.RawMessage, error) {
			return nil, errors.New("taken a second time")
		}); err != nil {
			t.Error(err)
		}
	})
}

// before9 are the tables as they were before forced failovers, where they differ.
func before9(p place) []string {
	text, blob, boolean := "varchar(128)", "bytea", "boolean"
	switch p.dialect {
	case barrier.SQLite:
		text, blob, boolean = "TEXT", "BLOB", "INTEGER"
	case barrier.MySQL:
		text, blob = "varchar(128) COLLATE utf8mb4_bin", "LONGBLOB"
	}
	return []string{
		`DROP TABLE {fence}`, `DROP TABLE {lockstep_touched}`, `DROP TABLE {lockstep_released}`,
		`CREATE TABLE {fence} (slot int PRIMARY KEY, epoch bigint NOT NULL DEFAULT 1, floor_ms bigint NOT NULL DEFAULT 0, copied ` + boolean + ` NOT NULL DEFAULT ` + map[bool]string{true: "0", false: "false"}[boolean == "INTEGER"] + `)`,
		`CREATE TABLE {lockstep_touched} (slot int NOT NULL, gid ` + text + ` NOT NULL, branch_id ` + text + ` NOT NULL, PRIMARY KEY (gid, branch_id, slot))`,
		`CREATE TABLE {lockstep_released} (slot int NOT NULL, epoch bigint NOT NULL, snapshot ` + blob + ` NOT NULL, PRIMARY KEY (slot, epoch))`,
	}
}

func TestTablesFromBeforeForcedFailoverAreMigratedAndGoOn(t *testing.T) {
	onEach(t, func(t *testing.T, d barrier.Dialect) {
		c := newCounter(t, d)
		for _, stmt := range before9(c.place) {
			c.exec(t, stmt)
		}
		n := barrier.SlotOf("g1")
		c.exec(t, `INSERT INTO {fence} (slot, epoch) VALUES (?, ?)`, n, lost)
		c.exec(t, `INSERT INTO {barrier} (trans_type, gid, branch_id, op, barrier_id, reason) VALUES ('tcc', 'g1', '01', 'try', '01', 'try')`)
		c.exec(t, `INSERT INTO {lockstep_touched} (slot, gid, branch_id) VALUES (?, 'g1', '01')`, n)
		c.exec(t, `INSERT INTO {lockstep_released} (slot, epoch, snapshot) VALUES (?, 200, '[1]')`, n)
		for range 2 {
			if err := barrier.MigrateSchema(t.Context(), c.db, d, c.schema); err != nil {
				t.Fatal(err)
			}
		}
		if epoch, here := c.home(t, "g1"); epoch != lost || !here {
			t.Errorf("the fence row is at %d, home %v", epoch, here)
		}
		tries, err := c.b.Tries(t.Context(), []int{n})
		if err != nil || len(tries) != 1 || tries[0].Durability != "regional" {
			t.Errorf("%v, %v", tries, err)
		}
		if raw, err := c.b.LastReleased(t.Context(), n, lost); err != nil || string(raw) != "[1]" {
			t.Errorf("the release of before: %s, %v", raw, err)
		}
		c.do(t, call("tcc", "g1", "confirm", lost), barrier.Done, nil, 1)
		c.tell(t, "g1", taken, false)
		if err := c.b.AdoptForced(t.Context(), barrier.Policy{Risk: barrier.RiskBlock}, barrier.SlotEpoch{Slot: n, Epoch: 401}); err != nil {
			t.Error(err)
		}
	})
}

func TestTheHeadersOfForcedFailoverAreReadAndNamedWhereTheyAreWrong(t *testing.T) {
	for _, c := range []struct {
		op, durability, suspense string
		global, through          bool
		bad                      string
	}{
		{op: "try"}, {op: "try", durability: "regional"}, {op: "try", durability: "global", global: true},
		{op: "try", durability: "Global", bad: barrier.HeaderDurability},
		{op: "apply", suspense: "true", through: true}, {op: "apply", suspense: "false"},
		{op: "apply", suspense: "yes", bad: barrier.HeaderSuspense}, {op: "confirm", suspense: "true", bad: barrier.HeaderSuspense},
	} {
		r := httptest.NewRequest("POST", "/x?gid=g&branch_id=01&trans_type=tcc&op="+c.op, nil)
		r.Header.Set(barrier.HeaderDurability, c.durability)
		r.Header.Set(barrier.HeaderSuspense, c.suspense)
		md := map[string][]string{"dtm-gid": {"g"}, "dtm-branch_id": {"01"}, "dtm-trans_type": {"tcc"}, "dtm-op": {c.op}, "lockstep-durability": {c.durability}, "lockstep-suspense": {c.suspense}}
		overHTTP, err := barrier.FromHTTP(r)
		overGRPC, err2 := barrier.FromMetadata(md)
		for _, e := range []error{err, err2} {
			if c.bad != "" && (!errors.Is(e, barrier.ErrInvalid) || !strings.Contains(e.Error(), c.bad)) || c.bad == "" && e != nil {
				t.Errorf("%+v: %v", c, e)
			}
		}
		if c.bad == "" && (overHTTP.Global != c.global || overHTTP.Suspense != c.through || overGRPC.Global != c.global || overGRPC.Suspense != c.through) {
			t.Errorf("%+v: %+v and %+v", c, overHTTP, overGRPC)
		}
	}
}
