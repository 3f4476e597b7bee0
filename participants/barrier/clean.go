package barrier

import (
	"context"
	"database/sql"
	"fmt"
	"slices"
	"time"

	"github.com/lockstep-tx/lockstep/region/slot"
)

// CleanOptions say what may be forgotten. Zero fields take the default given.
type CleanOptions struct {
	// Floors gives, by slot, the time in milliseconds since 1970 of the oldest transaction that is not finished, as the
	// slot's holder reports it (see FloorsFrom). A slot that is left out is not cleaned. It must be given.
	Floors func(ctx context.Context) (map[int]int64, error)
	// Keep is how long rows of gids that carry their time stay at least. Defaults to 24 h.
	Keep time.Duration
	// KeepUntimed is how long rows of other gids stay. Defaults to 30 days.
	KeepUntimed time.Duration
	// Batch bounds the rows of one local transaction. Defaults to 500.
	Batch int
	// Now is the clock. Defaults to time.Now. It decides what is forgotten, never whether a call may run: the floor does.
	Now func() time.Time
}

// Cleaned counts the rows that a cleaning took away, and the slots whose floor it raised.
type Cleaned struct {
	Timed, Untimed, Raised int
}

// Clean forgets barrier rows that nobody can ask for any more. The floor of a slot is raised first, under the slot's
// exclusive lock and durably; only rows at or below it go, and from then on a try whose gid time is at or below it is
// refused. The floor never passes the slot's oldest unfinished transaction. Rows of gids that carry no time go when they
// are older than KeepUntimed, whatever became of their transactions.
//
// It may be interrupted at any point and run again, also by several processes at once. Options.GidTime must be set.
// Source: DESIGN section 6.
func (b *Barrier) Clean(ctx context.Context, o CleanOptions) (Cleaned, error) {
	if o.Keep <= 0 {
		o.Keep = 24 * time.Hour
	}
	if o.KeepUntimed <= 0 {
		o.KeepUntimed = 30 * 24 * time.Hour
	}
	if o.Batch <= 0 {
		o.Batch = 500
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	var done Cleaned
	if o.Floors == nil || b.options.GidTime == nil {
		return done, fmt.Errorf("%w: cleaning needs CleanOptions.Floors and Options.GidTime", ErrInvalid)
	}
	unfinished, err := o.Floors(ctx)
	if err != nil {
		return done, fmt.Errorf("clean barrier: ask for the floors: %w", err)
	}
	c := &cleaning{b: b, o: o, done: &done, raised: map[int]bool{}, floors: make(map[int]int64, len(unfinished))}
	for n, oldest := range unfinished {
		c.floors[n] = min(oldest-1, o.Now().Add(-o.Keep).UnixMilli())
	}
	if err := c.timed(ctx); err != nil {
		return done, fmt.Errorf("clean barrier: %w", err)
	}
	if err := c.untimed(ctx); err != nil {
		return done, fmt.Errorf("clean barrier: %w", err)
	}
	return done, nil
}

// cleaning is one run of Clean.
type cleaning struct {
	b      *Barrier
	o      CleanOptions
	done   *Cleaned
	floors map[int]int64 // by slot: what may go
	raised map[int]bool  // durably
}

// timed goes through the gids that carry a time, oldest first: such gids sort by their time.
func (c *cleaning) timed(ctx context.Context) error {
	highest := int64(0)
	for _, f := range c.floors {
		highest = max(highest, f)
	}
	if highest == 0 {
		return nil
	}
	table := c.b.dialect.table()
	query := "SELECT DISTINCT gid FROM " + table + " WHERE gid > " + c.b.dialect.arg(1) + " AND gid < " + c.b.dialect.arg(2) + " ORDER BY gid LIMIT " + fmt.Sprint(c.o.Batch)
	after, end := slot.GidPrefix, slot.FirstGid(time.UnixMilli(highest+1))
	for {
		gids, err := texts(ctx, c.b.db, query, after, end)
		if err != nil || len(gids) == 0 {
			return err
		}
		after = gids[len(gids)-1]
		var ended []string
		for _, gid := range gids {
			ms, ok := c.b.options.GidTime(gid)
			if floor, known := c.floors[SlotOf(gid)]; ok && known && ms <= floor {
				ended = append(ended, gid)
			}
		}
		if err := c.forget(ctx, ended); err != nil {
			return err
		}
	}
}

// forget raises the floors that gids need and then deletes their rows.
func (c *cleaning) forget(ctx context.Context, gids []string) error {
	var raise []int
	for _, gid := range gids {
		if n := SlotOf(gid); !c.raised[n] && !slices.Contains(raise, n) {
			raise = append(raise, n)
		}
	}
	slices.Sort(raise)
	if err := c.raise(ctx, raise); err != nil {
		return err
	}
	deleted := 0
	err := c.inTx(ctx, func(tx *sql.Tx) error {
		deleted = 0
		for _, gid := range gids {
			r, err := tx.ExecContext(ctx, "DELETE FROM "+c.b.dialect.table()+" WHERE gid = "+c.b.dialect.arg(1), gid)
			if err != nil {
				return err
			}
			if err := c.untouch(ctx, tx, gid); err != nil {
				return err
			}
			n, err := r.RowsAffected()
			if err != nil {
				return err
			}
			deleted += int(n)
		}
		return nil
	})
	if err == nil {
		c.done.Timed += deleted
	}
	return err
}

// untouch forgets which accounts a transaction has touched.
func (c *cleaning) untouch(ctx context.Context, tx *sql.Tx, gid string) error {
	_, err := tx.ExecContext(ctx, "DELETE FROM "+c.b.beside("touched")+" WHERE gid = "+c.b.dialect.arg(1), gid)
	return err
}

// raise raises floors, under the exclusive locks of their slots: a call that has passed the old floor has ended by then.
func (c *cleaning) raise(ctx context.Context, slots []int) error {
	if len(slots) == 0 {
		return nil
	}
	locks := make([]lock, len(slots))
	for i, n := range slots {
		locks[i] = lock{slot: n, exclusive: true}
	}
	err := c.inTx(ctx, func(tx *sql.Tx) error {
		if _, err := c.b.dialect.enter(ctx, tx, locks, nil); err != nil {
			return err
		}
		d := c.b.dialect
		for _, n := range slots {
			if _, err := tx.ExecContext(ctx, "UPDATE "+d.fence()+" SET floor_ms = "+d.arg(1)+" WHERE slot = "+d.arg(2)+" AND floor_ms < "+d.arg(3), c.floors[n], n, c.floors[n]); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	for _, n := range slots {
		c.raised[n] = true
	}
	c.done.Raised += len(slots)
	return nil
}

// untimed goes through the rows in the order in which they came, to the first one that is young.
func (c *cleaning) untimed(ctx context.Context) error {
	d := c.b.dialect
	cutoff := d.timeArg(c.o.Now().Add(-c.o.KeepUntimed))
	after := int64(0)
	for {
		rows, err := c.b.db.QueryContext(ctx, "SELECT id, gid, create_time < "+d.arg(1)+" FROM "+d.table()+" WHERE id > "+d.arg(2)+" ORDER BY id LIMIT "+fmt.Sprint(c.o.Batch), cutoff, after)
		if err != nil {
			return err
		}
		var old []int64
		young, n := false, 0
		for rows.Next() {
			var gid string
			var isOld sql.NullBool
			if err := rows.Scan(&after, &gid, &isOld); err != nil {
				rows.Close()
				return err
			}
			n++
			if !isOld.Bool {
				young = isOld.Valid
				continue
			}
			if _, timed := c.b.options.GidTime(gid); !timed {
				old = append(old, after)
			}
		}
		if err := rows.Close(); err != nil {
			return err
		}
		if err := rows.Err(); err != nil {
			return err
		}
		if err := c.inTx(ctx, func(tx *sql.Tx) error {
			for _, id := range old {
				if _, err := tx.ExecContext(ctx, "DELETE FROM "+d.table()+" WHERE id = "+d.arg(1), id); err != nil {
					return err
				}
			}
			return nil
		}); err != nil {
			return err
		}
		c.done.Untimed += len(old)
		if young || n < c.o.Batch {
			return nil
		}
	}
}

// inTx runs f in a transaction, a few times if it falls to a deadlock with the calls: f may run again.
func (c *cleaning) inTx(ctx context.Context, f func(tx *sql.Tx) error) error {
	for attempt := 1; ; attempt++ {
		err := c.once(ctx, f)
		if err == nil || attempt == 5 || ctx.Err() != nil || !c.b.dialect.retryable(err) {
			return err
		}
	}
}

func (c *cleaning) once(ctx context.Context, f func(tx *sql.Tx) error) error {
	tx, err := c.b.begin(ctx)
	if err != nil {
		return err
	}
	defer func() { _ = tx.Rollback() }()
	if err := f(tx); err != nil {
		return err
	}
	return tx.Commit()
}

func texts(ctx context.Context, db *sql.DB, query string, args ...any) ([]string, error) {
	rows, err := db.QueryContext(ctx, query, args...)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var out []string
	for rows.Next() {
		var s string
		if err := rows.Scan(&s); err != nil {
			return nil, err
		}
		out = append(out, s)
	}
	return out, rows.Err()
}
