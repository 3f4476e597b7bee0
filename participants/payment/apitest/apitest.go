// Package apitest holds what is spoken over HTTP against an OpenAPI document: each request and answer that a test makes.
//
// Its law: what the document does not describe is a fault, be it an operation, a status, a parameter, a header or a field;
// and a request that the document does not allow must not have been taken. It is tested by faults of each kind, and it
// knows as much of OpenAPI as this project's documents use: a keyword that it does not know is a fault too.
package apitest

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
)

// Document is an OpenAPI document.
type Document struct {
	Paths      map[string]map[string]Operation
	Components struct{ Schemas map[string]*Schema }
}

// Operation is a method of a path.
type Operation struct {
	Parameters  []Parameter
	RequestBody *struct{ Content map[string]media }
	Responses   map[string]struct {
		Headers map[string]struct {
			Required bool
			Schema   *Schema
		}
		Content map[string]media
	}
}

// Parameter of an operation.
type Parameter struct {
	Name, In string
	Required bool
	Schema   *Schema
}

type media struct{ Schema *Schema }

// Schema is what is used of JSON Schema here.
type Schema struct {
	Ref         string `json:"$ref"`
	Type        string
	Format      string
	Description string
	Required    []string
	Properties  map[string]*Schema
	Items       *Schema
	Enum        []string
	Minimum     *float64
	Maximum     *float64
	MinLength   int
	MaxLength   int
}

// Parse reads a document; unknown keywords in its schemas are an error.
func Parse(raw []byte) (*Document, error) {
	d := &Document{}
	if err := json.Unmarshal(raw, d); err != nil {
		return nil, err
	}
	var strict struct {
		Components struct{ Schemas json.RawMessage }
	}
	if err := json.Unmarshal(raw, &strict); err != nil {
		return nil, err
	}
	dec := json.NewDecoder(strings.NewReader(string(strict.Components.Schemas)))
	dec.DisallowUnknownFields()
	return d, dec.Decode(&map[string]*Schema{})
}

// Exchange is a request and its answer.
type Exchange struct {
	Method, Path  string // with the query
	RequestHeader http.Header
	RequestBody   []byte
	Status        int
	Header        http.Header
	Body          []byte
}

// Check says what of an exchange the document does not describe, and names the operation and status, "POST /x 200".
func (d *Document) Check(e Exchange) (name string, err error) {
	path, rawQuery, _ := strings.Cut(e.Path, "?")
	template, op, ok := d.find(e.Method, path)
	if !ok {
		return "", fmt.Errorf("no operation %s %s", e.Method, path)
	}
	name = fmt.Sprintf("%s %s %d", e.Method, template, e.Status)
	answer, ok := op.Responses[strconv.Itoa(e.Status)]
	if !ok {
		return name, fmt.Errorf("%s: the status is not described", name)
	}
	var errs []error
	if bad := d.request(op, rawQuery, e); bad != nil && e.Status < 400 {
		errs = append(errs, fmt.Errorf("a request that is not described was taken: %w", bad))
	}
	for h, def := range answer.Headers {
		if e.Header.Get(h) == "" && def.Required {
			errs = append(errs, fmt.Errorf("the header %s is missing", h))
		}
	}
	if _, described := answer.Headers["Location"]; e.Header.Get("Location") != "" && !described {
		errs = append(errs, errors.New("the header Location is not described"))
	}
	m, ok := answer.Content[e.Header.Get("Content-Type")]
	if !ok {
		errs = append(errs, fmt.Errorf("the content type %q is not described", e.Header.Get("Content-Type")))
	} else if err := d.text(m.Schema, e.Body); err != nil {
		errs = append(errs, fmt.Errorf("answer: %w", err))
	}
	if len(errs) > 0 {
		return name, fmt.Errorf("%s: %w: %s", name, errors.Join(errs...), e.Body)
	}
	return name, nil
}

func (d *Document) find(method, path string) (string, Operation, bool) {
	parts := strings.Split(path, "/")
	for template, ops := range d.Paths {
		op, ok := ops[strings.ToLower(method)]
		want := strings.Split(template, "/")
		if ok && slices.EqualFunc(parts, want, func(a, b string) bool { return a == b || strings.HasPrefix(b, "{") && a != "" }) {
			return template, op, true
		}
	}
	return "", Operation{}, false
}

