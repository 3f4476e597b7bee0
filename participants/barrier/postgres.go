package barrier

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	_ "github.com/jackc/pgx/v5/stdlib" // the driver "pgx"
)

// postgres does all of enter in one statement: a function of the schema that Migrate makes. A lock and a read of what
// it guards must be two statements there, since a statement's snapshot is older than the locks that it waits for; in a
// volatile function every statement has its own snapshot, and the caller has one round trip.
//
// The locks are advisory, which cost no write: (class, slot) shared for a call at the stored epoch and exclusive to
// raise it or the floor, and one per branch, by the hash of its key, for those that exclude each other.
type postgres struct{ schema string }

// lockClass is the first key of the slots' advisory locks ("Lock" in ASCII).
const lockClass = 0x4c6f636b

func (p postgres) table() string    { return p.schema + ".barrier" }
func (p postgres) fence() string    { return p.schema + ".lockstep_fence" }
func (p postgres) arg(n int) string { return fmt.Sprintf("$%d", n) }

// isolation: a statement's snapshot is taken after the locks that the statements before it waited for, at this level alone.
func (postgres) isolation() *sql.TxOptions { return &sql.TxOptions{Isolation: sql.LevelReadCommitted} }

func (postgres) stands(context.Context, *sql.Tx, key, string) error { return nil }
func (postgres) lastSavepoint() string                              { return "" }

func (postgres) timeArg(t time.Time) any { return t }

func (p postgres) migrate() []string {
	stmts := []string{
		// Two processes that make the same schema at once would collide in the catalogue.
		`SELECT pg_advisory_xact_lock(%[2]d, -1)`,
		`CREATE SCHEMA IF NOT EXISTS %[1]s`,
		`CREATE SEQUENCE IF NOT EXISTS %[1]s.barrier_seq`,
		`CREATE TABLE IF NOT EXISTS %[1]s.barrier (
			id bigint NOT NULL DEFAULT nextval('%[1]s.barrier_seq'),
			trans_type varchar(45) DEFAULT '',
			gid varchar(128) DEFAULT '',
			branch_id varchar(128) DEFAULT '',
			op varchar(45) DEFAULT '',
			barrier_id varchar(45) DEFAULT '',
			reason varchar(45) DEFAULT '',
			create_time timestamp(0) with time zone DEFAULT NULL,
			update_time timestamp(0) with time zone DEFAULT NULL,
			PRIMARY KEY (id),
			CONSTRAINT uniq_barrier UNIQUE (gid, branch_id, op, barrier_id))`,
		// DTM's own leaves create_time empty; the cleaner needs it. The lock of ALTER TABLE is taken once, not at each start.
		`DO $do$ BEGIN IF EXISTS (SELECT 1 FROM information_schema.columns WHERE table_schema = '%[1]s' AND table_name = 'barrier'
			AND column_name = 'create_time' AND column_default IS NULL)
			THEN ALTER TABLE %[1]s.barrier ALTER create_time SET DEFAULT now();
			UPDATE %[1]s.barrier SET create_time = now() WHERE create_time IS NULL; END IF; END $do$`,
		`CREATE TABLE IF NOT EXISTS %[1]s.lockstep_fence (
			slot int PRIMARY KEY CHECK (slot BETWEEN 0 AND 1023),
			epoch bigint NOT NULL DEFAULT 1 CHECK (epoch >= 1),
			floor_ms bigint NOT NULL DEFAULT 0,
			copied boolean NOT NULL DEFAULT false)`,
		`INSERT INTO %[1]s.lockstep_fence (slot) SELECT generate_series(0, 1023) ON CONFLICT DO NOTHING`,
		enterFunction,
	}
	for i, s := range stmts {
		if strings.Contains(s, "%[1]s") {
			stmts[i] = fmt.Sprintf(s, p.schema, lockClass)
		} else {
			stmts[i] = strings.ReplaceAll(s, "%[2]d", fmt.Sprint(lockClass))
		}
	}
	return stmts
}

