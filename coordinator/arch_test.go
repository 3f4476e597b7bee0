// Package coordinator_test holds the import rules of the whole module (style, rule 8).
package coordinator_test

import (
	"encoding/json"
	"errors"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/lockstep-tx/lockstep/"

// pkg is what go list tells of a package.
type pkg struct {
	ImportPath, Dir, Doc      string
	GoFiles                   []string
	Imports, Deps             []string
	TestImports, XTestImports []string
}

// listed asks go list for every package of the module, by import path.
func listed(t *testing.T) map[string]*pkg {
	t.Helper()
	cmd := exec.Command("go", "list", "-deps=false", "-json=ImportPath,Dir,Doc,GoFiles,Imports,Deps,TestImports,XTestImports", "./...")
	cmd.Dir = ".."
	out, err := cmd.Output()
	if err != nil {
		var ee *exec.ExitError
		if errors.As(err, &ee) {
			t.Fatalf("go list: %v\n%s", err, ee.Stderr)
		}
		t.Fatal(err)
	}
	all := map[string]*pkg{}
	for dec := json.NewDecoder(strings.NewReader(string(out))); ; {
		p := &pkg{}
		if err := dec.Decode(p); errors.Is(err, io.EOF) {
			return all
		} else if err != nil {
			t.Fatal(err)
		}
		all[strings.TrimPrefix(p.ImportPath, module)] = p
	}
}

// standard says that a package is of the standard library: its first element has no dot.
func standard(path string) bool {
	first, _, _ := strings.Cut(path, "/")
	return !strings.Contains(first, ".")
}

// within says that a package is root or below it.
func within(path, root string) bool { return path == root || strings.HasPrefix(path, root+"/") }

// adapters stand between the engine and the outside; none knows another.
var adapters = []string{
	"coordinator/store/etcdstore", "coordinator/store/memstore", "coordinator/invoke", "coordinator/dtmwire", "coordinator/api", "coordinator/peer", "region/journal", "region/eventlog",
}

// family is the adapter that a package belongs to; "" for any other. What tests alone use belongs to nobody.
func family(path string) string {
	for _, a := range adapters {
		if within(path, a) && !strings.HasSuffix(path, "test") && !strings.Contains(path, "/cmd/") {
			return a
		}
	}
	return ""
}

func TestImportRules(t *testing.T) {
	all := listed(t)
	if len(all) < 30 {
		t.Fatalf("go list found %d packages: the rules would hold of nothing", len(all))
	}
	for _, root := range append([]string{"coordinator/txn", "coordinator/engine", "region/slot", "coordinator/cmd/lockstep", "coordinator/api/client"}, adapters...) {
		if all[root] == nil {
			t.Errorf("%s is gone: its rule holds of nothing", root)
		}
	}
	// what a package needs, directly or not, of this module
	ours := func(p *pkg) (out []string) {
		for _, d := range p.Deps {
			if rest, ok := strings.CutPrefix(d, module); ok {
				out = append(out, rest)
			}
		}
		return out
	}
	for path, p := range all {
		switch {
		case within(path, "coordinator/txn"), within(path, "region/slot"):
			for _, d := range p.Deps {
				if !standard(d) {
					t.Errorf("%s needs %s: it is the standard library's alone", path, d)
				}
			}
			for _, d := range p.Imports {
				if path != "region/slot" && slices.Contains([]string{"context", "os", "net", "log/slog", "math/rand", "math/rand/v2", "sync", "log"}, d) {
					t.Errorf("%s imports %s: it is pure", path, d)
				}
			}
		case within(path, "coordinator/engine"):
			for _, d := range p.Deps {
				rest := strings.TrimPrefix(d, module)
				if family(rest) != "" || within(rest, "coordinator/server") || strings.HasPrefix(d, "go.etcd.io/") || strings.HasPrefix(d, "google.golang.org/grpc") {
					t.Errorf("%s needs %s: the engine knows no adapter", path, d)
				}
			}
		case family(path) != "":
			for _, d := range ours(p) {
				if f := family(d); f != "" && f != family(path) {
					t.Errorf("%s needs %s: adapters do not know one another", path, d)
				}
			}
		case within(path, "participants"):
			for _, d := range slices.Concat(p.Imports, p.TestImports, p.XTestImports) {
				// Tests make the client's answers, which are apipb's.
				forTests := d == module+"coordinator/api/apipb" && !slices.Contains(p.Imports, d)
				if rest := strings.TrimPrefix(d, module); within(rest, "coordinator") && rest != "coordinator/api/client" && !forTests {
					t.Errorf("%s imports %s: participants know the client alone", path, d)
				}
			}
			for _, d := range ours(p) {
				if within(d, "coordinator") && d != "coordinator/api/client" && d != "coordinator/api/apipb" {
					t.Errorf("%s needs %s: participants know the client alone", path, d)
				}
			}
		}
		if !isChaos(path) {
			for _, d := range slices.Concat(p.Imports, p.TestImports, p.XTestImports) {
				if isChaos(strings.TrimPrefix(d, module)) {
					t.Errorf("%s imports %s: nothing imports chaos", path, d)
				}
			}
		}
	}
	for _, d := range all["coordinator/cmd/lockstep"].Deps {
		if isChaos(strings.TrimPrefix(d, module)) || d == "testing" {
			t.Errorf("the program needs %s", d)
		}
	}
}

// TestCheckersKnowNothingOfTheProduct: what decides whether the product keeps its promises shares no code with it, least of
// all what reconciles. The client's and the taps' records are the suite's own.
func TestCheckersKnowNothingOfTheProduct(t *testing.T) {
	p := listed(t)["chaos/check"]
	if p == nil {
		t.Fatal("chaos/check is gone: its rule holds of nothing")
	}
	for _, d := range p.Deps {
		if rest, ok := strings.CutPrefix(d, module); ok && !within(rest, "chaos") {
			t.Errorf("chaos/check needs %s: checkers share no code with the product", rest)
		}
	}
}

// TestEveryPackageSaysWhatItIs: a package comment stands in each package that is built (style, rule 35).
func TestEveryPackageSaysWhatItIs(t *testing.T) {
	for path, p := range listed(t) {
		if len(p.GoFiles) > 0 && !strings.HasPrefix(p.Doc, "Package ") && !strings.HasPrefix(p.Doc, "Command ") {
			t.Errorf("%s has no package comment: begin one of its files with \"// Package …\" or \"// Command …\"", path)
		}
	}
}

func isChaos(path string) bool { return slices.Contains(strings.Split(path, "/"), "chaos") }

// TestTheCoreReadsNoClock looks for time.Now and its kin in what the core is made of.
func TestTheCoreReadsNoClock(t *testing.T) {
	forbidden := []string{"Now", "Since", "Until", "After", "AfterFunc", "NewTimer", "NewTicker", "Sleep", "Tick"}
	for _, dir := range []string{"txn", "../region/slot", "record"} {
		files, err := filepath.Glob(filepath.Join(dir, "*.go"))
		if err != nil || len(files) == 0 {
			t.Fatalf("%s: no files: %v", dir, err)
		}
		for _, file := range files {
			if strings.HasSuffix(file, "_test.go") {
				continue
			}
			fset := token.NewFileSet()
			f, err := parser.ParseFile(fset, file, nil, 0)
			if err != nil {
				t.Fatal(err)
			}
			ast.Inspect(f, func(n ast.Node) bool {
				if sel, ok := n.(*ast.SelectorExpr); ok {
					if x, ok := sel.X.(*ast.Ident); ok && x.Name == "time" && slices.Contains(forbidden, sel.Sel.Name) {
						t.Errorf("%s uses time.%s: time comes with the event", fset.Position(sel.Pos()), sel.Sel.Name)
					}
				}
				return true
			})
		}
	}
}
