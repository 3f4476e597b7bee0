package payment

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/http/httptest"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/lockstep-tx/lockstep/participants/inventory"
	"github.com/lockstep-tx/lockstep/participants/payment/apitest"
)

type document struct {
	Paths map[string]map[string]struct {
		Responses map[string]struct {
			Content map[string]struct {
				Schema struct {
					Ref string `json:"$ref"`
				}
			}
		}
	}
	Components struct {
		Schemas map[string]struct {
			Required   []string
			Properties map[string]json.RawMessage
		}
	}
}

func readDocument(t *testing.T) document {
	t.Helper()
	var d document
	if err := json.Unmarshal(openAPI, &d); err != nil {
		t.Fatal(err)
	}
	return d
}

// The document has the operations that are served, no more and no fewer.
func TestTheDocumentHasTheRoutes(t *testing.T) {
	var documented, served []string
	for path, ops := range readDocument(t).Paths {
		for method := range ops {
			documented = append(documented, strings.ToUpper(method)+" "+path)
		}
	}
	for _, r := range routes {
		served = append(served, r.method+" "+r.path)
	}
	slices.Sort(documented)
	slices.Sort(served)
	if !slices.Equal(documented, served) {
		t.Errorf("documented %q\nserved     %q", documented, served)
	}
}

// Its schemas have the fields of the types that are encoded.
func TestTheDocumentsSchemasAreTheTypes(t *testing.T) {
	schemas := readDocument(t).Components.Schemas
	for name, v := range map[string]any{
		"Item": inventory.Item{}, "Request": Request{}, "Payment": Payment{}, "Refusal": Refusal{}, "Page": Page{}, "RefundRequest": RefundRequest{}, "Refund": Refund{},
		"RefundList": RefundList{}, "ReversalRequest": ReversalRequest{}, "Reversal": Reversal{}, "OrderRequest": OrderRequest{}, "Order": Order{}, "Problem": Problem{},
	} {
		s, ok := schemas[name]
		if !ok {
			t.Errorf("no schema %s", name)
			continue
		}
		want := fields(reflect.TypeOf(v))
		if got := slices.Sorted(maps.Keys(s.Properties)); !slices.Equal(got, want) {
			t.Errorf("%s: documented %v, the type has %v", name, got, want)
		}
		for _, r := range s.Required {
			if !slices.Contains(want, r) {
				t.Errorf("%s requires %s, which it has not", name, r)
			}
		}
		delete(schemas, name)
	}
	if len(schemas) > 0 {
		t.Errorf("schemas of no type: %v", slices.Sorted(maps.Keys(schemas)))
	}
}

func fields(t reflect.Type) (out []string) {
	for i := range t.NumField() {
		f := t.Field(i)
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		switch {
		case f.Anonymous:
			out = append(out, fields(f.Type)...)
		case f.IsExported() && name != "-" && name != "":
			out = append(out, name)
		}
	}
	slices.Sort(out)
	return out
}

// Every problem has a status that the operation's document knows.
func TestTheDocumentKnowsTheProblems(t *testing.T) {
	var statuses []string
	for _, k := range kinds {
		statuses = append(statuses, fmt.Sprint(k.status))
	}
	documented := map[string]bool{}
	for _, ops := range readDocument(t).Paths {
		for _, op := range ops {
			for status, r := range op.Responses {
				if c, ok := r.Content["application/problem+json"]; ok && c.Schema.Ref == "#/components/schemas/Problem" {
					documented[status] = true
				}
			}
		}
	}
	for _, s := range statuses {
		if !documented[s] {
			t.Errorf("no operation documents the problem status %s", s)
		}
	}
}

