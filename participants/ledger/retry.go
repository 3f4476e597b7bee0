package ledger

import (
	"errors"
	"slices"

	"github.com/go-sql-driver/mysql"
	"github.com/jackc/pgx/v5/pgconn"
	"modernc.org/sqlite"
)

// retryable says that the database rolled a transaction back for a reason that may be gone the next time. A commit whose
// answer was lost is not among them.
func retryable(err error) bool {
	var pe *pgconn.PgError
	if errors.As(err, &pe) {
		return slices.Contains([]string{"40001", "40P01", "55P03"}, pe.Code)
	}
	var me *mysql.MySQLError
	if errors.As(err, &me) {
		return slices.Contains([]uint16{1213, 1205, 1020}, me.Number)
	}
	var se *sqlite.Error
	if errors.As(err, &se) {
		return se.Code()&0xff == 5 || se.Code()&0xff == 6 // SQLITE_BUSY, SQLITE_LOCKED
	}
	return false
}
