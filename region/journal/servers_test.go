//go:build servers

package journal

import (
	"context"
	"crypto/rand"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/lockstep-tx/lockstep/coordinator/engine"
	"github.com/lockstep-tx/lockstep/coordinator/record"
	"github.com/lockstep-tx/lockstep/region/journal/sample"
)

func init() {
	databases["postgres"] = func(t testing.TB) string { return newDatabase(t, "LOCKSTEP_TEST_POSTGRES_URL") }
	databases["mysql"] = func(t testing.TB) string { return newDatabase(t, "LOCKSTEP_TEST_MYSQL_URL") }
}

// server connects to the server of a test without touching any tables.
func server(t testing.TB, raw string) *sql.DB {
	t.Helper()
	a, err := parseAddress(raw)
	if err != nil {
		t.Fatal(err)
	}
	j := &Journal{}
	if a.postgres != nil {
		err = j.openPostgres(context.Background(), a)
	} else {
		err = j.openMySQL(context.Background(), a)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { j.write.Close() })
	return j.write
}

// newDatabase makes a database on the server that the environment names, and drops it after the test.
func newDatabase(t testing.TB, variable string) string {
	t.Helper()
	raw := os.Getenv(variable)
	if raw == "" {
		t.Fatalf("%s is not set: `make test` sets it, or `make up` and then the file .dev/env", variable)
	}
	db := server(t, raw)
	name := "journal_test_" + strings.ToLower(rand.Text()[:12])
	if _, err := db.Exec("CREATE DATABASE " + name); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		force := ""
		if strings.HasPrefix(raw, "postgres") {
			force = " WITH (FORCE)"
		}
		if _, err := db.Exec("DROP DATABASE " + name + force); err != nil {
			t.Error(err)
		}
	})
	u, err := url.Parse(raw)
	if err != nil {
		t.Fatal(err)
	}
	u.Path = "/" + name
	return u.String()
}

func onServers(t *testing.T, run func(t *testing.T, url string)) {
	for _, name := range []string{"postgres", "mysql"} {
		t.Run(name, func(t *testing.T) { run(t, databases[name](t)) })
	}
}

// proxy stands between the journal and its server, and can be cut as if the server were restarted.
type proxy struct {
	addr, to string
	mu       sync.Mutex
	listener net.Listener
	conns    []net.Conn
}

func newProxy(t *testing.T, to string) *proxy {
	p := &proxy{addr: "127.0.0.1:0", to: to}
	p.up(t)
	t.Cleanup(p.down)
	return p
}

func (p *proxy) up(t *testing.T) {
	l, err := net.Listen("tcp", p.addr)
	if err != nil {
		t.Fatal(err)
	}
	p.mu.Lock()
	p.listener, p.addr = l, l.Addr().String()
	p.mu.Unlock()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			s, err := net.Dial("tcp", p.to)
			if err != nil {
				c.Close()
				continue
			}
			p.mu.Lock()
			p.conns = append(p.conns, c, s)
			p.mu.Unlock()
			for _, pair := range [][2]net.Conn{{c, s}, {s, c}} {
				go func() {
					_, _ = io.Copy(pair[0], pair[1])
					pair[0].Close()
				}()
			}
		}
	}()
}

func (p *proxy) down() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.listener.Close()
	for _, c := range p.conns {
		c.Close()
	}
	p.conns = nil
}

func through(t *testing.T, raw string) (*proxy, string) {
	u, err := url.Parse(raw)
	if err != nil {
		t.Fatal(err)
	}
	p := newProxy(t, u.Host)
	u.Host = p.addr
	return p, u.String()
}

func TestJournalGoesOnAfterItsServerCameBack(t *testing.T) {
	onServers(t, func(t *testing.T, raw string) {
		p, cut := through(t, raw)
		j := open(t, cut)
		rows := payments("r", 600)
		for round := range 3 {
			part := rows[round*200 : (round+1)*200]
			mustAppend(t, j, part[:100]...)
			p.down()
			ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
			if err := j.Append(ctx, part[100:]); err == nil {
				t.Error("appended without a server")
			}
			if _, err := j.Get(ctx, part[0].Gid); err == nil {
				t.Error("read without a server")
			}
			cancel()
			p.up(t)
			// What a coordinator does: the same batch again until it is taken.
			deadline := time.Now().Add(10 * time.Second)
			for err := j.Append(context.Background(), part[100:]); err != nil; err = j.Append(context.Background(), part[100:]) {
				if time.Now().After(deadline) {
					t.Fatal(err)
				}
				time.Sleep(50 * time.Millisecond)
			}
		}
		if got := listed(t, j, engine.Filter{Slot: -1}, 100, 0); len(got) != len(rows) {
			t.Fatalf("%d are listed, want %d", len(got), len(rows))
		}
	})
}

