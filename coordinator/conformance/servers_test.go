//go:build servers

package conformance

import (
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/url"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/dtm-labs/dtm/client/dtmcli"
	"github.com/dtm-labs/dtm/client/dtmcli/dtmimp"
	"github.com/go-resty/resty/v2"
	_ "github.com/go-sql-driver/mysql"
	"github.com/jackc/pgx/v5/stdlib"

	rig "github.com/lockstep-tx/lockstep/coordinator/dtmwire/dtmwiretest"
)

// DTM's SDK opens PostgreSQL as "postgres" and begins and prepares its XA transaction by bare statements on a pool; pgx
// would discard a connection that goes back with a transaction open.
func init() { sql.Register("postgres", bareDriver{}) }

type bareDriver struct{}

func (bareDriver) Open(dsn string) (driver.Conn, error) {
	c, err := stdlib.GetDefaultDriver().Open(dsn)
	if err != nil {
		return nil, err
	}
	return bareConn{c.(full)}, nil
}

// full is what a connection can beside being reset.
type full interface {
	driver.Conn
	driver.ConnBeginTx
	driver.ExecerContext
	driver.QueryerContext
	driver.ConnPrepareContext
	driver.NamedValueChecker
}

type bareConn struct{ full }

// database is one server as DTM's SDK and the test see it.
type database struct {
	name string
	conf dtmcli.DBConf
	db   *sql.DB
	// accounts is the test's own table.
	accounts string
	// open lists the prepared transactions of the server.
	open func(t *testing.T) string
}

// databases connects to both servers and makes DTM's barrier table and one of ours.
func databases(t *testing.T) []*database {
	t.Helper()
	var out []*database
	for _, e := range []struct{ name, env string }{{"postgres", "LOCKSTEP_TEST_POSTGRES_URL"}, {"mysql", "LOCKSTEP_TEST_MYSQL_URL"}} {
		u, err := url.Parse(os.Getenv(e.env))
		if err != nil || u.Host == "" {
			t.Fatalf("%s names no server (%v): run `make up` and set what .dev/env says, or `bin/devctl run -- go test -tags servers ./coordinator/conformance`", e.env, err)
		}
		port, err := strconv.ParseInt(u.Port(), 10, 64)
		noErr(t, err)
		password, _ := u.User.Password()
		d := &database{name: e.name, accounts: fmt.Sprintf("conformance_%08x", rand.Uint32()), conf: dtmcli.DBConf{
			Driver: e.name, Host: u.Hostname(), Port: port, User: u.User.Username(), Password: password, Db: strings.TrimPrefix(u.Path, "/"), Schema: "public",
		}}
		d.db, err = dtmimp.StandaloneDB(d.conf)
		noErr(t, err)
		t.Cleanup(func() { d.db.Close() })
		d.prepare(t)
		out = append(out, d)
	}
	return out
}

func (d *database) prepare(t *testing.T) {
	t.Helper()
	barrier := map[string][]string{
		"postgres": {`CREATE SCHEMA IF NOT EXISTS dtm_barrier`, `CREATE TABLE IF NOT EXISTS dtm_barrier.barrier (
			id bigserial PRIMARY KEY, trans_type varchar(45) DEFAULT '', gid varchar(128) DEFAULT '', branch_id varchar(128) DEFAULT '', op varchar(45) DEFAULT '',
			barrier_id varchar(45) DEFAULT '', reason varchar(45) DEFAULT '', create_time timestamp(0) with time zone, update_time timestamp(0) with time zone,
			CONSTRAINT uniq_barrier UNIQUE (gid, branch_id, op, barrier_id))`},
		"mysql": {`CREATE DATABASE IF NOT EXISTS dtm_barrier`, `CREATE TABLE IF NOT EXISTS dtm_barrier.barrier (
			id bigint(22) PRIMARY KEY AUTO_INCREMENT, trans_type varchar(45) DEFAULT '', gid varchar(128) DEFAULT '', branch_id varchar(128) DEFAULT '', op varchar(45) DEFAULT '',
			barrier_id varchar(45) DEFAULT '', reason varchar(45) DEFAULT '', create_time datetime DEFAULT now(), update_time datetime DEFAULT now(),
			UNIQUE KEY uniq (gid, branch_id, op, barrier_id)) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4`},
	}
	for _, q := range append(barrier[d.name],
		`CREATE TABLE `+d.accounts+` (name varchar(20) PRIMARY KEY, balance bigint NOT NULL, frozen bigint NOT NULL)`,
		`INSERT INTO `+d.accounts+` VALUES ('alice', 100, 0), ('bob', 100, 0)`) {
		_, err := d.db.Exec(q)
		noErr(t, err)
	}
	t.Cleanup(func() { _, _ = d.db.Exec(`DROP TABLE ` + d.accounts) })
	d.open = func(t *testing.T) string {
		t.Helper()
		query := map[string]string{"postgres": `SELECT gid FROM pg_prepared_xacts`, "mysql": `XA RECOVER`}[d.name]
		rows, err := d.db.Query(query)
		noErr(t, err)
		defer rows.Close()
		var all []string
		for rows.Next() {
			var a, b, c, gid string
			if d.name == "postgres" {
				err = rows.Scan(&gid)
			} else {
				err = rows.Scan(&a, &b, &c, &gid)
			}
			noErr(t, err)
			all = append(all, gid)
		}
		return strings.Join(all, ",")
	}
}

