package barrier

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strings"

	"github.com/go-sql-driver/mysql"
)

// Migrate makes the barrier's tables in the default schema of db and all fence rows at epoch 1. It may run any number of
// times and in several processes at once; rows that are there stay as they are.
func Migrate(ctx context.Context, db *sql.DB, d Dialect) error { return MigrateSchema(ctx, db, d, "") }

// MigrateSchema is Migrate for Options.Schema.
func MigrateSchema(ctx context.Context, db *sql.DB, d Dialect, schema string) error {
	dialect, err := newDialect(d, schema)
	if err != nil {
		return err
	}
	tx, err := db.BeginTx(ctx, nil)
	if err != nil {
		return fmt.Errorf("migrate barrier: %w", err)
	}
	defer func() { _ = tx.Rollback() }()
	for _, stmt := range append(dialect.migrate(), homeTables(dialect, d)...) {
		if _, err := tx.ExecContext(ctx, stmt); err != nil {
			return fmt.Errorf("migrate barrier: %w", err)
		}
	}
	if err := addColumns(ctx, tx, dialect, d); err != nil {
		return fmt.Errorf("migrate barrier: %w", err)
	}
	var fences int
	if err := tx.QueryRowContext(ctx, "SELECT count(*) FROM "+dialect.fence()).Scan(&fences); err != nil {
		return fmt.Errorf("migrate barrier: %w", err)
	}
	if fences != SlotCount {
		return fmt.Errorf("migrate barrier: %s has %d rows instead of one for each of the %d slots", dialect.fence(), fences, SlotCount)
	}
	if err := tx.Commit(); err != nil {
		return fmt.Errorf("migrate barrier: %w", err)
	}
	return nil
}

// columns are those that came after their tables were first made, in the order in which they came.
func columns(d dialect) []struct{ table, name, is string } {
	fence, touched, released := d.fence(), strings.TrimSuffix(d.fence(), "fence")+"touched", strings.TrimSuffix(d.fence(), "fence")+"released"
	return []struct{ table, name, is string }{
		{fence, "risk", "varchar(8) NOT NULL DEFAULT ''"},         // what accounts may do after a forced failover
		{fence, "cap", "bigint NOT NULL DEFAULT 0"},               // of limit, in minor units
		{fence, "risk_epoch", "bigint NOT NULL DEFAULT 0"},        // of the adoption
		{fence, "home_epoch", "bigint NOT NULL DEFAULT 0"},        // at which it was told or adopted as home; calls raise epoch alone
		{touched, "durability", "varchar(8) NOT NULL DEFAULT ''"}, // of the branch's transaction; empty is regional
		{released, "let_go", "int NOT NULL DEFAULT 0"},            // 1: evidence of a demotion, which nobody adopts
	}
}

// addColumns adds the columns that are not there.
func addColumns(ctx context.Context, tx *sql.Tx, dialect dialect, kind Dialect) error {
	for _, c := range columns(dialect) {
		schema, table, found := strings.Cut(c.table, ".")
		query, args := "SELECT count(*) FROM information_schema.columns WHERE table_schema = "+dialect.arg(1)+" AND table_name = "+dialect.arg(2)+" AND column_name = "+dialect.arg(3), []any{schema, table, c.name}
		if !found {
			query, args = "SELECT count(*) FROM pragma_table_info(?) WHERE name = ?", []any{c.table, c.name}
		}
		var n int
		if err := tx.QueryRowContext(ctx, query, args...).Scan(&n); err != nil {
			return err
		}
		if n > 0 {
			continue
		}
		if _, err := tx.ExecContext(ctx, "ALTER TABLE "+c.table+" ADD COLUMN "+c.name+" "+c.is); err != nil && !(kind == MySQL && isDuplicateColumn(err)) {
			return fmt.Errorf("%s.%s: %w", c.table, c.name, err)
		}
		if c.name == "home_epoch" {
			if _, err := tx.ExecContext(ctx, "UPDATE "+c.table+" SET home_epoch = epoch WHERE epoch > 1"); err != nil {
				return err
			}
		}
	}
	return nil
}

// isDuplicateColumn: another process has added it meanwhile; MySQL's DDL commits by itself.
func isDuplicateColumn(err error) bool {
	var me *mysql.MySQLError
	return errors.As(err, &me) && me.Number == 1060
}

// OpenPostgres opens the database that url names (postgres://…) as a participant needs it. The caller closes it.
func OpenPostgres(ctx context.Context, url string) (*sql.DB, error) {
	db, err := sql.Open("pgx", url)
	if err != nil {
		return nil, fmt.Errorf("open PostgreSQL: %w", err)
	}
	return ready(ctx, db, "PostgreSQL")
}
