//go:build servers

package barrier_test

import (
	"database/sql"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/dtm-labs/dtm/client/dtmcli"
	"github.com/dtm-labs/dtm/client/dtmcli/dtmimp"

	"github.com/lockstep-tx/lockstep/participants/barrier"
)

// dtmTables are DTM's own (its sqls/dtmcli.barrier.*.sql), in a schema of ours.
var dtmTables = map[barrier.Dialect][]string{
	barrier.PostgreSQL: {
		`CREATE SCHEMA %[1]s`, `CREATE SEQUENCE %[1]s.barrier_seq`,
		`CREATE TABLE %[1]s.barrier (id bigint NOT NULL DEFAULT NEXTVAL('%[1]s.barrier_seq'), trans_type varchar(45) default '', gid varchar(128) default '',
			branch_id varchar(128) default '', op varchar(45) default '', barrier_id varchar(45) default '', reason varchar(45) default '',
			create_time timestamp(0) with time zone DEFAULT NULL, update_time timestamp(0) with time zone DEFAULT NULL,
			PRIMARY KEY(id), CONSTRAINT uniq_barrier unique(gid, branch_id, op, barrier_id))`,
	},
	barrier.MySQL: {
		`CREATE DATABASE %[1]s DEFAULT CHARACTER SET utf8mb4`,
		`CREATE TABLE %[1]s.barrier (id bigint(22) PRIMARY KEY AUTO_INCREMENT, trans_type varchar(45) default '', gid varchar(128) default '',
			branch_id varchar(128) default '', op varchar(45) default '', barrier_id varchar(45) default '', reason varchar(45) default '' comment 'the branch type who insert this record',
			create_time datetime DEFAULT now(), update_time datetime DEFAULT now(), key(create_time), key(update_time),
			UNIQUE key(gid, branch_id, op, barrier_id)) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4`,
	},
}

// dtmPlace is a schema that DTM's script has made.
func dtmPlace(t *testing.T, d barrier.Dialect) place {
	t.Helper()
	p := freshPlace(t, d)
	c := p.open(t, barrier.Options{})
	c.exec(t, map[barrier.Dialect]string{barrier.PostgreSQL: `DROP SCHEMA ` + p.schema + ` CASCADE`, barrier.MySQL: `DROP DATABASE ` + p.schema}[d])
	for _, stmt := range dtmTables[d] {
		c.exec(t, fmt.Sprintf(stmt, p.schema))
	}
	c.exec(t, `CREATE TABLE {effect} (op varchar(200))`)
	return p
}

// step is one operation of a sequence.
type step struct {
	transType, gid, branch, op string
	epoch                      int64 // for us alone
	calls                      int   // barrier calls in the handler
	failsAt                    int   // the call whose business fails, from 1; 0 none
	query                      bool  // a message's check-back instead
}

// What a call came to. DTM's barrier does not tell why nothing ran.
const (
	ranIt   = "ran"
	nothing = "nothing ran"
	failed  = "business failed"
)

var errBusiness = errors.New("business fails")

func (c counter) business(s step, n int, ran *bool) func(*sql.Tx) error {
	return func(tx *sql.Tx) error {
		*ran = true
		if err := c.effect(fmt.Sprint(s.gid, " ", s.branch, " ", s.op, " ", n))(tx); err != nil {
			return err
		}
		if n == s.failsAt {
			return errBusiness
		}
		return nil
	}
}

func came(ran bool, err error) string {
	switch {
	case errors.Is(err, errBusiness):
		return failed
	case errors.Is(err, dtmcli.ErrDuplicated):
		return barrier.ErrDuplicate.Error()
	case errors.Is(err, dtmcli.ErrFailure):
		return barrier.ErrRefused.Error()
	case err != nil && kindOf(err) == "unknown":
		return err.Error()
	case err != nil:
		return kindOf(err)
	case ran:
		return ranIt
	}
	return nothing
}

// ours makes the step's calls through our barrier, each one's outcome in order; it goes on after a failure as a handler
// would not, so that both see the same barrier_ids.
func (c counter) ours(t *testing.T, s step) (out []string) {
	one := call(s.transType, s.gid, s.op, s.epoch)
	one.BranchID = s.branch
	if s.query {
		return []string{came(false, c.b.QueryPrepared(t.Context(), one))}
	}
	for n := range s.calls {
		ran := false
		outcome, err := c.b.Do(t.Context(), one, c.business(s, n+1, &ran))
		out = append(out, came(ran, err))
		if err == nil && (outcome == barrier.Done) != ran {
			t.Errorf("%+v: %s, and business ran: %t", s, outcome, ran)
		}
	}
	return out
}

