package e2e

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync/atomic"
	"time"

	"github.com/dtm-labs/dtm/client/dtmcli"
	"modernc.org/sqlite"

	"github.com/lockstep-tx/lockstep/coordinator/api/client"
)

// dtmOnSQLite lets DTM's barrier, which speaks MySQL's and PostgreSQL's, write to SQLite.
type dtmOnSQLite struct{ sqlite.Driver }

func (d *dtmOnSQLite) Open(name string) (driver.Conn, error) {
	c, err := d.Driver.Open(name)
	return dtmConn{c}, err
}

type dtmConn struct{ driver.Conn }

func (c dtmConn) Prepare(stmt string) (driver.Stmt, error) {
	return c.Conn.Prepare(strings.NewReplacer("insert ignore into", "INSERT OR IGNORE INTO", "dtm_barrier.barrier", "barrier").Replace(stmt))
}

func init() { sql.Register("dtm-sqlite", &dtmOnSQLite{}) }

// dtmShop is a participant as one writes it with DTM's SDK alone: its real barrier, no probe, no fence.
type dtmShop struct {
	d    *deployment
	db   *sql.DB
	shut atomic.Bool // it answers nobody
}

func (d *deployment) openDTMShop() *dtmShop {
	d.t.Helper()
	db, err := sql.Open("dtm-sqlite", "file:"+filepath.Join(d.dir, "shop.db"))
	if err != nil {
		d.t.Fatal(err)
	}
	db.SetMaxOpenConns(1)
	d.t.Cleanup(func() { db.Close() })
	for _, stmt := range []string{
		"CREATE TABLE barrier (trans_type TEXT, gid TEXT, branch_id TEXT, op TEXT, barrier_id TEXT, reason TEXT, CONSTRAINT uniq_barrier UNIQUE (gid, branch_id, op, barrier_id))",
		"CREATE TABLE did (gid TEXT, op TEXT)",
	} {
		if _, err := db.Exec(stmt); err != nil {
			d.t.Fatal(err)
		}
	}
	s := &dtmShop{d: d, db: db}
	srv := httptest.NewServer(http.HandlerFunc(s.serve))
	d.t.Cleanup(srv.Close)
	out, err := d.lockstep("participant", "set", "shop", "--context", d.file, "--endpoint", "east="+srv.URL+"/east,west="+srv.URL+"/west")
	if err != nil || !strings.Contains(out, "UNFENCED") {
		d.t.Fatalf("a participant of DTM's is registered: %v %s", err, out)
	}
	return s
}

func (s *dtmShop) serve(w http.ResponseWriter, r *http.Request) {
	if s.shut.Load() {
		w.WriteHeader(http.StatusServiceUnavailable)
		return
	}
	if strings.Contains(r.URL.Path, "/lockstep/") {
		http.NotFound(w, r)
		return
	}
	b, err := dtmcli.BarrierFromQuery(r.URL.Query())
	if err == nil {
		err = b.CallWithDB(s.db, func(tx *sql.Tx) error {
			_, err := tx.Exec("INSERT INTO did (gid, op) VALUES (?, ?)", b.Gid, b.Op)
			return err
		})
	}
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
	}
}

// hold begins a transaction that has one branch at the shop, at an account whose home is west, and tries it by the barrier.
func (s *dtmShop) hold(c *client.Client, name, at, account string, durability client.Durability) client.Tx {
	t := s.d.t
	t.Helper()
	url := func(op string) string { return "lockstep://shop/" + op }
	tx := client.Tx{Gid: "{" + at + "}shop-" + name, Branches: []client.Branch{{ID: "shop", Account: account, Confirm: url("confirm"), Cancel: url("cancel"), Payload: []byte(`{}`)}}}
	tx.Options.Timeout, tx.Options.Durability = 10*time.Minute, durability
	if _, err := stubborn(func(ctx context.Context) (client.State, error) { return c.Begin(ctx, tx) }); err != nil {
		t.Fatal(err)
	}
	rec := httptest.NewRecorder()
	s.serve(rec, httptest.NewRequest(http.MethodPost, "/west/try?trans_type=tcc&branch_id=shop&op=try&gid="+strings.NewReplacer("{", "%7B", "}", "%7D").Replace(tx.Gid), nil))
	if rec.Code != http.StatusOK {
		t.Fatalf("a try at the shop: %d %s", rec.Code, rec.Body)
	}
	return tx
}

// did is what a transaction did at the shop, in order.
func (s *dtmShop) did(gid string) string {
	s.d.t.Helper()
	rows, err := s.db.Query("SELECT op FROM did WHERE gid = ? ORDER BY rowid", gid)
	if err != nil {
		s.d.t.Fatal(err)
	}
	defer rows.Close()
	var ops []string
	for rows.Next() {
		var op string
		if err := rows.Scan(&op); err != nil {
			s.d.t.Fatal(err)
		}
		ops = append(ops, op)
	}
	if err := rows.Err(); err != nil {
		s.d.t.Fatal(err)
	}
	return strings.Join(ops, " ")
}

// ends waits until the shop's part of a transaction has ended so, and not otherwise.
func (s *dtmShop) ends(gid, op string) {
	s.d.t.Helper()
	eventually(s.d.t, 30*time.Second, gid+" ends at the shop in "+op, func() bool { return s.did(gid) == "try "+op })
}

// hang executes a global payment of which one branch hangs in its try, and waits until the wallet holds the others.
func (d *deployment) hang(c *client.Client, at, from, to string) held {
	d.t.Helper()
	const amount = 41
	done := make(chan struct{})
	gate := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		if r.URL.Query().Get("op") == "try" {
			select {
			case <-done:
			case <-r.Context().Done():
			}
		}
	}))
	d.t.Cleanup(func() { close(done); gate.Close() })
	tx := d.payment("hung", at, from, to, amount)
	tx.Options.Timeout, tx.Options.RequestTimeout, tx.Options.Durability = 10*time.Minute, 2*time.Minute, client.Global
	tx.Branches = append(tx.Branches, client.Branch{ID: "gate", Try: gate.URL, Confirm: gate.URL, Cancel: gate.URL, Payload: []byte(`{}`)})
	before, err := d.state("west")
	if err != nil {
		d.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() { defer close(ended); _, _ = c.Execute(ctx, tx, client.Decided) }() // it does not end
	d.t.Cleanup(func() { cancel(); <-ended })
	eventually(d.t, 20*time.Second, "the payment that hangs is tried", func() bool {
		st, err := d.state("west")
		return err == nil && st.Frozen["CNY"] == before.Frozen["CNY"]+amount && st.Open == before.Open+2
	})
	return held{tx, from, to, amount}
}
