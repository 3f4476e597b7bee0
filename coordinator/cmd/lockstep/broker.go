package main

import (
	"log/slog"
	"os"

	"github.com/lockstep-tx/lockstep/region/eventlog"
)

// brokerCmd runs the embedded broker.
type brokerCmd struct {
	Listen   string `help:"Address to listen on; a fixed port, or clients do not find it again." default:"127.0.0.1:36792" placeholder:"HOST:PORT"`
	DataDir  string `help:"Directory of its data." required:"" placeholder:"DIR"`
	AddrFile string `help:"Write the address that is listened on into this file, for port 0." placeholder:"FILE"`
}

// Run serves until the process is told to stop.
func (c *brokerCmd) Run(e *env) error {
	log := slog.New(slog.NewTextHandler(e.err, nil))
	return eventlog.RunBroker(e.ctx, eventlog.BrokerConfig{Addr: c.Listen, Dir: c.DataDir, Log: log, Ready: func(addr string) {
		log.Info("broker serves", "addr", addr)
		if c.AddrFile != "" {
			if err := os.WriteFile(c.AddrFile+".new", []byte(addr), 0o600); err == nil {
				err = os.Rename(c.AddrFile+".new", c.AddrFile)
				if err != nil {
					log.Error("the address file was not written", "err", err)
				}
			}
		}
	}})
}
