package e2e

import (
	"bytes"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"sync/atomic"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/lockstep-tx/lockstep/participants/branch/batchpb"
)

// batchProxy stands between the coordinator and a participant and counts what goes by in batches.
type batchProxy struct {
	url            string
	to             atomic.Pointer[string]
	batches, calls atomic.Int64
}

func newBatchProxy(t *testing.T) *batchProxy {
	t.Helper()
	p := &batchProxy{}
	proxy := &httputil.ReverseProxy{ErrorLog: log.New(io.Discard, "", 0), Rewrite: func(r *httputil.ProxyRequest) {
		if to, err := url.Parse(*p.to.Load()); err == nil {
			r.SetURL(to)
		}
	}}
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == batchpb.Path {
			raw, err := io.ReadAll(r.Body)
			req := &batchpb.BatchRequest{}
			if err != nil || proto.Unmarshal(raw, req) != nil {
				t.Errorf("a batch that is none: %v", err)
			}
			p.batches.Add(1)
			p.calls.Add(int64(len(req.Calls)))
			r.Body = io.NopCloser(bytes.NewReader(raw))
		}
		proxy.ServeHTTP(w, r)
	}))
	t.Cleanup(s.Close)
	p.url = s.URL
	return p
}
