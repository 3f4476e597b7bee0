package journal

import (
	"context"
	"crypto/sha256"
	"database/sql"
	"database/sql/driver"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"

	"github.com/go-sql-driver/mysql"

	"github.com/lockstep-tx/lockstep/coordinator/engine"
)

var mysqlDialect = &dialect{
	name:   "mysql",
	insert: insertMySQL,
	insertIn: func(ctx context.Context, _ *Journal, tx *sql.Tx, rows []*engine.Row) error {
		return eachChunk(tx, rows, mysqlRows(ctx))
	},
	transient: func(err error) bool {
		c := mysqlCode(err)
		return c == 1213 || c == 1205 || c == 1020 // deadlock, lock wait timeout, record has changed
	},
	noTable: func(err error) bool { return mysqlCode(err) == 1146 },
	noRight: func(err error) bool {
		switch mysqlCode(err) {
		case 1044, 1142, 1143, 1227, 1290, 1792, 1836: // denied on database, table, column; super; read-only
			return true
		}
		return false
	},
	locked:     lockedMySQL,
	deleteRows: `DELETE FROM lockstep_journal WHERE body = ? AND finished_at < ?` + keepUnread + ` ORDER BY finished_at LIMIT ?`,
	empty: emptyBy(`UPDATE lockstep_journal SET body = 0, closed = NULL, progress = NULL
		WHERE body = ? AND finished_at < ?` + keepUnread + ` ORDER BY finished_at LIMIT ?`),
	byFinish: " FORCE INDEX (lockstep_journal_finished)",
	byID:     "FORCE INDEX (PRIMARY) ",
	byKind:   " FORCE INDEX (lockstep_journal_kind)",
	already:  func(err error) bool { return mysqlCode(err) == 1061 || mysqlCode(err) == 1060 }, // duplicate key name, column name
}

func mysqlCode(err error) uint16 {
	var e *mysql.MySQLError
	if errors.As(err, &e) {
		return e.Number
	}
	return 0
}

// lockedMySQL holds a named lock of the server: DDL ends transactions.
func lockedMySQL(ctx context.Context, db *sql.DB, migrate func(querier) error) error {
	c, err := db.Conn(ctx)
	if err != nil {
		return err
	}
	defer c.Close()
	var database string
	if err := c.QueryRowContext(ctx, "SELECT DATABASE()").Scan(&database); err != nil {
		return err
	}
	sum := sha256.Sum256([]byte(database))
	name := "lockstep_journal_" + hex.EncodeToString(sum[:16]) // a lock's name has at most 64 characters
	var got sql.NullInt64
	if err := c.QueryRowContext(ctx, "SELECT GET_LOCK(?, 60)", name).Scan(&got); err != nil {
		return err
	}
	if got.Int64 != 1 {
		return errors.New("another coordinator has been making the tables for a minute; try again when it is done")
	}
	defer func() { _, _ = c.ExecContext(context.WithoutCancel(ctx), "DO RELEASE_LOCK(?)", name) }()
	return migrate(c)
}

// prepared runs statements on every new connection.
type prepared struct {
	driver.Connector
	statements []string
}

func (p *prepared) Connect(ctx context.Context) (driver.Conn, error) {
	c, err := p.Connector.Connect(ctx)
	if err != nil {
		return nil, err
	}
	for _, s := range p.statements {
		if _, err := c.(driver.ExecerContext).ExecContext(ctx, s, nil); err != nil {
			c.Close()
			return nil, err
		}
	}
	return c, nil
}

// flushSetting asks how the server syncs. It is a variable for a test's sake: the setting itself is the whole server's,
// and others use that server.
var flushSetting = "SELECT @@innodb_flush_log_at_trx_commit"

func (j *Journal) openMySQL(ctx context.Context, a *address) error {
	j.d = mysqlDialect
	c, err := mysql.NewConnector(a.mysql)
	if err != nil {
		return fmt.Errorf("journal at %s: %w", a.where, err)
	}
	// Fewer gaps are locked, so that batches of two coordinators seldom meet. Where a client gives up, the server goes on
	// waiting for a lock, with all that the transaction has locked: not longer than the client.
	db := sql.OpenDB(&prepared{c, []string{"SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED",
		fmt.Sprintf("SET SESSION innodb_lock_wait_timeout = %d", int(turnShared.Seconds()))}})
	usual(db)
	j.write, j.read = db, db
	var flush int
	if err := db.QueryRowContext(ctx, flushSetting).Scan(&flush); err != nil {
		return fmt.Errorf("journal at %s cannot be opened: %w", a.where, err)
	}
	if flush != 1 && flush != 3 && !a.asServer {
		return fmt.Errorf("journal at %s: the server runs with innodb_flush_log_at_trx_commit=%d and would lose decided transactions in a crash; set it to 1, or add durability=server to the URL to accept that", a.where, flush)
	}
	return nil
}

var mysqlRow = "(?" + strings.Repeat(", ?", len(columnNames)) + ")"

// mysqlUpdate lets a finish take the place of a decision alone. Assignments take effect one after the other:
// finish_seq, on which the others depend, is the last.
var mysqlUpdate = func() string {
	var set []string
	for _, c := range columnNames {
		if c != "finish_seq" {
			set = append(set, c+" = IF(finish_seq IS NULL AND VALUES(finish_seq) IS NOT NULL, VALUES("+c+"), "+c+")")
		}
	}
	return " ON DUPLICATE KEY UPDATE " + strings.Join(set, ", ") + ", finish_seq = COALESCE(finish_seq, VALUES(finish_seq))"
}()

func insertMySQL(ctx context.Context, j *Journal, rows []*engine.Row) error {
	return inChunks(ctx, j.write, rows, mysqlRows(ctx))
}

func mysqlRows(ctx context.Context) func(querier, []*engine.Row) error {
	return func(q querier, rows []*engine.Row) error {
		args := make([]any, 0, len(rows)*(len(columnNames)+1))
		for _, r := range rows {
			args = values(args, r)
		}
		_, err := q.ExecContext(ctx, "INSERT INTO lockstep_journal ("+columns+") VALUES "+mysqlRow+
			strings.Repeat(", "+mysqlRow, len(rows)-1)+mysqlUpdate, args...)
		return err
	}
}
