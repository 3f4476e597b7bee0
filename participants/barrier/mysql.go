package barrier

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"io"
	"net"

	"github.com/go-sql-driver/mysql"
)

// mysqlDialect is MySQL's and MariaDB's way. The fence row's shared lock and the insert of a barrier row read what is
// committed, whatever the isolation level; at REPEATABLE READ, the default, the transaction's snapshot begins with its
// first plain read, which comes after them.
//
// Confirm takes the row of its try exclusively: a cancel's insert of that row waits for it, and the other way round.
type mysqlDialect struct {
	generic
	schema string
}

func (d mysqlDialect) migrate() []string {
	return []string{
		`CREATE DATABASE IF NOT EXISTS ` + d.schema + ` DEFAULT CHARACTER SET utf8mb4`,
		// utf8mb4_bin: gids that differ in case alone are different gids. NOT NULL, unlike DTM's own: only then is the key
		// unique to InnoDB, which otherwise locks the gaps beside the row that it looks for.
		`CREATE TABLE IF NOT EXISTS ` + d.tableName + ` (
			id bigint(22) PRIMARY KEY AUTO_INCREMENT,
			trans_type varchar(45) NOT NULL DEFAULT '',
			gid varchar(128) NOT NULL DEFAULT '',
			branch_id varchar(128) NOT NULL DEFAULT '',
			op varchar(45) NOT NULL DEFAULT '',
			barrier_id varchar(45) NOT NULL DEFAULT '',
			reason varchar(45) NOT NULL DEFAULT '',
			create_time datetime DEFAULT now(),
			update_time datetime DEFAULT now(),
			KEY (create_time),
			KEY (update_time),
			UNIQUE KEY (gid, branch_id, op, barrier_id)) ENGINE = InnoDB DEFAULT CHARSET = utf8mb4 COLLATE = utf8mb4_bin`,
		// A table that DTM's script has made takes gids that differ in case for one: it is changed, once.
		`SET @lockstep_change = (SELECT IF(count(*) = 0, 'DO 0', 'ALTER TABLE ` + d.tableName + `
			MODIFY gid varchar(128) COLLATE utf8mb4_bin NOT NULL DEFAULT '''', MODIFY branch_id varchar(128) COLLATE utf8mb4_bin NOT NULL DEFAULT '''',
			MODIFY op varchar(45) COLLATE utf8mb4_bin NOT NULL DEFAULT '''', MODIFY barrier_id varchar(45) COLLATE utf8mb4_bin NOT NULL DEFAULT ''''')
			FROM information_schema.columns WHERE table_schema = '` + d.schema + `' AND table_name = 'barrier'
			AND column_name IN ('gid', 'branch_id', 'op', 'barrier_id') AND (collation_name <> 'utf8mb4_bin' OR is_nullable = 'YES'))`,
		`PREPARE lockstep_change FROM @lockstep_change`,
		`EXECUTE lockstep_change`,
		`DEALLOCATE PREPARE lockstep_change`,
		`CREATE TABLE IF NOT EXISTS ` + d.fenceName + ` (
			slot int PRIMARY KEY CHECK (slot BETWEEN 0 AND 1023),
			epoch bigint NOT NULL DEFAULT 1 CHECK (epoch >= 1),
			floor_ms bigint NOT NULL DEFAULT 0,
			copied boolean NOT NULL DEFAULT false) ENGINE = InnoDB`,
		// Not by recursion: servers stop that after a thousand steps, silently.
		`INSERT IGNORE INTO ` + d.fenceName + ` (slot) SELECT a.n + 8 * b.n + 64 * c.n + 512 * e.n FROM ` + octal + ` a, ` + octal + ` b, ` + octal + ` c, (SELECT 0 AS n UNION ALL SELECT 1) e`,
	}
}

