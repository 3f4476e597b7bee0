package demo

import (
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"sync"
)

// gate stands before the participants. While it is closed, whatever arrives is held and never reaches them: its sender
// is killed meanwhile.
type gate struct {
	base   string
	server *http.Server
	mu     sync.Mutex
	shut   chan struct{} // not nil while closed; closed when something arrived
	once   *sync.Once
}

func newGate(target string) (*gate, error) {
	u, err := url.Parse(target)
	if err != nil {
		return nil, err
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	g := &gate{base: "http://" + l.Addr().String()}
	proxy := httputil.NewSingleHostReverseProxy(u)
	g.server = &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		g.mu.Lock()
		shut, once := g.shut, g.once
		g.mu.Unlock()
		if shut != nil {
			once.Do(func() { close(shut) })
			<-r.Context().Done() // until its sender is gone
			return
		}
		proxy.ServeHTTP(w, r)
	})}
	go func() { _ = g.server.Serve(l) }() // ends with stop
	return g, nil
}

// close holds what arrives from now on; the channel is closed when the first has arrived.
func (g *gate) close() <-chan struct{} {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.shut, g.once = make(chan struct{}), &sync.Once{}
	return g.shut
}

func (g *gate) open() {
	g.mu.Lock()
	g.shut = nil
	g.mu.Unlock()
}

func (g *gate) stop() { _ = g.server.Close() }
