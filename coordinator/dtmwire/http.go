package dtmwire

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

// Prefix of DTM's HTTP paths.
const Prefix = "/api/dtmsvr"

var successBody = []byte(`{"dtm_result":"SUCCESS"}`)

// Routes are the paths of the protocol, for metrics: a request's label is one of these.
var Routes = []string{
	"newGid", "version", "prepare", "submit", "abort", "registerBranch", "registerTccBranch", "registerXaBranch", "prepareWorkflow",
	"forceStop", "query", "all", "resetCronTime", "resetNextCronTime", "subscribe", "unsubscribe", "topic", "scanKV", "queryKV",
}

// Handler answers everything below /api: DTM's HTTP paths, JSON-RPC and ping.
func (s *Server) Handler() http.Handler {
	mux := http.NewServeMux()
	post := func(path string, h func(w http.ResponseWriter, r *http.Request, body []byte) error) {
		mux.HandleFunc("POST "+Prefix+path, func(w http.ResponseWriter, r *http.Request) {
			body, err := s.body(w, r)
			if err == nil {
				err = h(w, r, body)
			}
			if err != nil {
				writeFault(w, err)
			}
		})
	}
	get := func(method, path string, h func(w http.ResponseWriter, r *http.Request) error) {
		mux.HandleFunc(method+" "+path, func(w http.ResponseWriter, r *http.Request) {
			if err := h(w, r); err != nil {
				writeFault(w, err)
			}
		})
	}
	onGlobal := func(f func(r *http.Request, g *global) error) func(http.ResponseWriter, *http.Request, []byte) error {
		return func(w http.ResponseWriter, r *http.Request, body []byte) error {
			g, err := decodeGlobal(body)
			if err == nil {
				err = f(r, g)
			}
			if err != nil {
				return err
			}
			writeBody(w, http.StatusOK, successBody)
			return nil
		}
	}
	post("/prepare", onGlobal(func(r *http.Request, g *global) error { return s.prepare(r.Context(), g) }))
	post("/submit", onGlobal(func(r *http.Request, g *global) error { return s.submit(r.Context(), g) }))
	post("/abort", onGlobal(func(r *http.Request, g *global) error { return s.abort(r.Context(), g) }))
	post("/forceStop", onGlobal(func(r *http.Request, g *global) error { return s.forceStop(r.Context(), g.Gid) }))
	post("/resetNextCronTime", onGlobal(func(r *http.Request, g *global) error { return s.resetNextCronTime(r.Context(), g.Gid) }))
	for _, path := range []string{"/registerBranch", "/registerTccBranch", "/registerXaBranch"} {
		post(path, func(w http.ResponseWriter, r *http.Request, body []byte) error {
			b, err := decodeBranch(body)
			if err != nil {
				return err
			}
			if b.TransType == "" { // the aliases name the mode
				b.TransType = map[string]string{"/registerTccBranch": "tcc", "/registerXaBranch": "xa"}[path]
			}
			if err := s.register(r.Context(), b); err != nil {
				return err
			}
			writeBody(w, http.StatusOK, successBody)
			return nil
		})
	}
	mux.HandleFunc("POST "+Prefix+"/prepareWorkflow", s.httpPrepareWorkflow)
	get("GET", Prefix+"/newGid", func(w http.ResponseWriter, _ *http.Request) error {
		writeBody(w, http.StatusOK, []byte(`{"dtm_result":"SUCCESS","gid":"`+s.NewGid()+`"}`))
		return nil
	})
	get("GET", Prefix+"/version", func(w http.ResponseWriter, _ *http.Request) error {
		return writeJSON(w, map[string]string{"version": DTMVersion})
	})
	get("GET", Prefix+"/query", s.httpQuery)
	get("GET", Prefix+"/all", s.httpAll)
	get("GET", Prefix+"/resetCronTime", s.httpResetCronTime)
	get("GET", Prefix+"/subscribe", func(w http.ResponseWriter, r *http.Request) error {
		q := r.URL.Query()
		return okay(w, s.subscribe(r.Context(), q.Get("topic"), q.Get("url"), q.Get("remark")))
	})
	get("GET", Prefix+"/unsubscribe", func(w http.ResponseWriter, r *http.Request) error {
		q := r.URL.Query()
		return okay(w, s.unsubscribe(r.Context(), q.Get("topic"), q.Get("url")))
	})
	get("DELETE", Prefix+"/topic/{name}", func(w http.ResponseWriter, r *http.Request) error {
		return okay(w, s.deleteTopic(r.Context(), r.PathValue("name")))
	})
	get("GET", Prefix+"/scanKV", s.httpScanKV)
	get("GET", Prefix+"/queryKV", s.httpQueryKV)
	mux.HandleFunc("/api/ping", func(w http.ResponseWriter, _ *http.Request) { writeBody(w, http.StatusOK, []byte(`{"msg":"pong"}`)) })
	mux.HandleFunc("POST /api/json-rpc", s.jsonRPC)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if h, pattern := mux.Handler(r); pattern == "" {
			unknown(w, r, h)
			return
		}
		mux.ServeHTTP(w, r)
	})
}

