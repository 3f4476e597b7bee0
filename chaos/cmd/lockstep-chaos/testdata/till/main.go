// Command till is a participant as somebody else might write it: accounts in memory, three calls for each kind of branch, no
// library of ours. TILL_BUG=double confirms twice what is confirmed once.
package main

import (
	"encoding/json"
	"log"
	"net/http"
	"os"
	"strings"
	"sync"
)

type till struct {
	mu       sync.Mutex
	balance  map[string]int64
	held     map[string]int64
	branches map[string]string // by gid and branch: tried, confirmed or cancelled
}

func (t *till) call(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	var in struct {
		Card  string `json:"card"`
		Cents int64  `json:"cents"`
	}
	if err := json.NewDecoder(r.Body).Decode(&in); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	pay := strings.HasPrefix(r.URL.Path, "/spend/")
	op := r.URL.Path[strings.LastIndex(r.URL.Path, "/")+1:]
	t.mu.Lock()
	defer t.mu.Unlock()
	key := q.Get("gid") + "/" + q.Get("branch_id")
	switch was := t.branches[key]; {
	case op == "hold" && was == "":
		if pay && t.balance[in.Card]-t.held[in.Card] < in.Cents {
			http.Error(w, "not enough", http.StatusConflict)
			return
		}
		if pay {
			t.held[in.Card] += in.Cents
		}
		t.branches[key] = "tried"
	case op == "hold" && was == "cancelled":
		http.Error(w, "too late", http.StatusConflict)
	case op == "take" && was == "tried":
		if pay {
			t.held[in.Card] -= in.Cents
			t.balance[in.Card] -= in.Cents
		} else {
			t.balance[in.Card] += in.Cents
			if os.Getenv("TILL_BUG") == "double" && in.Cents == 7 {
				t.balance[in.Card] += in.Cents
			}
		}
		t.branches[key] = "confirmed"
	case op == "drop" && was == "tried":
		if pay {
			t.held[in.Card] -= in.Cents
		}
		t.branches[key] = "cancelled"
	case op == "drop" && was == "":
		t.branches[key] = "cancelled"
	}
}

func main() {
	t := &till{balance: map[string]int64{}, held: map[string]int64{}, branches: map[string]string{}}
	http.HandleFunc("GET /up", func(http.ResponseWriter, *http.Request) {})
	http.HandleFunc("POST /cards", func(_ http.ResponseWriter, r *http.Request) {
		var in struct {
			Card  string
			Cents int64
		}
		if json.NewDecoder(r.Body).Decode(&in) == nil {
			t.mu.Lock()
			t.balance[in.Card] = in.Cents
			t.mu.Unlock()
		}
	})
	http.HandleFunc("GET /cards", func(w http.ResponseWriter, _ *http.Request) {
		t.mu.Lock()
		defer t.mu.Unlock()
		if err := json.NewEncoder(w).Encode(t.balance); err != nil {
			log.Print(err)
		}
	})
	http.HandleFunc("POST /spend/", t.call)
	http.HandleFunc("POST /load/", t.call)
	log.Fatal(http.ListenAndServe(os.Args[1], nil))
}