// octal is a table of the digits 0 to 7.
const octal = `(SELECT 0 AS n UNION ALL SELECT 1 UNION ALL SELECT 2 UNION ALL SELECT 3 UNION ALL SELECT 4 UNION ALL SELECT 5 UNION ALL SELECT 6 UNION ALL SELECT 7)`

func (d mysqlDialect) enter(ctx context.Context, tx *sql.Tx, locks []lock, members []member) (*facts, error) {
	if together(locks, members) {
		if f, err := d.enterTogether(ctx, tx, locks, members); f != nil || err != nil {
			return f, err
		}
		// The fences are read again, under the locks that are held.
	}
	return d.enterWith(ctx, tx, locks, members, "INSERT IGNORE", "", func(m *member) (bool, error) {
		var id int64
		err := tx.QueryRowContext(ctx, "SELECT id FROM "+d.tableName+" WHERE gid = ? AND branch_id = ? AND op = ? AND barrier_id = ? FOR UPDATE",
			m.gid, m.branch, m.rival, m.barrierID).Scan(&id)
		if errors.Is(err, sql.ErrNoRows) {
			return false, nil
		}
		return true, err
	})
}

// savepoint releases a savepoint before it sets the next one of that name, although that would take its place: the release
// fails where a member has passed over a deadlock, which ends the transaction, and what the next one writes would stand by
// itself.
func (mysqlDialect) savepoint(ctx context.Context, tx *sql.Tx, stmts string) error {
	return execEach(ctx, tx, stmts)
}

func (mysqlDialect) lastSavepoint() string { return "RELEASE SAVEPOINT member" }

func (d mysqlDialect) stands(ctx context.Context, tx *sql.Tx, k key, op string) error {
	var one int
	err := tx.QueryRowContext(ctx, "SELECT 1 FROM "+d.tableName+" WHERE gid = ? AND branch_id = ? AND op = ? AND barrier_id = ?", k.gid, k.branch, op, k.barrierID).Scan(&one)
	if errors.Is(err, sql.ErrNoRows) {
		return errors.New("the server ended the local transaction, as at a deadlock, and the function went on; what it wrote after that may stand")
	}
	return err
}

// retryable: deadlock, lock wait over, a changed record (MariaDB 11), and what the server did on its own.
func (mysqlDialect) retryable(err error) bool {
	var me *mysql.MySQLError
	if errors.As(err, &me) {
		switch me.Number {
		case 1213, 1205, 1020, 1053, 1927, 4031, 1305: // 1305: the savepoint is gone, since a deadlock rolls all back
			return true
		}
		return false
	}
	return errors.Is(err, mysql.ErrInvalidConn) || lostConnection(err)
}

// lostConnection says that an error is of the connection and not an answer of the database.
func lostConnection(err error) bool {
	var ne net.Error
	return errors.Is(err, driver.ErrBadConn) || errors.Is(err, sql.ErrConnDone) || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.As(err, &ne)
}

// OpenMySQL opens the database that dsn names (go-sql-driver's form) as a participant needs it: times parsed as UTC,
// arguments filled in on this side, which spares a round trip per statement. The caller closes it.
func OpenMySQL(ctx context.Context, dsn string) (*sql.DB, error) {
	cfg, err := mysql.ParseDSN(dsn)
	if err != nil {
		return nil, errors.New("the DSN is not of the form user:password@tcp(host:port)/database?options") // its text may hold the password
	}
	cfg.ParseTime, cfg.InterpolateParams = true, true
	connector, err := mysql.NewConnector(cfg)
	if err != nil {
		return nil, fmt.Errorf("open MySQL %s: %w", cfg.Addr, err)
	}
	return ready(ctx, sql.OpenDB(connector), "MySQL "+cfg.Addr)
}

func ready(ctx context.Context, db *sql.DB, where string) (*sql.DB, error) {
	if err := db.PingContext(ctx); err != nil {
		db.Close()
		return nil, fmt.Errorf("open %s: %w", where, err)
	}
	return db, nil
}