func (c counter) dtm(t *testing.T, s step) (out []string) {
	bb, err := dtmcli.BarrierFrom(s.transType, s.gid, s.branch, s.op)
	if err != nil {
		t.Fatal(err)
	}
	bb.DBType = map[barrier.Dialect]string{barrier.PostgreSQL: dtmimp.DBTypePostgres, barrier.MySQL: dtmimp.DBTypeMysql}[c.dialect]
	bb.BarrierTableName = c.schema + ".barrier"
	if s.query {
		// The check-back ignores the name that the barrier has (defect D43), and takes the process's.
		old := dtmimp.BarrierTableName
		defer func() { dtmimp.BarrierTableName = old }()
		dtmimp.BarrierTableName = bb.BarrierTableName
		return []string{came(false, bb.QueryPrepared(c.db))}
	}
	for n := range s.calls {
		ran := false
		err := bb.CallWithDB(c.db, c.business(s, n+1, &ran))
		out = append(out, came(ran, err))
	}
	return out
}

func (c counter) effectTable(t *testing.T) map[string]int {
	t.Helper()
	rows, err := c.db.QueryContext(t.Context(), c.sql(`SELECT op, count(*) FROM {effect} GROUP BY op`))
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	all := map[string]int{}
	for rows.Next() {
		var op string
		var n int
		if err := rows.Scan(&op, &n); err != nil {
			t.Fatal(err)
		}
		all[op] = n
	}
	if err := rows.Err(); err != nil {
		t.Fatal(err)
	}
	return all
}

func opposite(op string) string {
	return map[string]string{"confirm": "cancel", "cancel": "confirm", "commit": "rollback", "rollback": "commit"}[op]
}

// randomStep draws from few branches, so that most operations meet others.
func randomStep(rng *rand.Rand, gids int) step {
	kind := [][]string{{"tcc", "try", "confirm", "cancel"}, {"saga", "action", "compensate"}, {"workflow", "action", "commit", "rollback"}, {"msg", "msg", "query"}}[rng.IntN(4)]
	s := step{transType: kind[0], op: kind[1+rng.IntN(len(kind)-1)], epoch: 5, calls: 1}
	n := rng.IntN(gids)
	if at := slices.Index(kind, s.op); at >= 2 && len(kind) == 4 && rng.IntN(15) > 0 {
		s.op = kind[2+n%2] // a gid is confirmed or cancelled, but for a few contradictions
	}
	s.gid, s.branch = fmt.Sprintf("{s}%s-%d", kind[0], n), fmt.Sprintf("0%d", rng.IntN(2))
	if kind[0] == "msg" {
		s.branch = "00"
	}
	if rng.IntN(4) == 0 {
		s.calls = 1 + rng.IntN(3)
	}
	if rng.IntN(6) == 0 {
		s.failsAt = 1 + rng.IntN(s.calls)
	}
	if rng.IntN(60) == 0 {
		s.epoch = 4
	}
	if s.op == "query" {
		s.op, s.query, s.calls, s.failsAt = "msg", true, 1, 0
	}
	return s
}