// request says what of a request is not described.
func (d *Document) request(op Operation, rawQuery string, e Exchange) error {
	var errs []error
	known := map[string]*Schema{}
	for _, p := range op.Parameters {
		if p.In == "query" {
			known[p.Name] = p.Schema
		}
		if p.In == "header" && p.Required && e.RequestHeader.Get(p.Name) == "" {
			errs = append(errs, fmt.Errorf("the header %s is missing", p.Name))
		}
	}
	for _, h := range []string{"Prefer", "Idempotency-Key"} { // headers that mean something to the API
		described := slices.ContainsFunc(op.Parameters, func(p Parameter) bool { return p.In == "header" && strings.EqualFold(p.Name, h) })
		if e.RequestHeader.Get(h) != "" && !described {
			errs = append(errs, fmt.Errorf("the header %s is not described", h))
		}
	}
	for pair := range strings.SplitSeq(rawQuery, "&") {
		name, value, _ := strings.Cut(pair, "=")
		if s, ok := known[name]; name != "" && !ok {
			errs = append(errs, fmt.Errorf("the parameter %s is not described", name))
		} else if name != "" && value != "" {
			errs = append(errs, d.parameter(s, name, value))
		}
	}
	if op.RequestBody != nil {
		if err := d.text(op.RequestBody.Content["application/json"].Schema, e.RequestBody); err != nil {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

func (d *Document) parameter(s *Schema, name, value string) error {
	if s.Type == "string" {
		return d.value(s, name, value)
	}
	return d.value(s, name, json.Number(value))
}

func (d *Document) text(s *Schema, raw []byte) error {
	dec := json.NewDecoder(strings.NewReader(string(raw)))
	dec.UseNumber()
	var v any
	if err := dec.Decode(&v); err != nil {
		return err
	}
	return d.value(s, "", v)
}

// value holds v against a schema.
func (d *Document) value(s *Schema, at string, v any) error {
	if s == nil {
		return fmt.Errorf("%s has no schema", at)
	}
	if s.Ref != "" {
		return d.value(d.Components.Schemas[strings.TrimPrefix(s.Ref, "#/components/schemas/")], at, v)
	}
	bad := func(format string, args ...any) error {
		return fmt.Errorf("%s: %s", strings.TrimPrefix(at, "."), fmt.Sprintf(format, args...))
	}
	switch s.Type {
	case "string":
		t, ok := v.(string)
		if !ok || len(s.Enum) > 0 && !slices.Contains(s.Enum, t) || len(t) < s.MinLength || s.MaxLength > 0 && len(t) > s.MaxLength {
			return bad("%v is no such string", v)
		}
	case "integer":
		num, ok := v.(json.Number)
		if !ok {
			return bad("%v is no integer", v)
		}
		n, err := num.Int64()
		if err != nil || s.Minimum != nil && float64(n) < *s.Minimum || s.Maximum != nil && float64(n) > *s.Maximum {
			return bad("%v is no such integer", v)
		}
	case "array":
		list, ok := v.([]any)
		if !ok {
			return bad("%v is no array", v)
		}
		var errs []error
		for i, e := range list {
			errs = append(errs, d.value(s.Items, fmt.Sprintf("%s[%d]", at, i), e))
		}
		return errors.Join(errs...)
	case "object":
		return d.object(s, at, v)
	default:
		return bad("the schema's type %q is not known", s.Type)
	}
	return nil
}

func (d *Document) object(s *Schema, at string, v any) error {
	fields, ok := v.(map[string]any)
	if !ok {
		return fmt.Errorf("%s: %v is no object", at, v)
	}
	var errs []error
	for _, r := range s.Required {
		if _, ok := fields[r]; !ok {
			errs = append(errs, fmt.Errorf("%s.%s is missing", at, r))
		}
	}
	for _, f := range slices.Sorted(maps.Keys(fields)) {
		if p, ok := s.Properties[f]; !ok {
			errs = append(errs, fmt.Errorf("%s.%s is not described", at, f))
		} else {
			errs = append(errs, d.value(p, at+"."+f, fields[f]))
		}
	}
	return errors.Join(errs...)
}