// eachDatabase runs a scenario on both servers, one after the other: which database is meant is a global of DTM's SDK.
func eachDatabase(t *testing.T, scenario func(t *testing.T, d *database, r *rig.Rig, p *rig.Participant, gid string)) {
	for _, d := range databases(t) {
		t.Run(d.name, func(t *testing.T) {
			dtmcli.SetCurrentDBType(d.name)
			r := rig.Start(t, rig.Options{})
			scenario(t, d, r, rig.NewParticipant(t), newGid(r))
		})
	}
}

// add changes an account's balance and what is frozen on it.
func (d *database) add(tx dtmcli.DB, name string, balance, frozen int) error {
	_, err := tx.Exec(fmt.Sprintf(`UPDATE %s SET balance = balance + %d, frozen = frozen + %d WHERE name = '%s'`, d.accounts, balance, frozen, name))
	return err
}

// want checks both accounts: balance and frozen of alice, then of bob.
func (d *database) want(t *testing.T, numbers ...int) {
	t.Helper()
	var got [4]int
	for i, name := range []string{"alice", "bob"} {
		noErr(t, d.db.QueryRow(`SELECT balance, frozen FROM `+d.accounts+` WHERE name = '`+name+`'`).Scan(&got[2*i], &got[2*i+1]))
	}
	if got != [4]int(numbers) {
		t.Errorf("the accounts hold %v, want %v", got, numbers)
	}
}

// answer puts an error of the barrier's into a participant's answer.
func answer(err error) rig.Answer {
	switch {
	case err == nil:
		return rig.Success
	case errors.Is(err, dtmcli.ErrFailure):
		return rig.Failure
	}
	return rig.Answer{Status: 500, Body: err.Error()}
}

// guarded runs f behind the barrier of a call.
func (d *database) guarded(c rig.Call, f func(tx *sql.Tx) error) rig.Answer {
	bb, err := dtmcli.BarrierFromQuery(c.Query)
	if err == nil {
		err = bb.CallWithDB(d.db, f)
	}
	return answer(err)
}

// message is a message from alice to bob whose sender and receiver share the database.
func (d *database) newMsg(r *rig.Rig, p *rig.Participant, gid string) *dtmcli.Msg {
	p.AlwaysDo("00", "msg", func(c rig.Call) rig.Answer {
		bb, err := dtmcli.BarrierFromQuery(c.Query)
		if err == nil {
			err = bb.QueryPrepared(d.db)
		}
		return answer(err)
	})
	p.AlwaysDo("01", "action", func(c rig.Call) rig.Answer {
		return d.guarded(c, func(tx *sql.Tx) error { return d.add(tx, "bob", 30, 0) })
	})
	m := dtmcli.NewMsg(r.DTM, gid).Add(p.HTTP("in"), thirty)
	m.WaitResult = true
	return m
}

func (d *database) pay(tx *sql.Tx) error { return d.add(tx, "alice", -30, 0) }

