package xa

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"time"
)

// every is how often the servers are looked at while payments run; a time that is measured so is right to about as much.
const every = 100 * time.Millisecond

// Seen is what was observed at a server over a window.
type Seen struct {
	WaitsMax  int           // sessions of the participants that waited for a lock at once
	WaitsMean float64       // over the looks
	Longest   time.Duration // that one prepared transaction (XA) or hold (TCC) stood, as far as the window saw it
}

// watch looks until stop is closed.
func (b *Bed) watch(ctx context.Context, p Protocol, stop <-chan struct{}) (Seen, error) {
	var seen Seen
	var looks, waits int
	since := map[string]time.Time{}
	ticks := time.NewTicker(every)
	defer ticks.Stop()
	for {
		now := time.Now()
		n, err := b.lockWaits(ctx)
		if err != nil {
			return seen, fmt.Errorf("lock waits: %w", err)
		}
		looks, waits, seen.WaitsMax = looks+1, waits+n, max(seen.WaitsMax, n)
		held, err := b.Held(ctx, p)
		if err != nil {
			return seen, fmt.Errorf("what is held: %w", err)
		}
		still := map[string]time.Time{}
		for _, id := range held {
			if still[id] = now; !since[id].IsZero() {
				still[id] = since[id]
			}
			seen.Longest = max(seen.Longest, now.Sub(still[id]))
		}
		since, seen.WaitsMean = still, float64(waits)/float64(looks)
		select {
		case <-stop:
			return seen, nil
		case <-ctx.Done():
			return seen, context.Cause(ctx)
		case <-ticks.C:
		}
	}
}

// lockWaits counts the participants' sessions that wait for a lock now.
func (b *Bed) lockWaits(ctx context.Context) (n int, err error) {
	query := `SELECT count(*) FROM pg_stat_activity WHERE datname IN ($1, $2) AND wait_event_type = 'Lock'`
	if b.driver == "mysql" {
		query = `SELECT count(*) FROM information_schema.innodb_trx t JOIN information_schema.processlist p ON p.id = t.trx_mysql_thread_id
			WHERE t.trx_state = 'LOCK WAIT' AND p.db IN (?, ?)`
	}
	err = b.server.QueryRowContext(ctx, query, b.buyers.conf.Db, b.merchants.conf.Db).Scan(&n)
	return n, err
}

// Held names what a protocol has open between its phases: XA's prepared transactions, by their XA ids, or TCC's holds.
func (b *Bed) Held(ctx context.Context, p Protocol) ([]string, error) {
	if p == XA {
		return b.prepared(ctx)
	}
	var all []string
	for _, s := range b.sides() {
		got, err := column(ctx, s.db, `SELECT gid FROM hold`, 1)
		if err != nil {
			return nil, err
		}
		for _, gid := range got {
			all = append(all, gid+" "+s.kind)
		}
	}
	return all, nil
}

func (b *Bed) prepared(ctx context.Context) ([]string, error) {
	query, columns := `SELECT gid FROM pg_prepared_xacts`, 1
	if b.driver == "mysql" {
		query, columns = `XA RECOVER`, 4
	}
	all, err := column(ctx, b.server, query, columns)
	var ours []string
	for _, id := range all {
		if strings.HasPrefix(id, b.prefix) {
			ours = append(ours, id)
		}
	}
	return ours, err
}

// orphans counts the transactions of the whole server that are prepared, belong to no session, and are in no XA RECOVER:
// MariaDB's alone can be so. Nobody can end them before the server has started again.
func (b *Bed) orphans(ctx context.Context) (int, error) {
	if b.driver != "mysql" {
		return 0, nil
	}
	listed, err := column(ctx, b.server, `XA RECOVER`, 4)
	if err != nil {
		return 0, err
	}
	n := 0
	err = b.server.QueryRowContext(ctx, `SELECT count(*) FROM information_schema.innodb_trx WHERE trx_mysql_thread_id = 0`).Scan(&n)
	return max(n-len(listed)-b.lost, 0), err
}

// left is how many transactions are still held, those included that nobody can see.
func (b *Bed) left(ctx context.Context, p Protocol, limit time.Duration) (int, error) {
	held, err := b.settled(ctx, p, limit)
	if err != nil {
		return 0, err
	}
	wait(ctx, 5*every) // InnoDB keeps what it last said of its transactions for 100 ms
	lost, err := b.orphans(ctx)
	return len(held) + lost, err
}

// column reads the last of so many columns.
func column(ctx context.Context, db *sql.DB, query string, columns int) (all []string, err error) {
	rows, err := db.QueryContext(ctx, query)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	for rows.Next() {
		into := make([]any, columns)
		for i := range into {
			into[i] = new(string)
		}
		if err := rows.Scan(into...); err != nil {
			return nil, err
		}
		all = append(all, *into[columns-1].(*string))
	}
	return all, rows.Err()
}

// Locked counts the accounts whose rows somebody has locked.
func (b *Bed) Locked(ctx context.Context) (int, error) {
	locked := 0
	for _, s := range b.sides() {
		tx, err := s.db.BeginTx(ctx, nil)
		if err != nil {
			return 0, err
		}
		free := 0
		rows, err := tx.QueryContext(ctx, `SELECT id FROM account FOR UPDATE SKIP LOCKED`)
		if err == nil {
			for rows.Next() {
				free++
			}
			err = errors.Join(rows.Err(), rows.Close())
		}
		if err := errors.Join(err, tx.Rollback()); err != nil {
			return 0, err
		}
		locked += s.n - free
	}
	return locked, nil
}

