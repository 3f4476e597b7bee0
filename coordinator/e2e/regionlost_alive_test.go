package e2e

import (
	"context"
	"database/sql"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/lockstep-tx/lockstep/coordinator/api/client"
	"github.com/lockstep-tx/lockstep/region/slot"
)

// links are TCP connections that can be cut and mended, all at once.
type links struct {
	t    *testing.T
	mu   sync.Mutex
	cut  bool
	open map[net.Conn]bool
}

// to listens for connections to an address.
func (l *links) to(addr string) string {
	l.t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		l.t.Fatal(err)
	}
	l.t.Cleanup(func() { ln.Close(); l.set(true) })
	go func() {
		for {
			in, err := ln.Accept()
			if err != nil {
				return
			}
			go l.carry(in, addr)
		}
	}()
	return ln.Addr().String()
}

func (l *links) carry(in net.Conn, addr string) {
	defer in.Close()
	out, err := net.Dial("tcp", addr)
	if err != nil {
		return
	}
	defer out.Close()
	l.mu.Lock()
	cut := l.cut
	if !cut {
		l.open[in], l.open[out] = true, true
	}
	l.mu.Unlock()
	if cut {
		return
	}
	go func() { _, _ = io.Copy(out, in); out.Close() }() // until one side ends
	_, _ = io.Copy(in, out)
	l.mu.Lock()
	delete(l.open, in)
	delete(l.open, out)
	l.mu.Unlock()
}

func (l *links) set(cut bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.cut = cut
	for c := range l.open {
		if cut {
			c.Close()
		}
	}
}

// late are the gids of events that a region has in its divergence record.
func (d *deployment) late(region string) string {
	resp, err := http.Get("http://" + d.coord[region].addr.Admin + "/v1/region/divergence?limit=1000")
	if err != nil {
		return err.Error()
	}
	return readAll(d.t, resp)
}

// bothWays lists branches that have a confirm and a cancel in a wallet's database, whatever region decided them.
func (d *deployment) bothWays(region string) (both []string, rows int) {
	d.t.Helper()
	db, err := sql.Open("sqlite", "file:"+filepath.Join(d.dir, region+".db")+"?mode=ro&_pragma=busy_timeout(5000)")
	if err != nil {
		d.t.Fatal(err)
	}
	defer db.Close()
	var table string
	if err := db.QueryRow("SELECT name FROM sqlite_master WHERE type = 'table' AND sql LIKE '%uniq_barrier%'").Scan(&table); err != nil {
		d.t.Fatal(err)
	}
	if err := db.QueryRow("SELECT count(*) FROM " + table + " WHERE op = reason AND op IN ('confirm', 'cancel')").Scan(&rows); err != nil {
		d.t.Fatal(err)
	}
	list, err := db.Query("SELECT gid || ' ' || branch_id FROM " + table + " WHERE op = reason AND op IN ('confirm', 'cancel') GROUP BY gid, branch_id HAVING count(DISTINCT op) > 1")
	if err != nil {
		d.t.Fatal(err)
	}
	defer list.Close()
	for list.Next() {
		var s string
		if err := list.Scan(&s); err != nil {
			d.t.Fatal(err)
		}
		both = append(both, s)
	}
	if err := list.Err(); err != nil {
		d.t.Fatal(err)
	}
	return both, rows
}

