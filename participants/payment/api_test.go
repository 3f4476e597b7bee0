package payment

import (
	"maps"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"

	"github.com/lockstep-tx/lockstep/coordinator/api/apipb"
	"github.com/lockstep-tx/lockstep/coordinator/api/client"
	"github.com/lockstep-tx/lockstep/participants/payment/apitest"
)

func apiDocument(t *testing.T) *apitest.Document {
	t.Helper()
	d, err := apitest.Parse(openAPI)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// Every operation is walked through to every status that the document has, and everything that is said on the way is held
// against it: parameters, headers, fields and their types.
func TestWhatIsSpokenIsWhatTheDocumentSays(t *testing.T) {
	b := onSQLite(t)
	doc, seen := apiDocument(t), map[string]bool{}
	h := b.Handler()
	call := func(method, path, body string, status int, headers ...string) {
		t.Helper()
		req := httptest.NewRequest(method, path, strings.NewReader(body))
		for i := 0; i+1 < len(headers); i += 2 {
			req.Header.Set(headers[i], headers[i+1])
		}
		rec := httptest.NewRecorder()
		h.ServeHTTP(rec, req)
		name, err := doc.Check(apitest.Exchange{Method: method, Path: path, RequestHeader: req.Header, RequestBody: []byte(body), Status: rec.Code, Header: rec.Header(), Body: rec.Body.Bytes()})
		if err != nil {
			t.Error(err)
		}
		if rec.Code != status {
			t.Errorf("%s %s %s: %d %s, want %d", method, path, body, rec.Code, rec.Body, status)
		}
		seen[name] = true
	}
	commit, abort := ended(apipb.Phase_PHASE_COMMITTING, "", "done"), ended(apipb.Phase_PHASE_ABORTED, "merchant_funds m (field amount)")
	if err := b.Inventory.Stock(t.Context(), b.DB, "first", "x", 5); err != nil {
		t.Fatal(err)
	}
	walkPayments(b, call, commit, abort)
	walkRefunds(b, call, commit, abort)
	walkReversals(b, call, commit, abort)
	walkOrders(b, call)
	for path, ops := range doc.Paths {
		for method, op := range ops {
			for _, status := range slices.Sorted(maps.Keys(op.Responses)) {
				if name := strings.ToUpper(method) + " " + path + " " + status; status != "500" && !seen[name] {
					t.Errorf("%s is described, and was not seen", name)
				}
			}
		}
	}
}

type caller func(method, path, body string, status int, headers ...string)

const body1 = `{"merchant":"m","order_no":"1","buyer":"b","amount":100,"currency":"CNY","items":[{"sku":"x","n":1}]}`

func walkPayments(b *bed, call caller, commit, abort client.State) {
	body := func(no string) string { return strings.Replace(body1, `"1"`, `"`+no+`"`, 1) }
	b.f.executes = commit
	call("POST", "/v1/payments", body("1"), http.StatusOK, "Idempotency-Key", "k", "Prefer", "wait=5")
	b.f.executes = abort
	call("POST", "/v1/payments", body("2"), http.StatusUnprocessableEntity)
	call("POST", "/v1/payments", body("2"), http.StatusUnprocessableEntity, "Idempotency-Key", "again")
	b.f.executes = client.State{}
	call("POST", "/v1/payments", body("3"), http.StatusAccepted)
	call("POST", "/v1/payments", body("4"), http.StatusAccepted, "Prefer", "wait=0")
	call("POST", "/v1/payments", `{}`, http.StatusBadRequest)
	call("POST", "/v1/payments", strings.Replace(body1, "100", "101", 1), http.StatusConflict)
	call("GET", "/v1/payments", "", http.StatusOK)
	call("GET", "/v1/payments?limit=1&state=paid&merchant=m&after=", "", http.StatusOK)
	call("GET", "/v1/payments?limit=0", "", http.StatusBadRequest)
	call("GET", "/v1/payments/"+PaymentID("m", "2"), "", http.StatusOK)
	call("GET", "/v1/payments/none", "", http.StatusNotFound)
}

func walkRefunds(b *bed, call caller, commit, abort client.State) {
	path := "/v1/payments/" + PaymentID("m", "1") + "/refunds"
	b.f.executes = commit
	call("POST", path, `{"refund_no":"r1","amount":1}`, http.StatusOK, "Prefer", "wait=5", "Idempotency-Key", "kr")
	call("POST", path, `{"refund_no":"r1","amount":1}`, http.StatusOK, "Idempotency-Key", "kr")
	call("POST", path, `{"refund_no":"r4","amount":1}`, http.StatusConflict, "Idempotency-Key", "kr")
	call("POST", path, `{"refund_no":"r4","amount":1}`, http.StatusConflict, "Idempotency-Key", "k") // a payment's
	call("POST", path, `{"refund_no":"r4","amount":1}`, http.StatusBadRequest, "Idempotency-Key", strings.Repeat("k", 129))
	b.f.executes = abort
	call("POST", path, `{"refund_no":"r2","amount":1}`, http.StatusUnprocessableEntity)
	b.f.executes = client.State{}
	call("POST", path, `{"refund_no":"r3","amount":1}`, http.StatusAccepted)
	call("POST", path, `{"refund_no":"r5","amount":1}`, http.StatusAccepted, "Prefer", "wait=0")
	call("POST", path, `{"refund_no":"","amount":1}`, http.StatusBadRequest)
	call("POST", path, `{"refund_no":"r1","amount":2}`, http.StatusConflict)
	call("POST", "/v1/payments/none/refunds", `{"refund_no":"r1","amount":2}`, http.StatusNotFound)
	call("GET", path, "", http.StatusOK)
	call("GET", "/v1/payments/none/refunds", "", http.StatusNotFound)
}

func walkReversals(b *bed, call caller, commit, abort client.State) {
	const order = `{"merchant":"m","order_no":"r","reversal_no":"v"}`
	call("POST", "/v1/reversals", order, http.StatusOK)
	call("POST", "/v1/reversals", strings.Replace(order, `"v"`, `"w"`, 1), http.StatusConflict)
	call("POST", "/v1/reversals", `{}`, http.StatusBadRequest)
	call("POST", "/v1/payments", strings.Replace(body1, `"1"`, `"r"`, 1), http.StatusConflict)
	call("POST", "/v1/payments/"+PaymentID("m", "r")+"/ask", "", http.StatusOK, "Prefer", "wait=0")
	call("POST", "/v1/payments/"+PaymentID("m", "r")+"/ask", "", http.StatusBadRequest, "Prefer", "wait=x")
	call("POST", "/v1/payments/none/ask", "", http.StatusNotFound)
	b.f.executes = commit
	call("POST", "/v1/payments", strings.Replace(body1, `"1"`, `"s"`, 1), http.StatusOK)
	b.f.executes = client.State{}
	call("POST", "/v1/reversals", strings.Replace(order, `"r"`, `"s"`, 1), http.StatusAccepted, "Prefer", "wait=0")
	b.f.executes = abort
	call("POST", "/v1/reversals", strings.Replace(order, `"r"`, `"s"`, 1), http.StatusUnprocessableEntity)
}

func walkOrders(b *bed, call caller) {
	id := OrderID("m", "9")
	const order = `{"merchant":"m","order_no":"9","items":[{"sku":"x","n":1}],"ttl_seconds":60}`
	call("POST", "/v1/orders", order, http.StatusOK, "Idempotency-Key", "ko")
	call("POST", "/v1/orders", order, http.StatusOK, "Idempotency-Key", "ko")
	call("POST", "/v1/orders", strings.Replace(order, `"9"`, `"12"`, 1), http.StatusConflict, "Idempotency-Key", "ko")
	call("POST", "/v1/orders", strings.Replace(order, `"m"`, `"nobody"`, 1), http.StatusUnprocessableEntity)
	call("POST", "/v1/orders", strings.Replace(order, "60", "61", 1), http.StatusConflict)
	call("POST", "/v1/orders", strings.Replace(order, "60", "-1", 1), http.StatusBadRequest)
	call("POST", "/v1/orders", strings.Replace(order, `"9"`, `"10"`, 1)+" ", http.StatusOK)
	call("POST", "/v1/orders", `{"merchant":"m","order_no":"11","items":[{"sku":"x","n":100}]}`, http.StatusUnprocessableEntity)
	call("GET", "/v1/orders/"+id, "", http.StatusOK)
	call("GET", "/v1/orders/none", "", http.StatusNotFound)
	if _, err := b.DB.Exec("UPDATE inventory_order SET state = 'paying' WHERE id = '" + id + "'"); err != nil {
		b.t.Fatal(err)
	}
	call("POST", "/v1/orders/"+id+"/cancel", "", http.StatusConflict)
	call("POST", "/v1/orders/"+OrderID("m", "10")+"/cancel", "", http.StatusOK)
	call("POST", "/v1/orders/none/cancel", "", http.StatusNotFound)
}
