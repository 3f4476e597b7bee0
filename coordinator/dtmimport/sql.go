package dtmimport

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net"
	"net/url"
	"strings"
	"time"

	"github.com/go-sql-driver/mysql"
	_ "github.com/jackc/pgx/v5/stdlib" // the driver named pgx
)

// sqlStore is DTM's store on PostgreSQL or MariaDB/MySQL.
type sqlStore struct {
	db     *sql.DB
	prefix string         // of the tables: a quoted schema and a dot, or nothing
	busy   string         // gives the sessions of others, and whether they are seen to use DTM's tables
	users  map[int64]bool // the sessions that were once seen to: their statement is DTM's to change, their owner is not
	settle time.Duration
	unseen time.Time // since when there was none
}

func openPostgres(_ context.Context, u *url.URL, src Source) (store, error) {
	own := *u
	if strings.Trim(own.Path, "/") == "" {
		own.Path = "/dtm"
	}
	schema := src.Schema
	if schema == "" {
		schema = "public"
	}
	db, err := sql.Open("pgx", own.String())
	if err != nil {
		return nil, err
	}
	st := newSQL(db, `"`+strings.ReplaceAll(schema, `"`, `""`)+`".`,
		// An idle session shows its last statement: DTM asks for due transactions every three seconds.
		`SELECT pid, coalesce(query LIKE '%trans_global%', false) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()`)
	st.settle = 2 * quiet // the end of a transaction may hide it until DTM asks again, and a busy machine delays that
	return st, nil
}

func openMySQL(_ context.Context, u *url.URL, _ Source) (store, error) {
	cfg := mysql.NewConfig()
	cfg.Net, cfg.Addr, cfg.DBName = "tcp", u.Host, strings.Trim(u.Path, "/")
	if u.Port() == "" {
		cfg.Addr = net.JoinHostPort(u.Hostname(), "3306")
	}
	if cfg.DBName == "" {
		cfg.DBName = "dtm"
	}
	cfg.User = u.User.Username()
	cfg.Passwd, _ = u.User.Password()
	cfg.ParseTime, cfg.Loc = true, time.Local // as DTM writes them
	for key, v := range u.Query() {
		switch key {
		case "tls":
			cfg.TLSConfig = v[0]
		case "loc":
			loc, err := time.LoadLocation(v[0])
			if err != nil {
				return nil, fmt.Errorf("loc: %w", err)
			}
			cfg.Loc = loc
		default:
			return nil, fmt.Errorf("unknown option %s; there are tls and loc", key)
		}
	}
	conn, err := mysql.NewConnector(cfg)
	if err != nil {
		return nil, err
	}
	return newSQL(sql.OpenDB(conn), "",
		`SELECT id, true FROM information_schema.processlist WHERE db = DATABASE() AND id <> CONNECTION_ID()`), nil
}

func newSQL(db *sql.DB, prefix, busy string) *sqlStore {
	db.SetMaxOpenConns(1) // the sessions that are counted as somebody else's are not our own
	return &sqlStore{db: db, prefix: prefix, busy: busy, users: map[int64]bool{}}
}

func (s *sqlStore) inUse(ctx context.Context) (bool, error) {
	n, err := s.sessions(ctx)
	if err != nil || n > 0 {
		s.unseen = time.Time{}
		return n > 0, err
	}
	if s.unseen.IsZero() {
		s.unseen = time.Now()
	}
	return time.Since(s.unseen) < s.settle, nil
}

// sessions counts the open sessions of others that use DTM's tables or were seen to since the store was opened.
func (s *sqlStore) sessions(ctx context.Context) (int, error) {
	rows, err := s.db.QueryContext(ctx, s.busy)
	if err != nil {
		return 0, err
	}
	defer rows.Close()
	n := 0
	for rows.Next() {
		var id int64
		var uses bool
		if err := rows.Scan(&id, &uses); err != nil {
			return 0, err
		}
		if uses {
			s.users[id] = true
		}
		if s.users[id] {
			n++
		}
	}
	return n, rows.Err()
}

// lossy: without UPDATE_BRANCH_SYNC, DTM writes the results of most branches late and forgets them when it ends.
func (s *sqlStore) lossy() bool { return true }

func (s *sqlStore) close() error { return s.db.Close() }

const openStatuses = `g.status IN ('prepared', 'submitted', 'aborting')`

// open reads both tables in one snapshot.
func (s *sqlStore) open(ctx context.Context) (_ []found, err error) {
	tx, err := s.db.BeginTx(ctx, &sql.TxOptions{Isolation: sql.LevelRepeatableRead, ReadOnly: true})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, tx.Rollback()) }() // nothing was written
	var out []found
	index := map[string]int{}
	err = each(ctx, tx, `SELECT g.gid, g.trans_type, g.status, g.query_prepared, g.protocol, g.create_time, g.update_time, g.options, g.custom_data,
		g.ext_data, g.result, g.rollback_reason FROM `+s.prefix+`trans_global g WHERE `+openStatuses+` ORDER BY g.id`, func(scan func(...any) error) error {
		var f found
		var created, updated sql.NullTime
		var opts, custom, ext, result, reason sql.NullString
		if err := scan(&f.Gid, &f.TransType, &f.Status, &f.QueryPrepared, &f.Protocol, &created, &updated, &opts, &custom, &ext, &result, &reason); err != nil {
			return err
		}
		f.Created, f.Updated = created.Time, updated.Time
		f.Options, f.CustomData, f.ExtData, f.Result, f.RollbackReason = opts.String, custom.String, ext.String, result.String, reason.String
		index[f.Gid] = len(out)
		out = append(out, f)
		return nil
	})
	if err != nil {
		return nil, err
	}
	err = each(ctx, tx, `SELECT g.gid, b.branch_id, b.op, b.url, b.status, b.bin_data, b.create_time, b.finish_time FROM `+s.prefix+`trans_branch_op b
		JOIN `+s.prefix+`trans_global g ON g.gid = b.gid WHERE `+openStatuses+` ORDER BY b.id`, func(scan func(...any) error) error {
		var gid string
		var r row
		var created, finished sql.NullTime
		if err := scan(&gid, &r.BranchID, &r.Op, &r.URL, &r.Status, &r.Data, &created, &finished); err != nil {
			return err
		}
		r.Created, r.Finished = created.Time, finished.Time
		f := &out[index[gid]]
		f.rows = append(f.rows, r)
		return nil
	})
	return out, err
}

// each calls f for every row of a query.
func each(ctx context.Context, tx *sql.Tx, query string, f func(scan func(...any) error) error) error {
	rows, err := tx.QueryContext(ctx, query)
	if err != nil {
		return fmt.Errorf("read DTM's tables: %w", err)
	}
	defer rows.Close()
	for rows.Next() {
		if err := f(rows.Scan); err != nil {
			return fmt.Errorf("read DTM's tables: %w", err)
		}
	}
	return rows.Err()
}
