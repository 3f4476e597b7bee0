package main

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

var (
	shellBlock  = regexp.MustCompile("(?s)```sh\n(.*?)```")
	placeholder = regexp.MustCompile(`--dead-for \S+`)
)

// TestTheRunbooksOfALostRegionRun runs every command of these runbooks, as they stand there, in a world in which east is lost:
// what they say must at least be a command, with flags that it has. Each names the wrong command first.
func TestTheRunbooksOfALostRegionRun(t *testing.T) {
	for _, page := range []string{"region-lost", "region-returned", "arbiter-lost", "in-doubt", "divergence", "drift-quarantined"} {
		t.Run(page, func(t *testing.T) {
			raw, err := os.ReadFile(filepath.Join("../../../docs/runbooks", page+".md"))
			if err != nil {
				t.Fatal(err)
			}
			text := string(raw)
			_, body, _ := strings.Cut(text, "\n\n")
			if !strings.HasPrefix(body, "**Do not ") || !strings.Contains(strings.SplitN(body, "\n\n", 2)[0], "`lockstep ") && !strings.Contains(strings.SplitN(body, "\n\n", 2)[0], "empty disks") {
				t.Error("it does not begin with the wrong command")
			}
			w := left(t)
			for region, mux := range w.admin {
				mux.HandleFunc("POST /v1/transaction/resolve", func(rw http.ResponseWriter, r *http.Request) {
					fmt.Fprintf(rw, `{"gid":%q,"status":"committing"}`, r.URL.Query().Get("gid"))
				})
				mux.HandleFunc("GET /v1/transactions", func(rw http.ResponseWriter, _ *http.Request) { fmt.Fprint(rw, `{"transactions":[]}`) })
				mux.HandleFunc("GET /v1/transaction", func(rw http.ResponseWriter, _ *http.Request) { fmt.Fprint(rw, `{"gid":"GID","status":"in-doubt"}`) })
				_ = region
			}
			ran := 0
			for _, block := range shellBlock.FindAllStringSubmatch(text, -1) {
				for line := range strings.SplitSeq(block[1], "\n") {
					command, ok := strings.CutPrefix(strings.TrimSpace(line), "lockstep ")
					if !ok {
						continue
					}
					ran++
					out, code := w.paste(placeholder.ReplaceAllString(command, "--dead-for 1s"))
					if code == exitUsage && !strings.HasPrefix(out, "lockstep: slots: ") { // here nothing has moved that could go back
						t.Errorf("lockstep %s:\n%s", command, out)
					}
				}
			}
			if ran == 0 {
				t.Error("no command was found")
			}
		})
	}
}

// paste runs a command line of a runbook, with this world's file and addresses for its placeholders.
func (w *world) paste(line string) (string, int) {
	w.t.Helper()
	raw, err := os.ReadFile(w.file)
	if err != nil {
		w.t.Fatal(err)
	}
	admin := func(region string) string {
		m := regexp.MustCompile(region + `: \{grpc: \["[^"]+"\], admin: \["http://([^"]+)"`).FindStringSubmatch(string(raw))
		if m == nil {
			w.t.Fatalf("%s is not in\n%s", region, raw)
		}
		return m[1]
	}
	var args []string
	withContext := false
	for _, word := range strings.Fields(line) {
		switch word {
		case "EAST":
			word = admin("east")
		case "WEST":
			word = admin("west")
		case "--context":
			withContext = true
			continue
		case "FILE":
			continue
		}
		args = append(args, word)
	}
	if withContext {
		return w.command(args...)
	}
	var out strings.Builder
	code := run(w.t.Context(), args, &out, &out, noEnv)
	return out.String(), code
}