// A connection is cut while batches are under way: each is there or is not.
func TestBatchesAreWholeWhenTheConnectionBreaks(t *testing.T) {
	onServers(t, func(t *testing.T, raw string) {
		p, cut := through(t, raw)
		j, direct := open(t, cut), open(t, raw)
		for round := range 15 {
			prefix := fmt.Sprintf("b%02d-", round)
			rows := payments(prefix, 3000) // three statements in a transaction
			done := make(chan error, 1)
			go func() { done <- j.Append(context.Background(), rows) }()
			time.Sleep(time.Duration(round) * 4 * time.Millisecond)
			p.down()
			err := <-done
			// The server may still be at it.
			deadline := time.Now().Add(5 * time.Second)
			n := -1
			for n != 0 && n != len(rows) && time.Now().Before(deadline) {
				n = len(listed(t, direct, engine.Filter{Slot: -1, GidPrefix: prefix}, 5000, 0))
			}
			if n != len(rows) && (n != 0 || err == nil) {
				t.Fatalf("round %d: %d of %d rows after %v", round, n, len(rows), err)
			}
			p.up(t)
		}
	})
}

func TestMissingRightsAreNamed(t *testing.T) {
	onServers(t, func(t *testing.T, raw string) {
		u, err := url.Parse(raw)
		if err != nil {
			t.Fatal(err)
		}
		db := server(t, raw)
		user := "jt_" + strings.ToLower(rand.Text()[:8])
		do := func(statements ...string) {
			t.Helper()
			for _, s := range statements {
				if _, err := db.Exec(s); err != nil {
					t.Fatalf("%s: %v", s, err)
				}
			}
		}
		database := strings.TrimPrefix(u.Path, "/")
		postgres := u.Scheme == "postgres"
		if postgres {
			do("CREATE ROLE "+user+" LOGIN PASSWORD 'S3cr3t-1'", "REVOKE CREATE ON SCHEMA public FROM PUBLIC")
			defer do("DROP OWNED BY "+user, "DROP ROLE "+user)
		} else {
			do("CREATE USER "+user+"@'%' IDENTIFIED BY 'S3cr3t-1'", "GRANT SELECT ON "+database+".* TO "+user+"@'%'")
			defer do("DROP USER " + user + "@'%'")
		}
		refused := func(password string, wants ...string) {
			t.Helper()
			u.User = url.UserPassword(user, password)
			_, err := Open(context.Background(), u.String())
			if err == nil || strings.Contains(err.Error(), password) {
				t.Fatalf("%v", err)
			}
			for _, want := range wants {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("%q is not in: %v", want, err)
				}
			}
		}
		refused("S3cr3t-wrong", "cannot be opened", user)
		refused("S3cr3t-1", "may not make the tables")
		open(t, raw) // makes them
		refused("S3cr3t-1", "lockstep_journal")
		grants := []string{"SELECT", "INSERT", "UPDATE", "DELETE"}
		for i, grant := range grants {
			if postgres {
				do("GRANT " + grant + " ON lockstep_journal, lockstep_journal_version TO " + user)
			} else {
				do("GRANT " + grant + " ON " + database + ".lockstep_journal TO " + user + "@'%'")
			}
			if i < len(grants)-1 {
				refused("S3cr3t-1", []string{"insert into", "update", "delete from"}[i], "needs SELECT, INSERT, UPDATE and DELETE")
			}
		}
		// Without the right to make tables it does its work on those that are there.
		mustAppend(t, open(t, u.String()), payments("x", 10)...)
	})
}

func TestServerThatDoesNotSyncIsRefused(t *testing.T) {
	raw := databases["mysql"](t)
	var name string
	if err := server(t, raw).QueryRow("SHOW VARIABLES LIKE 'innodb_flush_log_at_trx_commit'").Scan(&name, new(int)); err != nil {
		t.Fatalf("%s: the server knows no such setting: %v", flushSetting, err)
	}
	mustAppend(t, open(t, raw), payments("y", 1)...) // as the server is
	defer func(was string) { flushSetting = was }(flushSetting)
	flushSetting = "SELECT 2"
	_, err := Open(context.Background(), raw)
	if err == nil || !strings.Contains(err.Error(), "innodb_flush_log_at_trx_commit=2") {
		t.Fatal(err)
	}
	mustAppend(t, open(t, raw+"?durability=server"), payments("x", 1)...)
}