// Random operation sequences have the same outcomes, rows and effects through DTM's barrier and through ours, but for the
// differences that are asserted here one by one. A third schema, which DTM's script made and our migration found, is
// worked on by both in turn, and comes to the same as ours.
func TestSameAsDTM(t *testing.T) {
	onServers(t, func(t *testing.T, d barrier.Dialect) {
		seed := uint64(time.Now().UnixNano())
		t.Logf("seed %d", seed)
		rng := rand.New(rand.NewPCG(seed, 0))
		ours, theirs := newCounter(t, d), dtmPlace(t, d).open(t, barrier.Options{})
		mixedPlace := dtmPlace(t, d)
		if err := barrier.MigrateSchema(t.Context(), theirs.db, d, mixedPlace.schema); err != nil {
			t.Fatal(err)
		}
		mixed := mixedPlace.open(t, barrier.Options{})
		// Epoch 5 is there from the start.
		for _, c := range []counter{ours, mixed} {
			c.exec(t, `UPDATE {fence} SET epoch = 5 WHERE slot = ?`, barrier.SlotOf("{s}"))
		}
		seen := map[string]int{}       // differences by name
		apart := map[string]bool{}     // branches at which DTM did what we refuse: "gid branch"
		reasons := map[string]string{} // ours: "gid branch op nn" to reason
		for range 900 {
			s := randomStep(rng, 20)
			got, want := ours.ours(t, s), theirs.dtm(t, s)
			byUs := rng.IntN(2) == 0
			for n := range got {
				id := fmt.Sprintf("%s %s %%s %02d", s.gid, s.branch, n+1)
				g, w := got[n], want[n]
				name := ""
				switch {
				case g == w:
				case g == barrier.ErrStale.Error():
					// DTM knows no epoch, and does it.
					name, byUs = "stale", true
					if s.epoch != 4 {
						t.Errorf("%+v: stale", s)
					}
					apart[s.gid+" "+s.branch] = true
				case g == barrier.ErrContradiction.Error():
					// DTM runs both of confirm and cancel.
					name, byUs = "contradiction", true
					if _, there := reasons[fmt.Sprintf(id, opposite(s.op))]; !there {
						t.Errorf("%+v: contradicts %s, which was never here", s, opposite(s.op))
					}
					apart[s.gid+" "+s.branch] = true
				case apart[s.gid+" "+s.branch]:
				case g == barrier.ErrRefused.Error() && w == nothing && (s.op == "try" || s.op == "action"):
					// DTM answers a late try with success.
					name = "late try"
					if r := reasons[fmt.Sprintf(id, s.op)]; r == s.op || r == "" {
						t.Errorf("%+v: refused, and its row has the reason %q", s, r)
					}
				default:
					t.Fatalf("%+v, call %d: ours %s, DTM's %s", s, n+1, g, w)
				}
				if s.epoch == 4 && g != barrier.ErrStale.Error() {
					t.Fatalf("%+v at an old epoch: %s", s, g)
				}
				seen[name]++
			}
			if byUs {
				mixed.ours(t, s)
			} else {
				mixed.dtm(t, s)
			}
			reasons = map[string]string{}
			for _, row := range ours.table(t) {
				f := strings.Fields(row)
				reasons[strings.Join(f[1:5], " ")] = f[5]
			}
		}
		t.Logf("calls by difference: %v; %d branches apart", seen, len(apart))
		if branches := 3*2*20 + 20; len(apart) > branches/2 {
			t.Errorf("%d of %d branches are apart: too little is compared", len(apart), branches)
		}
		for _, name := range []string{"", "stale", "contradiction", "late try"} {
			if seen[name] == 0 {
				t.Errorf("the sequence met no case of %q", name)
			}
		}
		isApart := func(row string) bool { f := strings.Fields(row); return apart[f[1]+" "+f[2]] }
		mine, his := ours.table(t), theirs.table(t)
		if got := mixed.table(t); !slices.Equal(got, mine) {
			t.Errorf("both on one schema have the rows\n%s\nours alone\n%s", strings.Join(got, "\n"), strings.Join(mine, "\n"))
		}
		if got, want := slices.DeleteFunc(slices.Clone(mine), isApart), slices.DeleteFunc(his, isApart); !slices.Equal(got, want) {
			t.Errorf("our rows\n%s\nDTM's\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
		}
		mineRan, hisRan := ours.effectTable(t), theirs.effectTable(t)
		if got := mixed.effectTable(t); !maps.Equal(got, mineRan) {
			t.Errorf("both on one schema had the effects %v, ours alone %v", got, mineRan)
		}
		other := func(at string, _ int) bool { f := strings.Fields(at); return apart[f[0]+" "+f[1]] }
		maps.DeleteFunc(mineRan, other)
		maps.DeleteFunc(hisRan, other)
		if !maps.Equal(mineRan, hisRan) {
			t.Errorf("our effects %v, DTM's %v", mineRan, hisRan)
		}
	})
}

// Difference: DTM's check-back looks in the process's table whatever its barrier was told (D43); ours has one name.
func TestCheckBackLooksWhereTheBarrierIs(t *testing.T) {
	onServers(t, func(t *testing.T, d barrier.Dialect) {
		c := newCounter(t, d)
		local := step{transType: "msg", gid: "m", branch: "00", op: "msg", calls: 1}
		if got := c.ours(t, local); got[0] != ranIt {
			t.Fatal(got)
		}
		bb, err := dtmcli.BarrierFrom("msg", "m", "00", "msg")
		if err != nil {
			t.Fatal(err)
		}
		bb.DBType = map[barrier.Dialect]string{barrier.PostgreSQL: dtmimp.DBTypePostgres, barrier.MySQL: dtmimp.DBTypeMysql}[d]
		bb.BarrierTableName = c.schema + ".barrier"
		if err := bb.QueryPrepared(c.db); err == nil {
			t.Error("DTM's check-back found the row: defect D43 is gone")
		}
		if err := c.b.QueryPrepared(t.Context(), call("msg", "m", "msg", 1)); err != nil {
			t.Error(err)
		}
	})
}

// Rule: that holds for a table that DTM's script has made too, after our migration, which may run again.
func TestIdentitiesThatAreAlmostEqualInDTMsTable(t *testing.T) {
	onServers(t, func(t *testing.T, d barrier.Dialect) {
		c := dtmPlace(t, d).open(t, barrier.Options{})
		for range 2 {
			if err := barrier.MigrateSchema(t.Context(), c.db, d, c.schema); err != nil {
				t.Fatal(err)
			}
		}
		almostEqual(t, c)
	})
}
