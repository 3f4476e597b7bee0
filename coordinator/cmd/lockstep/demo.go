package main

import (
	"fmt"
	"os"
	"path/filepath"

	"github.com/lockstep-tx/lockstep/coordinator/demo"
)

type demoCmd struct {
	Keep     bool   `help:"Leave the databases and logs behind."`
	DB       string `help:"An empty database for the participants: postgres://… or mysql://…; two SQLite files without it." name:"db"`
	Payments int    `help:"Payments of the act under load." default:"400"`
}

// Run plays the demo with the programs beside this one.
func (c *demoCmd) Run(e *env) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	participants := filepath.Join(filepath.Dir(self), "lockstep-participants")
	if _, err := os.Stat(participants); err != nil {
		return &failure{fmt.Errorf("the participants' program is missing: %w", err), "make build"}
	}
	return demo.Run(e.ctx, demo.Config{Out: e.out, Lockstep: self, Participants: participants, Keep: c.Keep, DB: c.DB, Load: c.Payments})
}
