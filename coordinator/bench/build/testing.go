package build

import (
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
)

// ForTest is `go build` with arguments, for a test that runs the program; it notes the sources. In a TestMain, before Run, that is too
// early: there a test has to call NoteSources.
func ForTest(args ...string) *exec.Cmd {
	NoteSources()
	return exec.Command("go", append([]string{"build"}, args...)...)
}

// NoteSources makes the result of the package's tests depend on the sources of all of the module's programs. go test keeps the results of
// tests whose own packages have not changed, and does not see what a process that a test starts has read; it takes note of what the test
// itself looks at. Without it a test of a broken program is green from the cache.
func NoteSources() {
	root := moduleRoot()
	if root == "" {
		return
	}
	for _, dir := range []string{"coordinator", "participants", "region", "chaos"} {
		_ = filepath.WalkDir(filepath.Join(root, dir), func(string, fs.DirEntry, error) error { return nil }) // go build says what is wrong
	}
}

// moduleRoot is the directory of go.mod, from the working directory upwards; "" where there is none.
func moduleRoot() string {
	dir, err := os.Getwd()
	for err == nil {
		if _, serr := os.Stat(filepath.Join(dir, "go.mod")); serr == nil {
			return dir
		}
		if filepath.Dir(dir) == dir {
			break
		}
		dir = filepath.Dir(dir)
	}
	return ""
}
