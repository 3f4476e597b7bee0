package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/lockstep-tx/lockstep/coordinator/demo"
)

type demoCmd struct {
	Regions  int           `help:"How many regions there are." default:"2"`
	Duration time.Duration `help:"How long it takes, about; less than half a minute is too short for its acts." default:"90s"`
	Keep     bool          `help:"Leave everything running at the end, until Ctrl-C, and the databases and logs behind."`
	DB       string        `help:"An empty database for the participants: postgres://… or mysql://…; SQLite files without it." name:"db"`
	Kafka    string        `help:"A Kafka broker for all regions, instead of an embedded one for each." placeholder:"HOST:PORT"`
	Rate     int           `help:"Payments per second in each region, at the most." default:"40"`
	Timeline string        `help:"File to write the HTML timeline to. Defaults to lockstep-demo.html in the directory for temporary files." placeholder:"FILE"`
}

// Validate refuses what cannot be played.
func (c *demoCmd) Validate() error {
	switch {
	case c.Regions < 2 || c.Regions > 8:
		return fmt.Errorf("--regions %d; 2 to 8 are possible", c.Regions)
	case c.Rate < 1:
		return errors.New("--rate: at least one payment a second")
	}
	return nil
}

// Run plays the demo with the programs beside this one.
func (c *demoCmd) Run(e *env) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	beside := func(name string) (string, error) {
		path := filepath.Join(filepath.Dir(self), name)
		if _, err := os.Stat(path); err != nil {
			return "", &failure{fmt.Errorf("a program of the demo is missing: %w", err), "make demo  # builds it"}
		}
		return path, nil
	}
	participants, err := beside("lockstep-participants")
	if err != nil {
		return err
	}
	chaos, err := beside("lockstep-chaos")
	if err != nil {
		return err
	}
	if c.Timeline == "" {
		c.Timeline = filepath.Join(os.TempDir(), "lockstep-demo.html")
	}
	return demo.Run(e.ctx, demo.Config{
		Out: e.out, Lockstep: self, Participants: participants, Chaos: chaos, Regions: c.Regions, Duration: c.Duration, Keep: c.Keep, DB: c.DB, Kafka: c.Kafka,
		Rate: c.Rate, Timeline: c.Timeline,
	})
}
