// Package build builds the programs of the benchmarks into bin/ of our module, so that they can be started from any
// directory inside it and by `go run`.
package build

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// Root returns the directory of our module, in which the working directory must be.
func Root(ctx context.Context) (string, error) {
	list := exec.CommandContext(ctx, "go", "list", "-m", "-f", "{{.Dir}}", "github.com/lockstep-tx/lockstep")
	list.Env = environment()
	out, err := list.Output()
	if err != nil {
		return "", fmt.Errorf("find the module github.com/lockstep-tx/lockstep from here: %w", err)
	}
	return strings.TrimSpace(string(out)), nil
}

// Tools builds bench-participants, bench-payees, bench-ceiling and bench-load and returns the directory they are in.
func Tools(ctx context.Context) (string, error) {
	root, err := Root(ctx)
	if err != nil {
		return "", err
	}
	bin := filepath.Join(root, "bin")
	const cmd = "./coordinator/bench/cmd/"
	return bin, run(ctx, root, bin+string(filepath.Separator), cmd+"bench-participants", cmd+"bench-payees", cmd+"bench-ceiling", cmd+"bench-load")
}

// DTM builds dtmpeer, DTM's server, and returns its path.
func DTM(ctx context.Context) (string, error) {
	root, err := Root(ctx)
	if err != nil {
		return "", err
	}
	bin := filepath.Join(root, "bin", "dtmpeer")
	return bin, run(ctx, filepath.Join(root, "coordinator", "bench", "dtmpeer"), bin, ".")
}

// run calls go build in dir. What it prints goes into the error.
func run(ctx context.Context, dir, output string, packages ...string) error {
	cmd := exec.CommandContext(ctx, "go", append([]string{"build", "-o", output}, packages...)...)
	cmd.Dir, cmd.Env = dir, environment()
	var msg bytes.Buffer
	cmd.Stdout, cmd.Stderr = &msg, &msg
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("go build %s in %s: %w\n%s", strings.Join(packages, " "), dir, err, msg.String())
	}
	return nil
}

func environment() []string { return append(os.Environ(), "GOWORK=off") }
