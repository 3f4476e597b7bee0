package proc

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"
)

// fakers are where libfaketime may be, the one for programs with threads.
var fakers = []string{"/usr/lib/*/faketime/libfaketimeMT.so.1", "/usr/lib/faketime/libfaketimeMT.so.1", "/usr/lib64/faketime/libfaketimeMT.so.1", "/usr/local/lib/faketime/libfaketimeMT.so.1"}

// Faketime finds the library that gives a database server another clock, and sees that it does.
func Faketime() (string, error) {
	for _, pattern := range fakers {
		found, err := filepath.Glob(pattern)
		if err != nil || len(found) == 0 {
			continue
		}
		cmd := exec.Command("date", "+%Y")
		cmd.Env = append(os.Environ(), "LD_PRELOAD="+found[0], "FAKETIME=@2020-06-01 00:00:00")
		out, err := cmd.CombinedOutput()
		if err == nil && string(bytes.TrimSpace(out)) != "2020" {
			err = fmt.Errorf("%s does not change the clock: %s", found[0], bytes.TrimSpace(out))
		}
		return found[0], err
	}
	return "", errors.New("libfaketime is not installed (Debian's package libfaketime; bin/devctl run --faketime -- … installs it where it may)")
}

// clockFile is where a server with a clock of its own is told how far off it is.
const clockFile = "clock"

// clocked has the server's next starts use a clock that SetClock moves. Timeouts inside the server go on by the machine's.
func (s *Server) clocked() error {
	lib, err := Faketime()
	if err != nil {
		return err
	}
	file := filepath.Join(s.dir, clockFile)
	s.env = []string{"LD_PRELOAD=" + lib, "FAKETIME_TIMESTAMP_FILE=" + file, "FAKETIME_CACHE_DURATION=1", "FAKETIME_DONT_FAKE_MONOTONIC=1", "DONT_FAKE_MONOTONIC=1", "FAKETIME_DONT_RESET=1"}
	return s.SetClock(0)
}

// Clock says that the server's clock can be moved.
func (s *Server) Clock() bool { return len(s.env) > 0 }

// SetClock has the server's clock go so much before the machine's, within a second or so.
func (s *Server) SetClock(by time.Duration) error {
	// In one step: the server reads the file while it is written.
	file := filepath.Join(s.dir, clockFile)
	if err := os.WriteFile(file+".new", fmt.Appendf(nil, "%+.3f\n", by.Seconds()), 0o644); err != nil {
		return err
	}
	return errors.Join(os.Chmod(file+".new", 0o644), os.Rename(file+".new", file)) // PostgreSQL runs as somebody else
}