// Section 6: DoAndSubmit commits the local transaction and the message together.
func TestServersMsgDoAndSubmitDelivers(t *testing.T) {
	eachDatabase(t, func(t *testing.T, d *database, r *rig.Rig, p *rig.Participant, gid string) {
		noErr(t, d.newMsg(r, p, gid).DoAndSubmitDB(p.HTTP("query"), d.db, d.pay))
		d.want(t, 70, 0, 130, 0)
		wantEnd(t, r, gid, succeed, succeed)
	})
}

func TestServersMsgRefusedLocallyIsNotDelivered(t *testing.T) {
	eachDatabase(t, func(t *testing.T, d *database, r *rig.Rig, p *rig.Participant, gid string) {
		err := d.newMsg(r, p, gid).DoAndSubmitDB(p.HTTP("query"), d.db, func(tx *sql.Tx) error { return errors.Join(d.pay(tx), dtmcli.ErrFailure) })
		if !errors.Is(err, dtmcli.ErrFailure) {
			t.Errorf("error is %v", err)
		}
		r.Await(gid, failed)
		d.want(t, 100, 0, 100, 0)
	})
}

// The sender dies after its local commit: the check-back finds the row and the message is delivered.
func TestServersMsgCheckBackDeliversWhatWasCommitted(t *testing.T) {
	eachDatabase(t, func(t *testing.T, d *database, r *rig.Rig, p *rig.Participant, gid string) {
		noErr(t, d.newMsg(r, p, gid).Prepare(p.HTTP("query")))
		bb, err := dtmcli.BarrierFrom("msg", gid, "00", "msg")
		noErr(t, err)
		noErr(t, bb.CallWithDB(d.db, d.pay))
		r.Advance(36 * time.Second)
		r.Await(gid, succeed)
		d.want(t, 70, 0, 130, 0)
	})
}

// The sender dies before its local commit: the check-back forbids it for ever.
func TestServersMsgCheckBackForbidsALateCommit(t *testing.T) {
	eachDatabase(t, func(t *testing.T, d *database, r *rig.Rig, p *rig.Participant, gid string) {
		noErr(t, d.newMsg(r, p, gid).Prepare(p.HTTP("query")))
		r.Advance(36 * time.Second)
		r.Await(gid, failed)
		bb, err := dtmcli.BarrierFrom("msg", gid, "00", "msg")
		noErr(t, err)
		if err := bb.CallWithDB(d.db, d.pay); !errors.Is(err, dtmimp.ErrDuplicated) {
			t.Errorf("the late local transaction ended %v", err)
		}
		d.want(t, 100, 0, 100, 0)
	})
}

// xaBranches makes the participant a holder of both accounts with XA.
func (d *database) xaBranches(p *rig.Participant, second error) {
	p.AlwaysDo("*", "*", func(c rig.Call) rig.Answer {
		return answer(dtmcli.XaLocalTransaction(c.Query, d.conf, func(db *sql.DB, _ *dtmcli.Xa) error {
			if c.Branch == "01" {
				return d.add(db, "alice", -30, 0)
			}
			return errors.Join(d.add(db, "bob", 30, 0), second)
		}))
	})
}

func (d *database) xa(r *rig.Rig, p *rig.Participant, gid string, then func() error) error {
	return dtmcli.XaGlobalTransaction(r.DTM, gid, func(x *dtmcli.Xa) (*resty.Response, error) {
		if resp, err := x.CallBranch(thirty, p.HTTP("xa")); err != nil {
			return resp, err
		}
		if _, err := x.CallBranch(thirty, p.HTTP("xa")); err != nil {
			return nil, err
		}
		return nil, then()
	})
}

// Section 12, with prepared transactions of the servers' own.
func TestServersXACommits(t *testing.T) {
	eachDatabase(t, func(t *testing.T, d *database, r *rig.Rig, p *rig.Participant, gid string) {
		d.xaBranches(p, nil)
		noErr(t, d.xa(r, p, gid, func() error {
			d.want(t, 100, 0, 100, 0)
			if open := d.open(t); !strings.Contains(open, gid+"-01") || !strings.Contains(open, gid+"-02") {
				t.Errorf("prepared are %q", open)
			}
			return nil
		}))
		r.Await(gid, succeed)
		wantEnd(t, r, gid, succeed, prepared, succeed, prepared, succeed)
		d.want(t, 70, 0, 130, 0)
		if open := d.open(t); strings.Contains(open, gid) {
			t.Errorf("left prepared: %q", open)
		}
		// A commit that comes again finds nothing and is done.
		if a := p.Calls(gid, "01", "commit"); len(a) != 1 {
			t.Errorf("%d commits", len(a))
		}
		noErr(t, dtmcli.XaLocalTransaction(p.Calls(gid, "01", "commit")[0].Query, d.conf, nil))
	})
}