// settled waits until nothing is held, at most so long, and returns what is still held then.
func (b *Bed) settled(ctx context.Context, p Protocol, limit time.Duration) ([]string, error) {
	for deadline := time.Now().Add(limit); ; {
		held, err := b.Held(ctx, p)
		if err != nil || len(held) == 0 || time.Now().After(deadline) {
			return held, err
		}
		select {
		case <-time.After(every):
		case <-ctx.Done():
			return held, context.Cause(ctx)
		}
	}
}

// finish does what a person would: it asks the coordinator what became of each prepared transaction and does the same
// with it. One that the coordinator has not decided either is left, as an error.
func (b *Bed) finish(ctx context.Context, coordinator string) error {
	all, err := b.prepared(ctx)
	if err != nil {
		return err
	}
	var errs []error
	for _, id := range all {
		gid := id[:strings.LastIndexByte(id, '-')]
		status, err := b.status(ctx, coordinator, gid)
		switch {
		case err != nil:
			errs = append(errs, err)
		case status == "succeed":
			errs = append(errs, b.end(ctx, "commit", id))
		case status == "failed":
			errs = append(errs, b.end(ctx, "rollback", id))
		default:
			errs = append(errs, fmt.Errorf("%s is prepared, and its transaction is %q", id, status))
		}
	}
	return errors.Join(errs...)
}

func (b *Bed) status(ctx context.Context, coordinator, gid string) (string, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, coordinator+"/query?gid="+url.QueryEscape(gid), nil)
	if err != nil {
		return "", err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	var got struct {
		Transaction struct {
			Status string `json:"status"`
		} `json:"transaction"`
	}
	return got.Transaction.Status, errors.Join(json.NewDecoder(resp.Body).Decode(&got), statusOf(resp))
}

func statusOf(resp *http.Response) error {
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("the coordinator answers %s", resp.Status)
	}
	return nil
}

// end ends one prepared transaction. PostgreSQL takes that only in its own database.
func (b *Bed) end(ctx context.Context, how, id string) error {
	if b.driver == "mysql" {
		_, err := b.server.ExecContext(ctx, "XA "+how+" '"+id+"'")
		return err
	}
	var name string
	if err := b.server.QueryRowContext(ctx, `SELECT database FROM pg_prepared_xacts WHERE gid = $1`, id).Scan(&name); err != nil {
		return err
	}
	for _, s := range b.sides() {
		if s.conf.Db == name {
			_, err := s.db.ExecContext(ctx, how+" prepared '"+id+"'")
			return err
		}
	}
	return fmt.Errorf("%s is prepared in %s, which is not a participant's", id, name)
}

func (b *Bed) rollBackAll(ctx context.Context) error {
	for deadline := time.Now().Add(5 * time.Second); ; {
		all, err := b.prepared(ctx)
		errs := []error{err}
		for _, id := range all {
			errs = append(errs, b.end(ctx, "rollback", id))
		}
		if err = errors.Join(errs...); err == nil || time.Now().After(deadline) {
			return err
		}
		wait(ctx, every) // its session may be about to end
	}
}

// ErrMoney says that the accounts do not add up.
var ErrMoney = errors.New("the money is wrong")

// Count adds up the accounts, which must hold what was deposited, and the entries, which must pair up: at least so many
// payments as were answered as made, and at most those that were tried. Nothing may be held meanwhile.
func (b *Bed) Count(ctx context.Context, made, tried int) error {
	type sums struct{ balance, held, entries, amount int64 }
	read := func(s *side) (v sums, err error) {
		err = errors.Join(
			s.db.QueryRowContext(ctx, `SELECT SUM(balance), SUM(held) FROM account`).Scan(&v.balance, &v.held),
			s.db.QueryRowContext(ctx, `SELECT count(*), COALESCE(SUM(amount), 0) FROM entry`).Scan(&v.entries, &v.amount))
		return v, err
	}
	from, err := read(b.buyers)
	if err != nil {
		return err
	}
	to, err := read(b.merchants)
	if err != nil {
		return err
	}
	deposited := depositMinor * int64(b.buyers.n)
	switch {
	case from.held != 0 || to.held != 0:
		return fmt.Errorf("%w: %d are held with the buyers, %d with the merchants", ErrMoney, from.held, to.held)
	case from.balance+to.balance != deposited:
		return fmt.Errorf("%w: %d were deposited, %d are there", ErrMoney, deposited, from.balance+to.balance)
	case from.entries != to.entries || from.amount+to.amount != 0 || to.amount != to.balance:
		return fmt.Errorf("%w: %d entries of %d with the buyers, %d of %d with the merchants, who have %d", ErrMoney, from.entries, from.amount, to.entries, to.amount, to.balance)
	case from.entries < int64(made) || from.entries > int64(tried):
		return fmt.Errorf("%w: %d payments were answered as made and %d tried, but %d moved money", ErrMoney, made, tried, from.entries)
	}
	return nil
}
