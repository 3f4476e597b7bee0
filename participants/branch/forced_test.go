package branch_test

import (
	"context"
	"database/sql"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/lockstep-tx/lockstep/participants/barrier"
	"github.com/lockstep-tx/lockstep/participants/branch"
	"github.com/lockstep-tx/lockstep/participants/branch/batchpb"
)

func (k *kit) region(method, path, body string, headers ...string) (int, string) {
	r := httptest.NewRequest(method, path, strings.NewReader(body))
	for i := 0; i < len(headers); i += 2 {
		r.Header.Set(headers[i], headers[i+1])
	}
	rec := httptest.NewRecorder()
	k.p.Handler().ServeHTTP(rec, r)
	return rec.Code, rec.Body.String()
}

// bare is a Movable that can do nothing else.
type bare struct{}

func (bare) Take(context.Context, *sql.Tx, int, []barrier.Row) (json.RawMessage, error) {
	return nil, nil
}
func (bare) Give(context.Context, *sql.Tx, int, json.RawMessage, []barrier.Row, []barrier.Row) error {
	return nil
}

func TestAParticipantThatHoldsNothingByNameSaysSo(t *testing.T) {
	for name, movable := range map[string]branch.Movable{"that does not move": nil, "that only moves": bare{}} {
		t.Run(name, func(t *testing.T) {
			k := newKit(t, branch.Options{})
			if movable != nil {
				k.p.Move(movable)
			}
			if status, text := k.region("GET", "/lockstep/probe", ""); status != 200 || !strings.Contains(text, `"tries":true,"settle":false`) {
				t.Errorf("the probe: %d %s", status, text)
			}
			n := fmt.Sprint(barrier.SlotOf("g1"))
			status, text := k.region("POST", "/lockstep/settle?gid=g1&branch_id=01&trans_type=tcc&op=confirm", "", barrier.HeaderSlot, n, barrier.HeaderEpoch, "2")
			if status != http.StatusNotImplemented || !strings.Contains(text, "by its name") {
				t.Errorf("a settlement: %d %s", status, text)
			}
			if a := k.batch(t, member("g1", "try", "")); a[0].Status != 200 {
				t.Fatal(a)
			}
			status, text = k.region("POST", "/lockstep/tries", `{"slots":[`+n+`]}`)
			if want := `{"tries":[{"gid":"g1","branch":"01","trans_type":"tcc","durability":"regional","state":"tried","debit":false}]}`; status != 200 || strings.TrimSpace(text) != want {
				t.Errorf("the tries: %d %s, want %s", status, text, want)
			}
			if status, text = k.region("POST", "/lockstep/fence", `[{"slot":1024,"epoch":3}]`); status != 400 || !strings.Contains(text, "slots[0].slot") {
				t.Errorf("a fence of no slot: %d %s", status, text)
			}
		})
	}
}

// A server-driven try comes in a batch, with the transaction's branch headers as the client wrote them.
func TestDurabilityTravelsInABatchToo(t *testing.T) {
	k := newKit(t, branch.Options{})
	with := func(gid, op, name, value string) *batchpb.BranchCall {
		m := member(gid, op, "")
		m.Headers = map[string]string{name: value}
		return m
	}
	a := k.batch(t, with("{b}-1", "try", "lockstep-durability", "global"), with("{b}-2", "try", "Lockstep-Durability", "regional"),
		with("{b}-3", "try", barrier.HeaderDurability, "some"), with("{b}-4", "confirm", barrier.HeaderSuspense, "true"))
	if a[0].Status != 200 || a[1].Status != 200 || a[2].Status != 400 || !strings.Contains(a[2].Message, barrier.HeaderDurability) || a[3].Status != 400 || !strings.Contains(a[3].Message, barrier.HeaderSuspense) {
		t.Fatal(a)
	}
	_, text := k.region("POST", "/lockstep/tries", fmt.Sprintf(`{"slots":[%d]}`, barrier.SlotOf("{b}")))
	if strings.Count(text, `"durability":"global"`) != 1 || strings.Count(text, `"durability":"regional"`) != 1 {
		t.Errorf("the tries: %s", text)
	}
}
