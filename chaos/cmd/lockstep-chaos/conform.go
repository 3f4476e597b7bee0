package main

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"

	"github.com/lockstep-tx/lockstep/chaos/conform"
	"github.com/lockstep-tx/lockstep/chaos/report"
)

type conformCmd struct {
	Dir string `arg:"" help:"Directory of a run (--out) of programs with the tag chaos." type:"existingdir"`
}

// Run replays, and says how much that was.
func (c *conformCmd) Run(out io.Writer) error {
	r, err := conform.Dir(c.Dir)
	if errors.Is(err, conform.ErrDiffers) {
		fmt.Fprintln(out, err)
		return exitError(report.ExitViolation)
	}
	if err != nil {
		return err
	}
	fmt.Fprintf(out, "%d transitions of %d processes are the core's; %d lines were cut off by a kill\n", r.Transitions, r.Files, r.CutOff)
	for _, kind := range slices.Sorted(maps.Keys(r.Kinds)) {
		fmt.Fprintf(out, "  %-18s %d\n", kind, r.Kinds[kind])
	}
	return nil
}
