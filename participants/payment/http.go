package payment

import (
	"context"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"
)

//go:embed openapi.json
var openAPI []byte

const (
	waitDefault  = 3 * time.Second
	waitMax      = 30 * time.Second
	bodyBytesMax = 64 << 10
	pageDefault  = 50
	pageMax      = 500
)

// route is one operation of the API.
type route struct {
	method, path string
	serve        func(s *Service, w http.ResponseWriter, r *http.Request) error
}

// routes are all operations; openapi.json describes the same ones.
var routes = []route{
	{"POST", "/v1/payments", (*Service).servePay},
	{"GET", "/v1/payments", (*Service).serveList},
	{"GET", "/v1/payments/{id}", (*Service).serveGet},
	{"POST", "/v1/payments/{id}/refunds", (*Service).serveRefund},
	{"GET", "/v1/payments/{id}/refunds", (*Service).serveRefunds},
	{"POST", "/v1/payments/{id}/ask", (*Service).serveAsk},
	{"POST", "/v1/reversals", (*Service).serveReverse},
	{"POST", "/v1/orders", (*Service).serveOrder},
	{"GET", "/v1/orders/{id}", (*Service).serveGetOrder},
	{"POST", "/v1/orders/{id}/cancel", (*Service).serveCancelOrder},
}

// Handler serves the API, and its OpenAPI document at /v1/openapi.json.
func (s *Service) Handler() http.Handler {
	mux := http.NewServeMux()
	for _, rt := range routes {
		mux.HandleFunc(rt.method+" "+rt.path, func(w http.ResponseWriter, r *http.Request) {
			if err := rt.serve(s, w, r); err != nil {
				s.refuse(w, r, err)
			}
		})
	}
	mux.HandleFunc("GET /v1/openapi.json", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_, _ = w.Write(openAPI)
	})
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		s.refuse(w, r, problem("not_found", "", "there is no "+r.Method+" "+r.URL.Path))
	})
	return mux
}

// refuse writes a problem; an error that is none says that nothing is known.
func (s *Service) refuse(w http.ResponseWriter, r *http.Request, err error) {
	var p *Problem
	if !errors.As(err, &p) {
		s.Log.Error("request failed", "method", r.Method, "path", r.URL.Path, "err", err)
		p = &Problem{Type: "about:blank", Title: "The request failed; repeat it with the same body", Status: http.StatusInternalServerError}
	}
	w.Header().Set("Content-Type", "application/problem+json")
	w.WriteHeader(p.Status)
	_ = json.NewEncoder(w).Encode(p)
}

func write(w http.ResponseWriter, status int, v any) error {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(v) // the status has gone out: there is nobody to tell
	return nil
}

func decode(w http.ResponseWriter, r *http.Request, into any) error {
	d := json.NewDecoder(http.MaxBytesReader(w, r.Body, bodyBytesMax))
	d.DisallowUnknownFields()
	if err := d.Decode(into); err != nil {
		return invalid(fieldOf(err), err.Error())
	}
	if d.More() {
		return invalid("", "something follows the body")
	}
	return nil
}

// fieldOf finds the field that a decoding error is about.
func fieldOf(err error) string {
	var te *json.UnmarshalTypeError
	if errors.As(err, &te) {
		return te.Field
	}
	if _, name, ok := strings.Cut(err.Error(), "unknown field "); ok {
		return strings.Trim(name, `"`)
	}
	return ""
}

// within gives the time that the caller waits for a decision: Prefer: wait=SECONDS (RFC 7240).
func within(r *http.Request) (context.Context, context.CancelFunc, error) {
	wait := waitDefault
	for p := range strings.SplitSeq(r.Header.Get("Prefer"), ",") {
		name, value, ok := strings.Cut(strings.TrimSpace(p), "=")
		if !ok || !strings.EqualFold(strings.TrimSpace(name), "wait") {
			continue
		}
		n, err := strconv.Atoi(strings.TrimSpace(value))
		if err != nil || n < 0 {
			return nil, nil, invalid("Prefer", "wait is a number of seconds")
		}
		wait = min(time.Duration(n)*time.Second, waitMax)
	}
	// A caller who leaves does not take the payment along: what is written down goes on.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(r.Context()), wait)
	return ctx, cancel, nil
}

func (s *Service) servePay(w http.ResponseWriter, r *http.Request) error {
	var req Request
	if err := decode(w, r, &req); err != nil {
		return err
	}
	ctx, cancel, err := within(r)
	if err != nil {
		return err
	}
	defer cancel()
	p, err := s.Pay(ctx, req, r.Header.Get("Idempotency-Key"))
	if err != nil {
		return err
	}
	return s.answer(w, p)
}

// answer gives a payment as it stands: 200 when it is paid, 202 while it is not decided, a problem when it was refused.
func (s *Service) answer(w http.ResponseWriter, p *Payment) error {
	w.Header().Set("Location", "/v1/payments/"+p.ID)
	switch p.State {
	case Paid:
		return write(w, http.StatusOK, p)
	case Refused:
		return problemOf(p.Reason, p.Field, p.Reason, p.ID)
	}
	return write(w, http.StatusAccepted, p)
}

