package peer

import (
	"context"
	"crypto/rand"
	"database/sql"
	"fmt"
	"net/url"
	"strconv"
	"strings"

	"github.com/go-sql-driver/mysql"
	_ "github.com/jackc/pgx/v5/stdlib"
	"github.com/redis/go-redis/v9"
)

// spareConns is how many of a database's connections DTM leaves to others; it opens up to 500 by itself and panics
// when the server refuses.
const spareConns = 12

// StoreConfig is DTM's store configuration, in DTM's words.
type StoreConfig struct {
	Driver       string // boltdb, postgres, mysql (MariaDB as well) or redis
	Host         string
	Port         int
	User         string
	Password     string
	DB           string // postgres, mysql
	RedisPrefix  string
	MaxOpenConns int // postgres, mysql; also the number kept idle
}

// Boltdb is DTM's default store, a file in the server's directory.
func Boltdb() StoreConfig { return StoreConfig{Driver: "boltdb"} }

func (c StoreConfig) env() []string {
	env := []string{"STORE_DRIVER=" + c.Driver}
	add := func(name, value string) {
		if value != "" && value != "0" {
			env = append(env, "STORE_"+name+"="+value)
		}
	}
	add("HOST", c.Host)
	add("PORT", strconv.Itoa(c.Port))
	add("USER", c.User)
	add("PASSWORD", c.Password)
	add("DB", c.DB)
	add("REDIS_PREFIX", c.RedisPrefix)
	add("MAX_OPEN_CONNS", strconv.Itoa(c.MaxOpenConns))
	add("MAX_IDLE_CONNS", strconv.Itoa(c.MaxOpenConns))
	return env
}

// CreateStore makes an empty store for DTM on the server that rawURL names: a database of its own with DTM's tables on
// postgres:// and mysql://, a key prefix of its own on redis://; "boltdb" needs no server. drop removes it again; call it
// after DTM has ended.
func CreateStore(ctx context.Context, rawURL string) (c StoreConfig, drop func(context.Context) error, err error) {
	if rawURL == "boltdb" {
		return Boltdb(), func(context.Context) error { return nil }, nil
	}
	u, err := url.Parse(rawURL)
	if err != nil {
		return c, nil, err
	}
	port, err := strconv.Atoi(u.Port())
	if err != nil {
		return c, nil, fmt.Errorf("store %s: the url needs a host and a port", u.Redacted())
	}
	c = StoreConfig{Host: u.Hostname(), Port: port, User: u.User.Username()}
	c.Password, _ = u.User.Password()
	name := "dtmpeer_" + strings.ToLower(rand.Text()[:12])
	switch u.Scheme {
	case "postgres", "postgresql":
		c.Driver, c.DB = "postgres", name
		drop, err = c.createPostgres(ctx, u)
	case "mysql":
		c.Driver, c.DB = "mysql", name
		drop, err = c.createMySQL(ctx, u)
	case "redis":
		c.Driver, c.RedisPrefix = "redis", "{"+name+"}"
		drop, err = c.createRedis(ctx, rawURL)
	default:
		err = fmt.Errorf("DTM has no store for %s://", u.Scheme)
	}
	if err != nil {
		return c, nil, fmt.Errorf("DTM's store on %s: %w", u.Redacted(), err)
	}
	return c, drop, nil
}

func (c *StoreConfig) createPostgres(ctx context.Context, u *url.URL) (func(context.Context) error, error) {
	limit := 0
	err := onDB(ctx, "pgx", u.String(), func(db *sql.DB) error {
		return db.QueryRowContext(ctx, "SELECT setting FROM pg_settings WHERE name = 'max_connections'").Scan(&limit)
	}, "CREATE DATABASE "+c.DB)
	if err != nil {
		return nil, err
	}
	c.MaxOpenConns = min(500, limit-spareConns)
	own := *u
	own.Path = "/" + c.DB
	drop := func(ctx context.Context) error {
		return onDB(ctx, "pgx", u.String(), nil, "DROP DATABASE IF EXISTS "+c.DB+" WITH (FORCE)")
	}
	if err := onDB(ctx, "pgx", own.String(), nil, postgresTables...); err != nil {
		return nil, errorAfter(drop(ctx), err)
	}
	return drop, nil
}

func (c *StoreConfig) createMySQL(ctx context.Context, u *url.URL) (func(context.Context) error, error) {
	dsn := mysql.NewConfig()
	dsn.Net, dsn.Addr, dsn.User, dsn.Passwd = "tcp", u.Host, c.User, c.Password
	server := dsn.FormatDSN()
	limit := 0
	err := onDB(ctx, "mysql", server, func(db *sql.DB) error {
		return db.QueryRowContext(ctx, "SELECT @@max_connections").Scan(&limit)
	}, "CREATE DATABASE "+c.DB+" DEFAULT CHARACTER SET utf8mb4")
	if err != nil {
		return nil, err
	}
	c.MaxOpenConns = min(500, limit-spareConns)
	drop := func(ctx context.Context) error {
		return onDB(ctx, "mysql", server, nil, "DROP DATABASE IF EXISTS "+c.DB)
	}
	dsn.DBName = c.DB
	if err := onDB(ctx, "mysql", dsn.FormatDSN(), nil, mysqlTables...); err != nil {
		return nil, errorAfter(drop(ctx), err)
	}
	return drop, nil
}

// createRedis needs nothing on the server: DTM writes every key under its prefix. DTM knows database 0 only.
func (c *StoreConfig) createRedis(ctx context.Context, rawURL string) (func(context.Context) error, error) {
	o, err := redis.ParseURL(rawURL)
	if err != nil {
		return nil, err
	}
	if o.DB != 0 {
		return nil, fmt.Errorf("DTM can only use database 0, not %d", o.DB)
	}
	client := redis.NewClient(o)
	defer client.Close()
	if err := client.Ping(ctx).Err(); err != nil {
		return nil, err
	}
	return func(ctx context.Context) error {
		client := redis.NewClient(o)
		defer client.Close()
		var keys []string
		for it := client.Scan(ctx, 0, c.RedisPrefix+"*", 1000).Iterator(); ; {
			more := it.Next(ctx)
			if more {
				keys = append(keys, it.Val())
			}
			if len(keys) == 1000 || !more && len(keys) > 0 {
				if err := client.Unlink(ctx, keys...).Err(); err != nil {
					return err
				}
				keys = keys[:0]
			}
			if !more {
				return it.Err()
			}
		}
	}, nil
}

// onDB opens a connection, calls ask (may be nil) and executes the statements one by one.
func onDB(ctx context.Context, driver, dsn string, ask func(*sql.DB) error, statements ...string) error {
	db, err := sql.Open(driver, dsn)
	if err != nil {
		return err
	}
	defer db.Close()
	if ask != nil {
		if err := ask(db); err != nil {
			return err
		}
	}
	for _, s := range statements {
		if _, err := db.ExecContext(ctx, s); err != nil {
			return fmt.Errorf("%w in: %.80s", err, s)
		}
	}
	return nil
}

// errorAfter returns err, and what went wrong while cleaning up after it.
func errorAfter(cleanup, err error) error {
	if cleanup != nil {
		return fmt.Errorf("%w (and cleaning up: %v)", err, cleanup)
	}
	return err
}
