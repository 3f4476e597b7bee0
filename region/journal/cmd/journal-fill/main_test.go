package main

import (
	"bytes"
	"context"
	"path/filepath"
	"strings"
	"testing"

	"github.com/lockstep-tx/lockstep/coordinator/engine"
	"github.com/lockstep-tx/lockstep/region/journal"
)

func TestFillsAJournal(t *testing.T) {
	url := "sqlite:" + filepath.Join(t.TempDir(), "journal.db")
	for _, gids := range []string{"new", "random"} {
		var stdout, stderr bytes.Buffer
		if code := run(context.Background(), []string{"--url", url, "--rows", "2500", "--gids", gids}, &stdout, &stderr); code != 0 {
			t.Fatalf("exit code %d: %s", code, stderr.String())
		}
		if !strings.HasPrefix(stdout.String(), "2500 rows in ") {
			t.Errorf("stdout: %s", stdout.String())
		}
	}
	j, err := journal.Open(context.Background(), url)
	if err != nil {
		t.Fatal(err)
	}
	defer j.Close()
	txs, next, err := j.List(context.Background(), engine.Filter{Slot: -1}, "", 6000, 0)
	if err != nil || len(txs) != 5000 || next != "" || len(txs[0].State.Branches) != 2 {
		t.Fatalf("%d transactions, next %q, %v", len(txs), next, err)
	}
}

func TestWrongUseIsExitCode2(t *testing.T) {
	for _, args := range [][]string{{}, {"--url", "sqlite:x", "--rows", "0"}, {"--url", "sqlite:x", "--gids", "other"}} {
		var stdout, stderr bytes.Buffer
		if code := run(context.Background(), args, &stdout, &stderr); code != 2 || stderr.Len() == 0 {
			t.Errorf("%q: exit code %d, %s", args, code, stderr.String())
		}
	}
	var stdout, stderr bytes.Buffer
	if code := run(context.Background(), []string{"--url", "sqlite:/proc/none/x.db"}, &stdout, &stderr); code != 1 {
		t.Errorf("exit code %d, %s", code, stderr.String())
	}
}
