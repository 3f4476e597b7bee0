package main

import (
	"bytes"
	"context"
	"database/sql"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"

	"github.com/lockstep-tx/lockstep/participants/barrier"
	"github.com/lockstep-tx/lockstep/participants/branch"
)

func TestCheck(t *testing.T) {
	ctx := context.Background()
	db, err := barrier.OpenSQLite(ctx, filepath.Join(t.TempDir(), "x.db"))
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if err := barrier.Migrate(ctx, db, barrier.SQLite); err != nil {
		t.Fatal(err)
	}
	b, err := barrier.New(db, barrier.SQLite, barrier.Options{})
	if err != nil {
		t.Fatal(err)
	}
	p := branch.New(b, branch.Options{})
	defer p.Close()
	nothing := func(context.Context, *sql.Tx, *barrier.Call, struct{}) error { return nil }
	branch.HandleTCC(p, "pay", branch.TCC[struct{}]{Try: nothing, Confirm: nothing, Cancel: nothing})
	right := httptest.NewServer(p.Handler())
	defer right.Close()
	wrong := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {})) // says yes to everything
	defer wrong.Close()
	for _, tc := range []struct {
		args []string
		code int
		says string
	}{
		{[]string{"--url", right.URL + "/pay"}, 3, "12 passed, 0 failed, 7 not checked"},
		{[]string{"--try", right.URL + "/pay/try", "--confirm", right.URL + "/pay/confirm", "--cancel", right.URL + "/pay/cancel"}, 3, "NOT CHECKED  a stale call moves nothing"},
		{[]string{"--url", wrong.URL}, 1, "FAIL         a try after its cancel is refused with 409"},
		{[]string{"--url", right.URL + "/nowhere"}, 2, "could not be checked"},
		{[]string{"--url", right.URL, "--try", right.URL}, 2, "give --url"},
		{nil, 2, "give --url"},
	} {
		var out bytes.Buffer
		if code := run(ctx, append([]string{"check"}, tc.args...), &out, &out); code != tc.code || !strings.Contains(out.String(), tc.says) {
			t.Errorf("check %v: exit %d, want %d and %q:\n%s", tc.args, code, tc.code, tc.says, out.String())
		}
	}
}
