package barrier

import (
	"context"
	"database/sql"
	"fmt"
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

// OpenPostgres opens the database that url names (postgres://…) as a participant needs it. The caller closes it.
func OpenPostgres(ctx context.Context, url string) (*sql.DB, error) {
	db, err := sql.Open("pgx", url)
	if err != nil {
		return nil, fmt.Errorf("open PostgreSQL: %w", err)
	}
	return ready(ctx, db, "PostgreSQL")
}
