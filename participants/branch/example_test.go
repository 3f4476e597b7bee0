package branch_test

import (
	"context"
	"database/sql"
	"fmt"
	"log"
	"net/http"

	"github.com/lockstep-tx/lockstep/participants/barrier"
	"github.com/lockstep-tx/lockstep/participants/branch"
)

// Reserve is the payload of the three calls.
type Reserve struct {
	Item string `json:"item"`
	N    int    `json:"n"`
}

// change runs one statement that must find enough in the column it takes from.
func change(stmt string) branch.Op[Reserve] {
	return func(ctx context.Context, tx *sql.Tx, _ *barrier.Call, r Reserve) error {
		res, err := tx.ExecContext(ctx, stmt, r.N, r.N, r.Item, r.N)
		if err != nil {
			return err
		}
		if n, err := res.RowsAffected(); err != nil || n == 0 {
			return fmt.Errorf("%w: not enough of %s", barrier.ErrRefused, r.Item)
		}
		return nil
	}
}

// A complete participant: a shop's stock on PostgreSQL, over HTTP and in batches.
func Example() {
	ctx := context.Background()
	db, err := barrier.OpenPostgres(ctx, "postgres://shop@localhost/shop")
	if err != nil {
		log.Fatal(err)
	}
	if err := barrier.Migrate(ctx, db, barrier.PostgreSQL); err != nil {
		log.Fatal(err)
	}
	b, err := barrier.New(db, barrier.PostgreSQL, barrier.Options{})
	if err != nil {
		log.Fatal(err)
	}
	p := branch.New(b, branch.Options{})
	branch.HandleTCC(p, "stock", branch.TCC[Reserve]{
		Try:     change(`UPDATE stock SET free = free - $1, held = held + $2 WHERE item = $3 AND free >= $4`),
		Confirm: change(`UPDATE stock SET held = held - $1, sold = sold + $2 WHERE item = $3 AND held >= $4`),
		Cancel:  change(`UPDATE stock SET held = held - $1, free = free + $2 WHERE item = $3 AND held >= $4`),
	})
	log.Fatal(http.ListenAndServe("127.0.0.1:8080", p.Handler()))
}