func (s *Service) serveGet(w http.ResponseWriter, r *http.Request) error {
	p, err := s.Get(r.Context(), r.PathValue("id"))
	if err != nil {
		return err
	}
	if p.Refusals, err = s.Refusals(r.Context(), p.ID); err != nil {
		return err
	}
	return write(w, http.StatusOK, p)
}

// Page is a page of payments. Next is the after of the next one; empty on the last.
type Page struct {
	Payments []*Payment `json:"payments"`
	Next     string     `json:"next,omitempty"`
}

func (s *Service) serveList(w http.ResponseWriter, r *http.Request) error {
	q := r.URL.Query()
	f := Filter{Merchant: q.Get("merchant"), State: State(q.Get("state")), After: q.Get("after"), Limit: pageDefault}
	switch f.State {
	case "", Processing, Paid, Refused:
	default:
		return invalid("state", "processing, paid or refused")
	}
	if l := q.Get("limit"); l != "" {
		n, err := strconv.Atoi(l)
		if err != nil || n < 1 || n > pageMax {
			return invalid("limit", fmt.Sprintf("1 to %d", pageMax))
		}
		f.Limit = n
	}
	list, err := s.List(r.Context(), f)
	if err != nil {
		return err
	}
	page := Page{Payments: list}
	if page.Payments == nil {
		page.Payments = []*Payment{}
	}
	if len(list) == f.Limit {
		page.Next = list[len(list)-1].ID
	}
	return write(w, http.StatusOK, page)
}

func (s *Service) serveRefund(w http.ResponseWriter, r *http.Request) error {
	var req RefundRequest
	if err := decode(w, r, &req); err != nil {
		return err
	}
	ctx, cancel, err := within(r)
	if err != nil {
		return err
	}
	defer cancel()
	re, err := s.Refund(ctx, r.PathValue("id"), req, r.Header.Get("Idempotency-Key"))
	if err != nil {
		return err
	}
	w.Header().Set("Location", "/v1/payments/"+re.Payment+"/refunds")
	switch re.State {
	case Paid:
		return write(w, http.StatusOK, re)
	case Refused:
		return problemOf(re.Reason, re.Field, re.Reason, re.Payment)
	}
	return write(w, http.StatusAccepted, re)
}

// RefundList is the refunds of a payment.
type RefundList struct {
	Refunds []*Refund `json:"refunds"`
}

func (s *Service) serveRefunds(w http.ResponseWriter, r *http.Request) error {
	if _, err := s.Get(r.Context(), r.PathValue("id")); err != nil {
		return err
	}
	list, err := s.Refunds(r.Context(), r.PathValue("id"))
	if err != nil {
		return err
	}
	if list == nil {
		list = []*Refund{}
	}
	return write(w, http.StatusOK, RefundList{list})
}

// serveAsk asks for a payment that is not decided, and gives it as it stands, refused or not.
func (s *Service) serveAsk(w http.ResponseWriter, r *http.Request) error {
	ctx, cancel, err := within(r)
	if err != nil {
		return err
	}
	defer cancel()
	p, err := s.Ask(ctx, r.PathValue("id"))
	if err != nil {
		return err
	}
	return write(w, http.StatusOK, p)
}

func (s *Service) serveReverse(w http.ResponseWriter, r *http.Request) error {
	var req ReversalRequest
	if err := decode(w, r, &req); err != nil {
		return err
	}
	ctx, cancel, err := within(r)
	if err != nil {
		return err
	}
	defer cancel()
	re, err := s.Reverse(ctx, req)
	if err != nil {
		return err
	}
	w.Header().Set("Location", "/v1/payments/"+re.Payment)
	switch re.State {
	case ReversalDone:
		return write(w, http.StatusOK, re)
	case string(Refused):
		return problemOf(re.Reason, "", re.Reason, re.Payment)
	}
	return write(w, http.StatusAccepted, re)
}

func (s *Service) serveOrder(w http.ResponseWriter, r *http.Request) error {
	var req OrderRequest
	if err := decode(w, r, &req); err != nil {
		return err
	}
	o, err := s.PreOrder(r.Context(), req, r.Header.Get("Idempotency-Key"))
	if err != nil {
		return err
	}
	w.Header().Set("Location", "/v1/orders/"+o.ID)
	return write(w, http.StatusOK, o)
}

func (s *Service) serveGetOrder(w http.ResponseWriter, r *http.Request) error {
	o, err := s.Order(r.Context(), r.PathValue("id"))
	if err != nil {
		return err
	}
	return write(w, http.StatusOK, o)
}

func (s *Service) serveCancelOrder(w http.ResponseWriter, r *http.Request) error {
	o, err := s.CancelOrder(r.Context(), r.PathValue("id"))
	if err != nil {
		return err
	}
	return write(w, http.StatusOK, o)
}