// enterFunction has a number in its name: a process of an older version, which makes its own at each start, takes nothing from
// this one's. It gives rows of four kinds: f, a fence as it was (n is the slot, op_ and reason_ are its policy: the word, and
// "cap epoch"); t and o, the n-th member's row of the
// undone op and of its own op is new; r, a row that is there.
const enterFunction = `CREATE OR REPLACE FUNCTION %[1]s.lockstep_enter2(
	slots int[], epochs bigint[], raises boolean[],
	types text[], gids text[], branches text[], ops text[], undones text[], ids text[], reasons text[], excludes boolean[], needs boolean[])
RETURNS TABLE (kind "char", n int, op_ text, reason_ text, epoch_ bigint, floor_ bigint, copied_ boolean)
LANGUAGE plpgsql VOLATILE AS $body$
DECLARE
	i int;
	lockkey bigint;
	fresh boolean;
BEGIN
	FOR i IN 1 .. coalesce(cardinality(slots), 0) LOOP
		IF raises[i] THEN
			PERFORM pg_advisory_xact_lock(%[2]d, slots[i]);
		ELSE
			PERFORM pg_advisory_xact_lock_shared(%[2]d, slots[i]);
		END IF;
	END LOOP;
	IF cardinality(slots) > 0 THEN
		RETURN QUERY SELECT 'f'::"char", slot, nullif(risk, '')::text, CASE WHEN risk <> '' THEN cap || ' ' || risk_epoch END, epoch, floor_ms, copied
			FROM %[1]s.lockstep_fence WHERE slot = ANY (slots);
		FOR i IN 1 .. cardinality(slots) LOOP
			IF raises[i] THEN
				UPDATE %[1]s.lockstep_fence SET epoch = epochs[i] WHERE slot = slots[i] AND epoch < epochs[i];
			END IF;
		END LOOP;
	END IF;
	-- In one order, so that no two transactions wait for each other.
	FOR lockkey IN
		SELECT DISTINCT hashtextextended(gids[k] || chr(31) || branches[k] || chr(31) || ids[k], 0) AS h
		FROM generate_series(1, coalesce(cardinality(gids), 0)) AS k WHERE excludes[k] ORDER BY h
	LOOP
		PERFORM pg_advisory_xact_lock(lockkey);
	END LOOP;
	FOR i IN 1 .. coalesce(cardinality(gids), 0) LOOP
		IF undones[i] <> '' THEN
			INSERT INTO %[1]s.barrier (trans_type, gid, branch_id, op, barrier_id, reason)
				VALUES (types[i], gids[i], branches[i], undones[i], ids[i], reasons[i])
				ON CONFLICT ON CONSTRAINT uniq_barrier DO NOTHING;
			IF FOUND THEN
				kind := 't'; n := i - 1;
				RETURN NEXT;
			END IF;
		END IF;
		INSERT INTO %[1]s.barrier (trans_type, gid, branch_id, op, barrier_id, reason)
			VALUES (types[i], gids[i], branches[i], ops[i], ids[i], reasons[i])
			ON CONFLICT ON CONSTRAINT uniq_barrier DO NOTHING;
		fresh := FOUND;
		IF fresh THEN
			kind := 'o'; n := i - 1;
			RETURN NEXT;
		END IF;
		IF needs[i] OR NOT fresh THEN
			RETURN QUERY SELECT 'r'::"char", i - 1, b.op::text, b.reason::text, NULL::bigint, NULL::bigint, NULL::boolean
				FROM %[1]s.barrier b WHERE b.gid = gids[i] AND b.branch_id = branches[i] AND b.barrier_id = ids[i];
		END IF;
	END LOOP;
END $body$`

func (p postgres) enter(ctx context.Context, tx *sql.Tx, locks []lock, members []member) (*facts, error) {
	slots, epochs, raises := make([]int32, len(locks)), make([]int64, len(locks)), make([]bool, len(locks))
	for i, l := range locks {
		slots[i], epochs[i], raises[i] = int32(l.slot), l.epoch, l.exclusive
	}
	n := len(members)
	types, gids, branches, ops, undones := make([]string, n), make([]string, n), make([]string, n), make([]string, n), make([]string, n)
	ids, reasons, excludes, needs := make([]string, n), make([]string, n), make([]bool, n), make([]bool, n)
	for i := range members {
		m := &members[i]
		types[i], gids[i], branches[i], ops[i], undones[i] = m.transType, m.gid, m.branch, m.op, m.undone
		ids[i], reasons[i], excludes[i], needs[i] = m.barrierID, m.reason, m.rival != "" || m.undone != "", m.needRows
	}
	rows, err := tx.QueryContext(ctx, "SELECT kind::text, n, coalesce(op_, ''), coalesce(reason_, ''), coalesce(epoch_, 0), coalesce(floor_, 0), coalesce(copied_, false) FROM "+
		p.schema+".lockstep_enter2($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)",
		slots, epochs, raises, types, gids, branches, ops, undones, ids, reasons, excludes, needs)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	f := &facts{fences: make(map[int]fenceRow, len(locks)), members: make([]found, n)}
	for rows.Next() {
		var kind, op, reason string
		var at int
		var row fenceRow
		if err := rows.Scan(&kind, &at, &op, &reason, &row.epoch, &row.floor, &row.copied); err != nil {
			return nil, err
		}
		switch kind {
		case "f":
			if op != "" {
				row.policy.Risk = Risk(op)
				if _, err := fmt.Sscan(reason, &row.policy.Cap, &row.policy.Since); err != nil {
					return nil, fmt.Errorf("fence row of slot %d: policy %q: %w", at, reason, err)
				}
			}
			f.fences[at] = row
		case "t":
			f.members[at].tombstone = true
		case "o":
			f.members[at].first = true
		case "r":
			if f.members[at].rows == nil {
				f.members[at].rows = map[string]string{}
			}
			f.members[at].rows[op] = reason
		}
	}
	if err := rows.Err(); err != nil {
		return nil, err
	}
	for _, l := range locks {
		if _, ok := f.fences[l.slot]; !ok {
			return nil, fmt.Errorf("no fence row of slot %d: %w", l.slot, sql.ErrNoRows)
		}
	}
	return f, nil
}

func (p postgres) forget(ctx context.Context, tx *sql.Tx, k key, op string) error {
	r, err := tx.ExecContext(ctx, "DELETE FROM "+p.table()+" WHERE gid = $1 AND branch_id = $2 AND op = $3 AND barrier_id = $4", k.gid, k.branch, op, k.barrierID)
	if err != nil {
		return err
	}
	if n, err := r.RowsAffected(); err != nil || n != 1 {
		return errors.Join(err, fmt.Errorf("%d rows of %s %s", n, k.gid, op))
	}
	return nil
}

// savepoint is the driver's way to several statements in one round trip.
func (postgres) savepoint(ctx context.Context, tx *sql.Tx, stmts string) error {
	_, err := tx.ExecContext(ctx, stmts, pgx.QueryExecModeSimpleProtocol)
	return err
}

// retryable: serialization failure, deadlock, lock not available, and what the server did on its own.
func (postgres) retryable(err error) bool {
	var pe *pgconn.PgError
	if errors.As(err, &pe) {
		switch pe.Code {
		case "40001", "40P01", "55P03", "25P02", "57P01", "57P02", "57P03":
			return true
		}
		return false
	}
	return lostConnection(err)
}
