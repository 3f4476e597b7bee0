package main

import (
	"bytes"
	"context"
	"database/sql"
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
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
		{[]string{"--url", right.URL + "/pay"}, 3, "12 passed, 0 failed, 8 not checked"},
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

// The reference participants pass, every branch of them, with nothing left unchecked; and the commands say nothing but what
// they are asked for.
func TestCheckOfTheReferenceParticipants(t *testing.T) {
	p := start(t, t.TempDir())
	for _, body := range []string{
		`{"kind":"buyer","id":"alice","balance":1000}`, `{"kind":"buyer","id":"bob","balance":1000,"mode":"split","shards":4}`, `{"kind":"merchant","id":"shop"}`, `{"kind":"article","id":"book","balance":1000}`,
	} {
		if got := p.create(t, body); got != http.StatusNoContent {
			t.Fatalf("%s: %d", body, got)
		}
	}
	for _, tc := range []struct{ branch, payload, refused string }{
		{"buyer", `{"account":"alice","amount":1}`, `{"account":"alice","amount":5000}`},
		{"leg", `{"debit":"bob","credit":"alice","amount":1,"currency":"CNY"}`, `{"debit":"bob","credit":"nobody","amount":1,"currency":"CNY"}`},
		{"merchant", `{"account":"shop","amount":1}`, `{"account":"nobody","amount":1}`},
		{"stock", `{"items":[{"sku":"book","n":1}]}`, `{"items":[{"sku":"book","n":5000}]}`},
	} {
		cmd := exec.Command(os.Args[0], "check", "--url", p.url+"/"+tc.branch, "--payload", tc.payload, "--refused", tc.refused, "--state-url", p.url+"/balances")
		cmd.Env = append(os.Environ(), asProgram+"=1")
		var out, said bytes.Buffer
		cmd.Stdout, cmd.Stderr = &out, &said
		if err := cmd.Run(); err != nil || said.Len() > 0 || !strings.Contains(out.String(), " 0 failed, 0 not checked") {
			t.Errorf("%s: %v, %q\n%s", tc.branch, err, said.String(), out.String())
		}
	}
	cmd := exec.Command(os.Args[0], "check", "--url", p.url+"/buyer", "--payload", `{"account":"alice","amount":1}`) // no balances
	cmd.Env = append(os.Environ(), asProgram+"=1")
	var said bytes.Buffer
	cmd.Stderr = &said
	var exit *exec.ExitError
	if err := cmd.Run(); !errors.As(err, &exit) || exit.ExitCode() != exitNotChecked || said.Len() > 0 {
		t.Errorf("without balances: %v, %q", err, said.String())
	}
}
