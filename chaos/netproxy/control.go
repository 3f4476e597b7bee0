package netproxy

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
)

// Set is the links of one process, by name. Names are paths: "east-west/grpc" is matched by "", "east-west" and itself.
type Set struct{ links []*Link }

// OpenAll opens every route, or none.
func OpenAll(routes []Route) (*Set, error) {
	s := &Set{}
	for _, r := range routes {
		k, err := Open(r)
		if err != nil {
			return nil, errors.Join(err, s.Close())
		}
		s.links = append(s.links, k)
	}
	return s, nil
}

// Close closes every link.
func (s *Set) Close() error {
	var errs []error
	for _, k := range s.links {
		errs = append(errs, k.Close())
	}
	return errors.Join(errs...)
}

func (s *Set) named(name string) []*Link {
	var out []*Link
	for _, k := range s.links {
		if name == "" || k.route.Name == name || strings.HasPrefix(k.route.Name, name+"/") {
			out = append(out, k)
		}
	}
	return out
}

func counters(links []*Link) []Counters {
	out := make([]Counters, 0, len(links))
	for _, k := range links {
		out = append(out, k.Counters())
	}
	return out
}

// Handler is the control: POST /cut?route=NAME&way=drop, POST /heal?route=NAME, GET /status?route=NAME. Each answers the
// counters of the links that it is about.
func (s *Set) Handler() http.Handler {
	mux := http.NewServeMux()
	act := func(do func(*Link, *http.Request) error) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			name := r.URL.Query().Get("route")
			links := s.named(name)
			if len(links) == 0 {
				http.Error(w, fmt.Sprintf("no route %q", name), http.StatusNotFound)
				return
			}
			for _, k := range links {
				if err := do(k, r); err != nil {
					http.Error(w, err.Error(), http.StatusBadRequest)
					return
				}
			}
			w.Header().Set("Content-Type", "application/json")
			_ = json.NewEncoder(w).Encode(counters(links)) // the caller has left, then
		}
	}
	mux.HandleFunc("POST /cut", act(func(k *Link, r *http.Request) error {
		way := Way(r.URL.Query().Get("way"))
		if way == "" {
			way = Drop
		}
		return k.Cut(way)
	}))
	mux.HandleFunc("POST /heal", act(func(k *Link, _ *http.Request) error { k.Heal(); return nil }))
	mux.HandleFunc("GET /status", act(func(*Link, *http.Request) error { return nil }))
	return mux
}