// What is malformed is a problem that names the field, before anything is touched: the service here has nothing to touch.
func TestMalformedRequestsNameTheField(t *testing.T) {
	s := New(Config{})
	h := s.Handler()
	for _, tc := range []struct{ method, path, body, field string }{
		{"POST", "/v1/payments", `{`, ""},
		{"POST", "/v1/payments", `{"merchant":1}`, "merchant"},
		{"POST", "/v1/payments", `{"amounts":1}`, "amounts"},
		{"POST", "/v1/payments", `{"order_no":"1","buyer":"b","amount":1,"items":[{"sku":"x","n":1}]}`, "merchant"},
		{"POST", "/v1/payments", `{"merchant":"m","buyer":"b","amount":1,"items":[{"sku":"x","n":1}]}`, "order_no"},
		{"POST", "/v1/payments", `{"merchant":"m","order_no":"1","amount":1,"items":[{"sku":"x","n":1}]}`, "buyer"},
		{"POST", "/v1/payments", `{"merchant":"m","order_no":"1","buyer":"house:paid:CNY","amount":1,"items":[{"sku":"x","n":1}]}`, "buyer"},
		{"POST", "/v1/payments", `{"merchant":"m","order_no":"1","buyer":"b","items":[{"sku":"x","n":1}]}`, "amount"},
		{"POST", "/v1/payments", `{"merchant":"m","order_no":"1","buyer":"b","amount":1.5,"items":[{"sku":"x","n":1}]}`, "amount"},
		{"POST", "/v1/payments", `{"merchant":"m","order_no":"1","buyer":"b","amount":1,"currency":"yuan","items":[{"sku":"x","n":1}]}`, "currency"},
		{"POST", "/v1/payments", `{"merchant":"m","order_no":"1","buyer":"b","amount":1}`, "items"},
		{"POST", "/v1/payments", `{"merchant":"m","order_no":"1","buyer":"b","amount":1,"items":[{"sku":"x","n":0}]}`, "items"},
		{"POST", "/v1/payments", `{"merchant":"m","order_no":"1","buyer":"b","amount":1,"items":[{"sku":"x","n":1},{"sku":"x","n":1}]}`, "items"},
		{"POST", "/v1/payments", `{"merchant":"m","order_no":"1","buyer":"b","amount":1,"order":"ord_of_somebody_else"}`, "order"},
		{"POST", "/v1/payments/x/refunds", `{"amount":1}`, "refund_no"},
		{"POST", "/v1/payments/x/refunds", `{"refund_no":"1"}`, "amount"},
		{"POST", "/v1/payments", `{"merchant":"m ","order_no":"1","buyer":"b","amount":1,"items":[{"sku":"x","n":1}]}`, "merchant"},
		{"POST", "/v1/payments", `{"merchant":"m","order_no":" 1","buyer":"b","amount":1,"items":[{"sku":"x","n":1}]}`, "order_no"},
		{"POST", "/v1/payments", `{"merchant":"m","order_no":"1","buyer":"b\u0000","amount":1,"items":[{"sku":"x","n":1}]}`, "buyer"},
		{"POST", "/v1/payments", `{"merchant":"m","order_no":"1","buyer":"b","amount":1,"items":[{"sku":"x ","n":1}]}`, "items"},
		{"POST", "/v1/payments/x/refunds", `{"refund_no":"r ","amount":1}`, "refund_no"},
		{"POST", "/v1/orders", `{"merchant":"m","order_no":"1\t2","items":[{"sku":"x","n":1}]}`, "order_no"},
		{"POST", "/v1/orders", `{"merchant":"m","order_no":"1"}`, "items"},
		{"POST", "/v1/orders", `{"merchant":"m","order_no":"1","items":[{"sku":"x","n":1}],"ttl_seconds":-1}`, "ttl_seconds"},
		{"GET", "/v1/payments?state=open", ``, "state"},
		{"GET", "/v1/payments?limit=0", ``, "limit"},
	} {
		rec := httptest.NewRecorder()
		h.ServeHTTP(rec, httptest.NewRequest(tc.method, tc.path, strings.NewReader(tc.body)))
		if _, err := apiDocument(t).Check(apitest.Exchange{
			Method: tc.method, Path: tc.path, RequestBody: []byte(tc.body), Status: rec.Code, Header: rec.Header(), Body: rec.Body.Bytes(),
		}); err != nil {
			t.Error(err)
		}
		var p Problem
		if err := json.Unmarshal(rec.Body.Bytes(), &p); err != nil || rec.Code != 400 || p.Field != tc.field || p.Type != "/problems/invalid" || rec.Header().Get("Content-Type") != "application/problem+json" {
			t.Errorf("%s %s %s: %d %s", tc.method, tc.path, tc.body, rec.Code, rec.Body)
		}
	}
}