// TestALostRegionThatIsAliveGoesOnAndHears takes the slots of a region that only the arbiter does not hear: it decides, pays and
// sends on, until it hears what has become of its slots.
func TestALostRegionThatIsAliveGoesOnAndHears(t *testing.T) {
	l := &links{t: t, open: map[net.Conn]bool{}}
	d := deploy(t, regionNames, l.to)
	d.level(20 * time.Second)
	owners, east, west := d.epochs(), d.coord["east"].client(), d.coord["west"].client()
	at, w := d.accounts.staying, d.accounts.west
	all := map[string]held{
		"committed": d.hold(east, "committed", at[0], at[0], w[0], 11, "regional", owners), // there, while it is in doubt here
		"aborted":   d.hold(east, "aborted", at[1], at[1], w[1], 13, "regional", owners),
		"forgotten": d.hold(east, "forgotten", at[2], at[2], w[2], 17, "regional", owners), // neither
		"global":    d.hold(east, "global", at[3], w[3], at[3], 19, "global", owners),
	}
	l.set(true)
	tool := d.failover("east", "west", "--may-spend", "--at-risk", "limit", "--cap", "1000")
	if code := tool.ended(60 * time.Second); code == 0 || !strings.Contains(tool.text(), "region east answers") {
		t.Fatalf("against a region that answers it ended with %d:\n%s", code, tool.text())
	}
	tool = d.failover("east", "west", "--may-spend", "--although-it-answers", "--at-risk", "limit", "--cap", "1000")
	if code := tool.ended(60 * time.Second); code != 0 {
		t.Fatalf("the failover ended with %d:\n%s", code, tool.text())
	}
	eventually(t, 30*time.Second, "what is regional is in doubt", func() bool { return len(d.inDoubt("west")) == 3 })

	// The lost region has heard of nothing.
	more := map[string]int64{}
	did := func(from, to string, n int64) { more[from] -= n; more[to] += n }
	var told []string
	for i := range 5 {
		tx := d.payment(fmt.Sprintf("late-%d", i), at[i], at[i], at[i+1], 20+i)
		s := persist(t, 20*time.Second, func(ctx context.Context) (client.State, error) { return east.Execute(ctx, tx, client.Settled) })
		if !s.Committed() {
			t.Fatalf("a payment in the lost region: %v %s", s.GetPhase(), s.GetReason())
		}
		did(at[i], at[i+1], int64(20+i))
		told = append(told, tx.Gid)
	}
	ask := func(name string, f func(context.Context) (client.State, error)) {
		t.Helper()
		if s, err := stubborn(f); err != nil {
			t.Fatalf("%s in the lost region: %v %v", name, s.GetPhase(), err)
		}
	}
	ask("committed", func(ctx context.Context) (client.State, error) {
		return east.Commit(ctx, all["committed"].tx.Gid, client.Decided)
	})
	ask("aborted", func(ctx context.Context) (client.State, error) {
		return east.Abort(ctx, all["aborted"].tx.Gid, "no", client.Decided)
	})
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	if s, err := east.Commit(ctx, all["global"].tx.Gid, client.Decided); err == nil {
		t.Errorf("a global transaction was decided without the arbiter: %v", s.GetPhase())
	}
	cancel()
	d.endedAs(all, map[string]bool{"global": false})
	// And the new owner pays from the same accounts.
	for i := range 3 {
		s := persist(t, 30*time.Second, func(ctx context.Context) (client.State, error) {
			return west.Execute(ctx, d.payment(fmt.Sprintf("new-%d", i), at[i], at[i], w[i], 30+i), client.Settled)
		})
		if !s.Committed() {
			t.Fatalf("a payment at the new owner: %v %s", s.GetPhase(), s.GetReason())
		}
		did(at[i], w[i], int64(30+i))
	}
	eventually(t, 30*time.Second, "what it sent late is in the divergence record", func() bool {
		record := d.late("west")
		for _, gid := range told {
			if !strings.Contains(record, gid) {
				return false
			}
		}
		return true
	})
	for _, gid := range told {
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		if s, err := west.Get(ctx, gid); err == nil && s.Committed() {
			t.Errorf("%s came past the seal and is %v at the new owner", gid, s.GetPhase())
		}
		cancel()
	}

	l.set(false)
	if n := d.settle(60 * time.Second); n < len(told) {
		t.Errorf("%d were settled by an operator, %d were committed in the lost region alone", n, len(told))
	}
	d.endedAs(all, map[string]bool{"committed": true, "aborted": false, "forgotten": false})
	did(all["committed"].from, all["committed"].to, all["committed"].amount)
	(&load{d: d, stop: func() {}}).end(30*time.Second, more)
	for _, r := range regionNames {
		both, rows := d.bothWays(r)
		if len(both) > 0 || rows < 10 {
			t.Errorf("%s's wallet has %d confirms and cancels, both of one branch: %v", r, rows, both)
		}
	}
	held := d.coord["east"].metric("lockstep_slots_held")
	for n, o := range d.epochs() {
		if o.Region != "west" || o.Status != slot.Active || o.Lost != 0 {
			t.Fatalf("slot %d after the return: %+v; east holds %v", n, o, held)
		}
	}
	// It hears requests again, and hands them over.
	s := persist(t, 20*time.Second, func(ctx context.Context) (client.State, error) { return east.Get(ctx, told[0]) })
	if !s.Committed() {
		t.Errorf("%s is %v, as the old region says now", told[0], s.GetPhase())
	}
}
