package xa

import (
	"database/sql"
	"database/sql/driver"
	"slices"

	"github.com/jackc/pgx/v5/stdlib"
)

// DTM's SDK opens PostgreSQL as "postgres" and begins and prepares its XA transaction by bare statements on a pool; pgx
// would discard a connection that goes back with a transaction open.
func init() {
	if !slices.Contains(sql.Drivers(), "postgres") {
		sql.Register("postgres", bareDriver{})
	}
}

type bareDriver struct{}

func (bareDriver) Open(dsn string) (driver.Conn, error) {
	c, err := stdlib.GetDefaultDriver().Open(dsn)
	if err != nil {
		return nil, err
	}
	return bareConn{c.(full)}, nil
}

// full is what a connection can beside being reset.
type full interface {
	driver.Conn
	driver.ConnBeginTx
	driver.ExecerContext
	driver.QueryerContext
	driver.ConnPrepareContext
	driver.NamedValueChecker
}

type bareConn struct{ full }
