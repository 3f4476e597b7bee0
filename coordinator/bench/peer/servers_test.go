//go:build servers

package peer

import (
	"context"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"
)

// TestDTMSurvivesAKill starts DTM on every store that the environment names, and on boltdb, kills it and finds what was
// prepared before. It builds DTM, which takes a minute the first time.
func TestDTMSurvivesAKill(t *testing.T) {
	stores := map[string]string{"boltdb": "boltdb"}
	for _, v := range []string{"LOCKSTEP_TEST_POSTGRES_URL", "LOCKSTEP_TEST_MYSQL_URL", "LOCKSTEP_TEST_REDIS_URL"} {
		if u := os.Getenv(v); u != "" {
			stores[v] = u
		}
	}
	for name, url := range stores {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
			defer cancel()
			store, drop, err := CreateStore(ctx, url)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() {
				if err := drop(context.WithoutCancel(ctx)); err != nil {
					t.Error(err)
				}
			})
			d, err := StartDTM(ctx, store, t.TempDir())
			if err != nil {
				t.Fatal(err)
			}
			if got := post(t, d, "prepare", `{"gid":"g1","trans_type":"tcc"}`); got != http.StatusOK {
				t.Fatalf("prepare answered %d", got)
			}
			d.Kill()
			d, err = d.Restart(ctx)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = d.Stop() })
			branch := `{"gid":"g1","trans_type":"tcc","branch_id":"01","data":"{}","confirm":"","cancel":""}`
			if got := post(t, d, "registerBranch", branch); got != http.StatusOK {
				t.Errorf("registerBranch after the restart answered %d", got)
			}
			if got := post(t, d, "registerBranch", `{"gid":"g2"`+branch[len(`{"gid":"g1"`):]); got != http.StatusConflict {
				t.Errorf("registerBranch of an unknown gid answered %d", got)
			}
		})
	}
}

func post(t *testing.T, d *DTM, op, body string) int {
	t.Helper()
	resp, err := http.Post(d.HTTPBase+"/"+op, "application/json", strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	return resp.StatusCode
}
