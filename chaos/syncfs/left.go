package syncfs

import (
	"bufio"
	"errors"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// sweep takes away the mounts of dead processes. What is mounted elsewhere, in another container, is not seen here.
func sweep() error {
	all, err := mounts()
	if err != nil {
		return err
	}
	for dir, pid := range all {
		if errors.Is(unix.Kill(pid, 0), unix.ESRCH) {
			if err := detach(dir); err != nil {
				return err
			}
		}
	}
	return nil
}

// mounts are those of ours that are here, and the pids of whom they are for.
func mounts() (map[string]int, error) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	out := map[string]int{}
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		// ID PARENT DEVICE ROOT DIR OPTIONS … - TYPE SOURCE OPTIONS
		before, after, _ := strings.Cut(lines.Text(), " - ")
		at, on := strings.Fields(before), strings.Fields(after)
		if len(at) < 5 || len(on) < 2 || on[0] != "fuse."+kind {
			continue
		}
		rest, ours := strings.CutPrefix(on[1], owned)
		if pid, err := strconv.Atoi(rest); ours && err == nil && pid > 0 {
			out[unescaped.Replace(at[4])] = pid
		}
	}
	return out, lines.Err()
}

// unescaped is a path as mountinfo has it.
var unescaped = strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`)
