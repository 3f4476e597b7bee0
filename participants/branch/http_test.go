package branch_test

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"

	"github.com/lockstep-tx/lockstep/participants/barrier"
	"github.com/lockstep-tx/lockstep/participants/branch"
)

type payload struct {
	Say string `json:"say"`
}

// serve returns the URL of a participant whose branch does what its payload says.
func serve(t *testing.T) string {
	t.Helper()
	ctx := context.Background()
	db, err := barrier.OpenSQLite(ctx, filepath.Join(t.TempDir(), "x.db"))
	if err != nil {
		t.Fatal(err)
	}
	if err := barrier.Migrate(ctx, db, barrier.SQLite); err != nil {
		t.Fatal(err)
	}
	b, err := barrier.New(db, barrier.SQLite, barrier.Options{})
	if err != nil {
		t.Fatal(err)
	}
	say := func(_ context.Context, _ *sql.Tx, _ *barrier.Call, p payload) error {
		switch p.Say {
		case "refused":
			return fmt.Errorf("%w: too little", barrier.ErrRefused)
		case "ongoing":
			return barrier.ErrOngoing
		case "boom":
			return errors.New("boom")
		}
		return nil
	}
	p := branch.New(b, branch.Options{})
	branch.HandleTCC(p, "branch", branch.TCC[payload]{Try: say, Confirm: say, Cancel: say})
	mux := http.NewServeMux()
	mux.Handle("/", p.Handler())
	mux.Handle("/local", branch.Serve(barrier.OpMsg, func(ctx context.Context, call *barrier.Call, _ []byte) error {
		_, err := b.Do(ctx, call, func(*sql.Tx) error { return nil })
		return err
	}, nil))
	s := httptest.NewServer(mux)
	t.Cleanup(func() { s.Close(); p.Close(); db.Close() })
	return s.URL
}

func post(t *testing.T, url, body string, epoch int, gid string) (int, string) {
	t.Helper()
	req, err := http.NewRequest(http.MethodPost, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	if epoch > 0 {
		req.Header.Set(barrier.HeaderSlot, fmt.Sprint(barrier.SlotOf(gid)))
		req.Header.Set(barrier.HeaderEpoch, fmt.Sprint(epoch))
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	var answer struct {
		Result string `json:"dtm_result"`
	}
	if err := json.Unmarshal(b, &answer); err != nil {
		t.Fatalf("%s: %v", b, err)
	}
	return resp.StatusCode, answer.Result
}

func TestAnswers(t *testing.T) {
	url := serve(t)
	at := func(gid, op string) string {
		return url + "/branch/try?trans_type=tcc&branch_id=01&gid=" + gid + "&op=" + op
	}
	for _, tc := range []struct {
		name, url, body string
		epoch           int
		gid             string
		status          int
		result          string
	}{
		{"done", at("g1", "try"), `{"say":""}`, 2, "g1", 200, "SUCCESS"},
		{"repeated", at("g1", "try"), `{"say":"boom"}`, 2, "g1", 200, "SUCCESS"},
		{"stale", at("g1", "try"), `{}`, 1, "g1", 412, "STALE"},
		{"refused", at("g2", "try"), `{"say":"refused"}`, 2, "g2", 409, "FAILURE"},
		{"ongoing", at("g2", "try"), `{"say":"ongoing"}`, 2, "g2", 425, "ONGOING"},
		{"error", at("g2", "try"), `{"say":"boom"}`, 2, "g2", 500, "ERROR"},
		{"done after all of these", at("g2", "try"), `{}`, 2, "g2", 200, "SUCCESS"},
		{"client's try without an epoch", at("g3", "try"), `{}`, 0, "g3", 200, "SUCCESS"},
		{"other op", at("g2", "confirm"), `{}`, 2, "g2", 400, "ERROR"},
		{"no JSON", at("g4", "try"), `{`, 2, "g4", 400, "ERROR"},
		{"no identity", url + "/branch/try", `{}`, 0, "", 400, "ERROR"},
		{"too large", at("g5", "try"), `{"say":"` + strings.Repeat("x", branch.PayloadBytesMax) + `"}`, 2, "g5", 400, "ERROR"},
	} {
		status, result := post(t, tc.url, tc.body, tc.epoch, tc.gid)
		if status != tc.status || result != tc.result {
			t.Errorf("%s: %d %s, want %d %s", tc.name, status, result, tc.status, tc.result)
		}
	}
}

func TestCancelWithoutEpochIsNotDone(t *testing.T) {
	url := serve(t) + "/branch/cancel?trans_type=tcc&branch_id=01&gid=g1&op=cancel"
	if status, _ := post(t, url, `{}`, 0, "g1"); status != 500 {
		t.Errorf("status %d", status)
	}
}

func TestCheckBack(t *testing.T) {
	url := serve(t)
	resp, err := http.Get(url + "/query-prepared?trans_type=msg&branch_id=00&gid=m1&op=msg")
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != 409 {
		t.Errorf("check-back of nothing: %d", resp.StatusCode)
	}
	if status, _ := post(t, url+"/local?trans_type=msg&branch_id=00&gid=m1&op=msg", `{}`, 0, "m1"); status != 409 {
		t.Errorf("local part after it: %d", status)
	}
	if status, _ := post(t, url+"/local?trans_type=msg&branch_id=00&gid=m2&op=msg", `{}`, 0, "m2"); status != 200 {
		t.Errorf("local part: %d", status)
	}
	resp, err = http.Get(url + "/query-prepared?trans_type=msg&branch_id=00&gid=m2&op=msg")
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != 200 {
		t.Errorf("check-back of it: %d", resp.StatusCode)
	}
}
