package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"syscall"
	"time"
)

// itself runs this program as a process of its own, by a program that sets its core or its precedence, until it ends, or is told to
// because ctx does; it prints what it measured as JSON in both cases, which goes into out.
func itself(ctx context.Context, by []string, flag, value string, out any) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	var printed, said bytes.Buffer
	cmd := exec.CommandContext(ctx, by[0], append(by[1:len(by):len(by)], self, flag, value)...)
	cmd.Stdout, cmd.Stderr = &printed, &said
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = 5 * time.Second
	if err := cmd.Run(); err != nil && ctx.Err() == nil {
		return fmt.Errorf("%w: %s", err, said.String())
	}
	if err := json.Unmarshal(printed.Bytes(), out); err != nil {
		return fmt.Errorf("%w: %s", err, said.String())
	}
	return nil
}
