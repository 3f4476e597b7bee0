package server

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/lockstep-tx/lockstep/coordinator/api/admin"
	"github.com/lockstep-tx/lockstep/coordinator/auth"
	"github.com/lockstep-tx/lockstep/region/arbiter"
)

func TestAStoppedChainIsLetGoOn(t *testing.T) {
	logs := &logBuffer{}
	var asked [2]int
	var failure error
	h := serveUnstop(arbiter.Deployment{Regions: []string{"east", "west"}}, func(_ context.Context, origin, n int) (bool, error) {
		asked = [2]int{origin, n}
		return true, failure
	}, slog.New(slog.NewTextHandler(logs, nil)))
	post := func(query string) (int, string) {
		req := httptest.NewRequest(http.MethodPost, "/v1/region/unstop?"+query, nil)
		if admin.Need(req) != auth.RoleOperator {
			t.Fatal("a viewer may do it")
		}
		rec := httptest.NewRecorder()
		h(rec, req)
		b, _ := io.ReadAll(rec.Body)
		return rec.Code, string(b)
	}
	if code, b := post("origin=west&slot=7"); code != 200 || !strings.Contains(b, `"was_stopped":true`) || asked != [2]int{2, 7} {
		t.Fatal(code, b, asked)
	}
	if !strings.Contains(logs.String(), "act=unstop origin=west slot=7") {
		t.Error(logs.String())
	}
	for _, bad := range []string{"", "origin=north&slot=7", "origin=west", "origin=west&slot=x", "origin=west&slot=1024", "origin=west&slot=-1"} {
		if code, _ := post(bad); code != 400 {
			t.Errorf("%q: %d", bad, code)
		}
	}
	failure = errors.New("the journal is away")
	if code, b := post("origin=west&slot=7"); code != 503 || !strings.Contains(b, "the journal is away") {
		t.Fatal(code, b)
	}
}