func TestServersXARollsBack(t *testing.T) {
	eachDatabase(t, func(t *testing.T, d *database, r *rig.Rig, p *rig.Participant, gid string) {
		d.xaBranches(p, nil)
		wantErr(t, d.xa(r, p, gid, func() error { return errors.New("no") }), "no")
		r.Await(gid, failed)
		wantEnd(t, r, gid, failed, succeed, prepared, succeed, prepared)
		d.want(t, 100, 0, 100, 0)
		if open := d.open(t); strings.Contains(open, gid) {
			t.Errorf("left prepared: %q", open)
		}
	})
}

func TestServersXARefusedBranchRollsTheOtherBack(t *testing.T) {
	eachDatabase(t, func(t *testing.T, d *database, r *rig.Rig, p *rig.Participant, gid string) {
		d.xaBranches(p, dtmcli.ErrFailure)
		wantErr(t, d.xa(r, p, gid, func() error { return nil }), "FAILURE")
		r.Await(gid, failed)
		d.want(t, 100, 0, 100, 0)
		if open := d.open(t); strings.Contains(open, gid) {
			t.Errorf("left prepared: %q", open)
		}
	})
}

// tccBranches makes the participant hold the accounts with try, confirm and cancel behind the barrier.
func (d *database) tccBranches(p *rig.Participant) {
	p.AlwaysDo("*", "try", func(c rig.Call) rig.Answer {
		return d.guarded(c, func(tx *sql.Tx) error { return d.add(tx, account(c), 0, 30) })
	})
	p.AlwaysDo("*", "confirm", func(c rig.Call) rig.Answer {
		return d.guarded(c, func(tx *sql.Tx) error {
			return d.add(tx, account(c), map[string]int{"alice": -30, "bob": 30}[account(c)], -30)
		})
	})
	p.AlwaysDo("*", "cancel", func(c rig.Call) rig.Answer {
		return d.guarded(c, func(tx *sql.Tx) error { return d.add(tx, account(c), 0, -30) })
	})
}

func account(c rig.Call) string { return map[string]string{"01": "alice", "02": "bob"}[c.Branch] }

// Section 11: the barrier absorbs what is repeated.
func TestServersTCCWithTheBarrierTakesEffectOnce(t *testing.T) {
	eachDatabase(t, func(t *testing.T, d *database, r *rig.Rig, p *rig.Participant, gid string) {
		d.tccBranches(p)
		// The answer of alice's first confirm is lost: it took effect and is repeated.
		p.OnceDo("01", "confirm", func(c rig.Call) rig.Answer {
			d.guarded(c, func(tx *sql.Tx) error { return d.add(tx, "alice", -30, -30) })
			return rig.Reset
		})
		noErr(t, tccClients[0].run(r, p, gid, plain, twoBranches))
		r.PassOver(gid)
		r.Advance(errorPause)
		r.Await(gid, succeed)
		if n := p.Count(gid, "01", "confirm"); n != 2 {
			t.Errorf("%d confirms", n)
		}
		d.want(t, 70, 0, 130, 0)
	})
}

// A branch whose try never ran is cancelled too; its late try is absorbed.
func TestServersTCCEmptyCancelAndLateTry(t *testing.T) {
	eachDatabase(t, func(t *testing.T, d *database, r *rig.Rig, p *rig.Participant, gid string) {
		d.tccBranches(p)
		late := func(c rig.Call) rig.Answer {
			return d.guarded(c, func(tx *sql.Tx) error { return d.add(tx, "bob", 0, 30) })
		}
		p.Once("02", "try", rig.Failure) // it never reaches the business
		wantErr(t, tccClients[0].run(r, p, gid, setWait, twoBranches), "FAILURE")
		r.Await(gid, failed)
		d.want(t, 100, 0, 100, 0)
		if a := late(p.Calls(gid, "02", "try")[0]); a.Status != 0 {
			t.Errorf("the late try answered %+v", a)
		}
		d.want(t, 100, 0, 100, 0)
	})
}