func TestAsynchronousCommitIsSwitchedOn(t *testing.T) {
	raw := databases["postgres"](t)
	u, _ := url.Parse(raw)
	if _, err := server(t, raw).Exec("ALTER DATABASE " + strings.TrimPrefix(u.Path, "/") + " SET synchronous_commit = off"); err != nil {
		t.Fatal(err)
	}
	for options, want := range map[string]string{"": "on", "&durability=server": "off"} {
		var got string
		if err := open(t, raw+options).write.QueryRow("SHOW synchronous_commit").Scan(&got); err != nil || got != want {
			t.Errorf("%q: synchronous_commit is %s, %v", options, got, err)
		}
	}
}

func TestDeadlocksAreRetried(t *testing.T) {
	onServers(t, func(t *testing.T, raw string) {
		j := open(t, raw)
		n := 0
		err := j.retry(context.Background(), func(int) error {
			if n++; n < 4 {
				return deadlock(t, j)
			}
			return nil
		})
		if err != nil || n != 4 {
			t.Fatalf("%d attempts, %v", n, err)
		}
		n = 0
		if err := j.retry(context.Background(), func(int) error { n++; return errors.New("other") }); err == nil || n != 1 {
			t.Fatalf("%d attempts, %v", n, err)
		}
	})
}

// deadlock makes the server find one, and gives its error.
func deadlock(t *testing.T, j *Journal) error {
	rows := payments("d", 2)
	mustAppend(t, j, rows...)
	lock := func(tx *sql.Tx, i int) error {
		_, err := tx.Exec(j.d.bind("UPDATE lockstep_journal SET slot = slot + 1 WHERE gid = ?"), []byte(rows[i].Gid))
		return err
	}
	var txs [2]*sql.Tx
	for i := range txs {
		tx, err := j.write.Begin()
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = tx.Rollback() }()
		if err := lock(tx, i); err != nil {
			t.Fatal(err)
		}
		txs[i] = tx
	}
	errs := make(chan error, 2)
	for i, tx := range txs {
		go func() {
			err := lock(tx, 1-i)
			_ = tx.Rollback()
			errs <- err
		}()
	}
	return errors.Join(<-errs, <-errs)
}

// TestABatchThatCannotBeWrittenHoldsUpNoOther: another process holds the watermark of one slot. The batches that came with it
// are written when the shared transaction has been given up, and those that come later at once.
func TestABatchThatCannotBeWrittenHoldsUpNoOther(t *testing.T) {
	onServers(t, func(t *testing.T, url string) {
		t.Parallel()
		j := open(t, url)
		ctx := t.Context()
		a := j.Applier(ApplyConfig{Own: 1})
		makers := make([]sample.Maker, 6)
		next := func(part, from int) Batch {
			makers[part].Epoch = 102
			rows := inSlot(&makers[part], fmt.Sprint("tag", part), from, 5)
			return Batch{Origin: 2, Part: part, Offset: int64(from + 5), Events: chainOfRows(rows)}
		}
		const held = 3
		var all []record.Event // of the slot that is held
		for part := range makers {
			b := next(part, 0)
			apply(t, a, b)
			if part == held {
				all = b.Events
			}
		}
		stuck := next(held, 5)
		hold, err := j.write.BeginTx(ctx, nil)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = hold.Rollback() }()
		if _, err := hold.ExecContext(ctx, j.d.bind("UPDATE lockstep_watermark SET updated_at = 1 WHERE origin = 2 AND slot = ?"), stuck.Events[0].Slot); err != nil {
			t.Fatal(err)
		}
		var others sync.WaitGroup
		done := make(chan error, 1)
		go func() { _, err := a.Apply(ctx, stuck); done <- err }() // it may be alone, or in the others' company
		for round := range 2 {
			limit := turnShared + 3*time.Second
			if round == 1 {
				limit = turnShared - 500*time.Millisecond // by now it is by itself: nobody waits for it
			}
			start := time.Now()
			for part := range makers {
				if part == held {
					continue
				}
				b := next(part, 5+5*round)
				others.Go(func() {
					if res, err := a.Apply(ctx, b); err != nil || res.Applied != len(b.Events) || time.Since(start) > limit {
						t.Errorf("round %d, part %d: %d events after %v, %v", round, b.Part, res.Applied, time.Since(start), err)
					}
				})
			}
			others.Wait()
		}
		select {
		case err := <-done:
			t.Fatalf("its watermark is held, and it was answered: %v", err)
		default:
		}
		if err := hold.Rollback(); err != nil {
			t.Fatal(err)
		}
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		mustRead(t, j, 2, append(all, stuck.Events...))
	})
}
