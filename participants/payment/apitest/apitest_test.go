package apitest_test

import (
	"net/http"
	"strings"
	"testing"

	"github.com/lockstep-tx/lockstep/participants/payment/apitest"
)

const document = `{"paths": {"/things/{id}": {"post": {
	"parameters": [{"name": "id", "in": "path", "required": true, "schema": {"type": "string"}}, {"name": "n", "in": "query", "schema": {"type": "integer", "minimum": 1}}],
	"requestBody": {"content": {"application/json": {"schema": {"$ref": "#/components/schemas/Thing"}}}},
	"responses": {"200": {"headers": {"Location": {"required": true, "schema": {"type": "string"}}}, "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Thing"}}}},
		"400": {"content": {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Thing"}}}}}}}},
	"components": {"schemas": {"Thing": {"type": "object", "required": ["name"], "properties": {
		"name": {"type": "string", "maxLength": 3, "enum": ["a", "b", "long"]}, "n": {"type": "integer", "maximum": 9}, "list": {"type": "array", "items": {"$ref": "#/components/schemas/Thing"}}}}}}}`

// A fault of each kind is found, and what is as described is not.
func TestCheckFindsWhatIsNotDescribed(t *testing.T) {
	d, err := apitest.Parse([]byte(document))
	if err != nil {
		t.Fatal(err)
	}
	good := apitest.Exchange{
		Method: "POST", Path: "/things/1?n=2", RequestBody: []byte(`{"name":"a"}`), Status: 200,
		Header: http.Header{"Content-Type": {"application/json"}, "Location": {"/x"}}, Body: []byte(`{"name":"b","n":9,"list":[{"name":"a"}]}`),
	}
	if name, err := d.Check(good); err != nil || name != "POST /things/{id} 200" {
		t.Fatalf("%s: %v", name, err)
	}
	for want, change := range map[string]func(e *apitest.Exchange){
		"no operation":                   func(e *apitest.Exchange) { e.Method = "PUT" },
		"no operation POST /things":      func(e *apitest.Exchange) { e.Path = "/things" },
		"status is not described":        func(e *apitest.Exchange) { e.Status = 201 },
		"the parameter q":                func(e *apitest.Exchange) { e.Path = "/things/1?q=2" },
		"n: 0 is no such integer":        func(e *apitest.Exchange) { e.Path = "/things/1?n=0" },
		"the header Prefer is not":       func(e *apitest.Exchange) { e.RequestHeader = http.Header{"Prefer": {"x"}} },
		".name is missing":               func(e *apitest.Exchange) { e.RequestBody = []byte(`{}`) },
		"the header Location is missing": func(e *apitest.Exchange) { e.Header = http.Header{"Content-Type": {"application/json"}} },
		`content type "text/plain"`:      func(e *apitest.Exchange) { e.Header = http.Header{"Content-Type": {"text/plain"}, "Location": {"/x"}} },
		".other is not described":        func(e *apitest.Exchange) { e.Body = []byte(`{"name":"a","other":1}`) },
		"c is no such string":            func(e *apitest.Exchange) { e.Body = []byte(`{"name":"c"}`) },
		"long is no such string":         func(e *apitest.Exchange) { e.Body = []byte(`{"name":"long"}`) },
		"10 is no such integer":          func(e *apitest.Exchange) { e.Body = []byte(`{"name":"a","n":10}`) },
		"1.5 is no such integer":         func(e *apitest.Exchange) { e.Body = []byte(`{"name":"a","n":1.5}`) },
		"1 is no integer":                func(e *apitest.Exchange) { e.Body = []byte(`{"name":"a","n":"1"}`) },
		"list[0].name is missing":        func(e *apitest.Exchange) { e.Body = []byte(`{"name":"a","list":[{}]}`) },
		"list: map[] is no array":        func(e *apitest.Exchange) { e.Body = []byte(`{"name":"a","list":{}}`) },
		"the header Location is not descr": func(e *apitest.Exchange) {
			e.Status, e.Header = 400, http.Header{"Content-Type": {"application/problem+json"}, "Location": {"/x"}}
		},
	} {
		e := good
		change(&e)
		if _, err := d.Check(e); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("want %q, got %v", want, err)
		}
	}
	if _, err := apitest.Parse([]byte(strings.Replace(document, `"maxLength"`, `"pattern"`, 1))); err == nil {
		t.Error("a keyword that is not known was taken")
	}
}