// unknown answers a path or method that is not of the protocol in the protocol's form; h is what the mux would answer.
func unknown(w http.ResponseWriter, r *http.Request, h http.Handler) {
	plain := &discarded{header: http.Header{}}
	h.ServeHTTP(plain, r)
	text := fmt.Sprintf("there is no %s %.200s here", toValid(r.Method), toValid(r.URL.Path))
	if allow := plain.header.Get("Allow"); allow != "" {
		w.Header().Set("Allow", allow)
		text += "; send " + allow
	}
	if RouteOf(r.URL.Path) == "json-rpc" {
		writeRPCError(w, plain.status, nil, rpcRequest, text)
		return
	}
	body, err := json.Marshal(map[string]string{"message": text})
	if err != nil {
		body = []byte(`{"message":"there is no such path here"}`)
	}
	writeBody(w, plain.status, body)
}

// discarded keeps the status and the headers of an answer.
type discarded struct {
	header http.Header
	status int
}

// Header is http.ResponseWriter's.
func (d *discarded) Header() http.Header { return d.header }

// Write is http.ResponseWriter's.
func (d *discarded) Write(b []byte) (int, error) { return len(b), nil }

// WriteHeader is http.ResponseWriter's.
func (d *discarded) WriteHeader(status int) { d.status = status }

func okay(w http.ResponseWriter, err error) error {
	if err == nil {
		writeBody(w, http.StatusOK, successBody)
	}
	return err
}

// body reads a request's body up to the limit.
func (s *Server) body(w http.ResponseWriter, r *http.Request) ([]byte, error) {
	rd := http.MaxBytesReader(w, r.Body, s.lim.BodyBytes)
	if n := r.ContentLength; n > 0 && n <= s.lim.BodyBytes {
		b := make([]byte, n)
		if _, err := io.ReadFull(rd, b); err != nil {
			return nil, invalid("body", "it ended early: %v", err)
		}
		return b, checkText(b)
	}
	b, err := io.ReadAll(rd)
	var tooLarge *http.MaxBytesError
	switch {
	case errors.As(err, &tooLarge):
		return nil, invalid("body", "it has more than %d bytes", s.lim.BodyBytes)
	case err != nil:
		return nil, invalid("body", "it could not be read: %v", err)
	}
	return b, checkText(b)
}

// checkText refuses bodies that are no text: encoding/json would put U+FFFD where it cannot read, and different gids
// would become one.
func checkText(body []byte) error {
	if !utf8.Valid(body) {
		return invalid("body", "it is not valid UTF-8")
	}
	return nil
}

// httpPrepareWorkflow answers with the workflow. The Go SDK ignores the status code and dereferences the body when it
// is a JSON object: an error is therefore plain text with 500, which becomes a clean error there.
func (s *Server) httpPrepareWorkflow(w http.ResponseWriter, r *http.Request) {
	body, err := s.body(w, r)
	var g *global
	if err == nil {
		g, err = decodeGlobal(body)
	}
	if err == nil {
		rep, e := s.prepareWorkflow(r.Context(), g)
		if err = e; err == nil {
			err = writeJSON(w, map[string]any{"transaction": transactionOf(&rep.State), "progresses": branchesOf(&rep.State)})
		}
	}
	if err != nil {
		text := err.Error()
		var f *Fault
		if errors.As(err, &f) && f.RetryAfter > 0 {
			w.Header().Set("Retry-After", retryAfter(f.RetryAfter))
		}
		http.Error(w, text, http.StatusInternalServerError)
	}
}

func writeBody(w http.ResponseWriter, status int, body []byte) {
	h := w.Header()
	h["Content-Type"] = []string{"application/json"}
	h["Content-Length"] = []string{strconv.Itoa(len(body))}
	w.WriteHeader(status)
	_, _ = w.Write(body) // the client is gone: nobody is left to tell
}

func writeJSON(w http.ResponseWriter, v any) error {
	body, err := json.Marshal(v)
	if err != nil {
		return err
	}
	writeBody(w, http.StatusOK, body)
	return nil
}

// writeFault puts an error into DTM's HTTP form.
func writeFault(w http.ResponseWriter, err error) {
	f := faultOf(err)
	status, _, _ := f.Kind.Codes()
	out := map[string]string{"message": f.message()}
	switch f.Kind {
	case FaultFailure:
		out["dtm_result"] = "FAILURE"
	case FaultOngoing:
		out["dtm_result"] = "ONGOING"
	case FaultInvalid, FaultNotFound, FaultDuplicate, FaultInternal, FaultUnknown, FaultOverloaded, FaultUnavailable:
	}
	if f.RetryAfter > 0 {
		w.Header().Set("Retry-After", retryAfter(f.RetryAfter))
	}
	body, merr := json.Marshal(out)
	if merr != nil {
		body = []byte(`{"message":"the error could not be encoded"}`)
	}
	writeBody(w, status, body)
}

func retryAfter(d time.Duration) string { return strconv.Itoa(max(1, int(d.Seconds()))) }

func faultOf(err error) *Fault {
	var f *Fault
	if errors.As(err, &f) {
		return f
	}
	return &Fault{Kind: FaultInternal, Text: err.Error()}
}

// RouteOf gives the label of a path: one of Routes, json-rpc, ping or other.
func RouteOf(path string) string {
	rest, ok := strings.CutPrefix(path, Prefix+"/")
	if !ok {
		switch path {
		case "/api/json-rpc":
			return "json-rpc"
		case "/api/ping":
			return "ping"
		}
		return "other"
	}
	name, _, _ := strings.Cut(rest, "/")
	for _, known := range Routes {
		if known == name {
			return name
		}
	}
	return "other"
}
