package demo

import (
	"context"
	"encoding/json"
	"fmt"
)

// chaos is the program that makes faults, in processes of its own: the product does not know it.
type chaos struct {
	program, control string
	routes           []string
}

// link adds a link; who connects to listen reaches to while it is whole.
func (c *chaos) link(name, listen, to string) string {
	c.routes = append(c.routes, name+"="+listen+">"+to)
	return listen
}

func (c *chaos) proxyArgs() []string {
	args := []string{"proxy", "--control", c.control}
	for _, r := range c.routes {
		args = append(args, "--route", r)
	}
	return args
}

// linkCounters are what a link says of itself.
type linkCounters struct {
	Route        string `json:"route"`
	Cut          bool   `json:"cut"`
	Bytes        uint64 `json:"bytes"`
	EndedConns   uint64 `json:"ended_conns"`
	RefusedConns uint64 `json:"refused_conns"`
	RefusedBytes uint64 `json:"refused_bytes"`
}

// ask runs cut, heal or status.
func (c *chaos) ask(ctx context.Context, what string) ([]linkCounters, error) {
	out, err := output(ctx, c.program, what, "--control", c.control)
	if err != nil {
		return nil, err
	}
	var links []linkCounters
	if err := json.Unmarshal([]byte(out), &links); err != nil {
		return nil, fmt.Errorf("what the links say: %w: %s", err, out)
	}
	return links, nil
}

// planted is a drift that is in a database.
type planted struct {
	Class   string `json:"class"`
	Gid     string `json:"gid"`
	Branch  string `json:"branch"`
	Account string `json:"account"`
	Before  int64  `json:"before"`
	After   int64  `json:"after"`

	Region          string `json:"-"`
	found, repaired bool
}

// seed plants drift in a region's wallets.
func (c *chaos) seed(ctx context.Context, r *region, args ...string) (*planted, error) {
	out, err := output(ctx, c.program, append([]string{"seed-drift", "--db", r.db}, args...)...)
	if err != nil {
		return nil, err
	}
	p := &planted{Region: r.name}
	if err := json.Unmarshal([]byte(out), p); err != nil {
		return nil, fmt.Errorf("what was planted: %w: %s", err, out)
	}
	return p, nil
}
