package server

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"sync/atomic"

	"github.com/lockstep-tx/lockstep/coordinator/api/admin"
)

// front answers on the admin address from the first moment, so that whoever watches this process can tell one that is
// starting (a large embedded etcd takes its time) from one that hangs: alive, and not ready for the reason given.
type front struct {
	srv     *http.Server
	handler atomic.Pointer[http.Handler] // nil while it starts
	doing   atomic.Pointer[string]
	ended   chan error
}

// openFront listens to the admin address; open gives it to the real handler.
func (s *Server) openFront(context.Context) error {
	f := &front{ended: make(chan error, 1)}
	f.say("reading the configuration")
	f.srv = s.newHTTPServer(f)
	go func() { f.ended <- f.srv.Serve(s.secure(s.listen.admin)) }()
	s.front = f
	s.onClose(f.srv.Close)
	return nil
}

// say tells what the process is at while it starts.
func (f *front) say(doing string) { f.doing.Store(&doing) }

func (f *front) open(h http.Handler) { f.handler.Store(&h) }

// wait returns when the listener fails, or nil once it was shut down.
func (f *front) wait() error {
	if err := <-f.ended; !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// ServeHTTP is http.Handler's.
func (f *front) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if h := f.handler.Load(); h != nil {
		(*h).ServeHTTP(w, r)
		return
	}
	switch r.URL.Path {
	case "/healthz":
		fmt.Fprintln(w, "alive")
	case "/readyz":
		w.WriteHeader(http.StatusServiceUnavailable)
		fmt.Fprintln(w, "not ready: starting:", *f.doing.Load())
	default:
		admin.Refuse(w, r, http.StatusServiceUnavailable, "this coordinator is starting: "+*f.doing.Load())
	}
}
