package dtmwire

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"github.com/lockstep-tx/lockstep/coordinator/txn"
)

// spec checks a TransGlobal and turns it into what the core takes. At a submit, TCC and XA need nothing but their
// options: their branches were registered before.
func (s *Server) spec(ctx context.Context, g *global, submit bool) (txn.Spec, error) {
	sp := txn.Spec{}
	if err := checkGid(g.Gid); err != nil {
		return sp, err
	}
	var ok bool
	if sp.Mode, ok = txn.ParseMode(g.TransType); !ok {
		return sp, invalid("trans_type", "unknown trans type: %q; it is one of tcc, saga, msg, xa, workflow", g.TransType)
	}
	var err error
	if sp.Opt, err = g.options(); err != nil {
		return sp, err
	}
	if sp.Opt.Durability, err = s.durability(sp.Mode, sp.Opt.Headers); err != nil {
		return sp, err
	}
	if len(g.CustomData) > s.lim.PayloadBytes {
		return sp, invalid("custom_data", "it has %d bytes; at most %d are taken", len(g.CustomData), s.lim.PayloadBytes)
	}
	sp.Custom = toValid(g.CustomData)
	switch sp.Mode {
	case txn.ModeTCC, txn.ModeXA:
	case txn.ModeSaga:
		err = s.sagaSpec(g, &sp)
	case txn.ModeMsg:
		err = s.msgSpec(ctx, g, &sp, submit)
	case txn.ModeWorkflow:
		err = s.workflowSpec(g, &sp)
	}
	if err != nil {
		return sp, err
	}
	if i := txn.UncallableByRPC(sp.Opt.Protocol, sp.Branches); i >= 0 {
		return sp, invalid("payloads", "branch %s is called by JSON-RPC, so its payload is a JSON object, whose fields become the call's params; send {…} or nothing", sp.Branches[i].ID)
	}
	if err := txn.FitsGlobal(&sp); err != nil {
		return sp, invalid("steps", "%v", err)
	}
	return sp, s.checkBranches(g.Gid, sp.Branches)
}

// DurabilityHeader is the branch header by which DTM's clients say where the decision shall be durable: regional or global.
const DurabilityHeader = "Lockstep-Durability"

// durability reads the header. In the modes in which work is done before the decision, global cannot be kept.
func (s *Server) durability(mode txn.Mode, headers map[string]string) (txn.Durability, error) {
	word := ""
	for k, v := range headers {
		if strings.EqualFold(k, DurabilityHeader) {
			word = v
		}
	}
	fits := mode == txn.ModeTCC || mode == txn.ModeMsg
	switch {
	case word == "" && s.GlobalDefault && fits:
		return txn.Global, nil
	case word == "" || word == "regional":
		return txn.Regional, nil
	case word != "global":
		return 0, invalid("branch_headers", "%s: %q is neither regional nor global", DurabilityHeader, word)
	case !s.Global:
		return 0, invalid("branch_headers", "%s: global needs an arbiter, and this coordinator has none (--regions-file); ask for regional", DurabilityHeader)
	case !fits:
		return 0, invalid("branch_headers", "%s: in a %s work is done before the decision, so that it cannot be global; ask for regional, or use TCC", DurabilityHeader, mode)
	}
	return txn.Global, nil
}

// payload is the body of step i: payloads first, then the legacy field data of the steps.
func (g *global) payloads() ([][]byte, error) {
	out := g.BinPayloads
	if out == nil {
		for _, p := range g.Payloads {
			out = append(out, []byte(p))
		}
		for _, st := range g.Steps {
			if d, ok := st["data"]; ok && d != "" {
				out = append(out, []byte(d))
			}
		}
	}
	if len(out) < len(g.Steps) {
		return nil, invalid("payloads", "%d payloads for %d steps: each step needs one", len(out), len(g.Steps))
	}
	return out, nil
}

func (s *Server) sagaSpec(g *global, sp *txn.Spec) error {
	payloads, err := g.payloads()
	if err != nil {
		return err
	}
	var custom struct {
		Concurrent bool             `json:"concurrent"`
		Orders     map[string][]int `json:"orders"`
	}
	if strings.TrimSpace(g.CustomData) != "" {
		if err := json.Unmarshal([]byte(g.CustomData), &custom); err != nil {
			return invalid("custom_data", "it is not the JSON of a saga: %v", err)
		}
	}
	for i, st := range g.Steps {
		b := txn.Branch{ID: stepID(i), Try: st["action"], Cancel: st["compensate"], Payload: payloads[i]}
		if b.Try == "" {
			return invalid("steps", "step %d has no action", i)
		}
		if !custom.Concurrent && i > 0 {
			b.After = []int{i - 1}
		}
		sp.Branches = append(sp.Branches, b)
	}
	if !custom.Concurrent {
		return nil
	}
	sp.Opt.Concurrent = true
	for key, after := range custom.Orders {
		i, err := parseIndex(key, len(sp.Branches))
		if err != nil {
			return err
		}
		for _, j := range after {
			if j < 0 || j >= len(sp.Branches) || j == i {
				return invalid("custom_data.orders", "step %d cannot wait for step %d of %d steps", i, j, len(sp.Branches))
			}
		}
		sp.Branches[i].After = after
	}
	if i := txn.Cycle(sp.Branches); i >= 0 {
		return invalid("custom_data.orders", "step %d waits for itself in a circle", i)
	}
	return nil
}

func parseIndex(key string, n int) (int, error) {
	var i int
	if _, err := fmt.Sscanf(key, "%d", &i); err != nil || fmt.Sprint(i) != key || i < 0 || i >= n {
		return 0, invalid("custom_data.orders", "%q is no step of %d", key, n)
	}
	return i, nil
}

func stepID(i int) txn.BranchID { return txn.BranchID(fmt.Sprintf("%02d", i+1)) }

const topicScheme = "topic://"

func (s *Server) msgSpec(ctx context.Context, g *global, sp *txn.Spec, submit bool) error {
	payloads, err := g.payloads()
	if err != nil {
		return err
	}
	if !submit && g.QueryPrepared == "" {
		return invalid("query_prepared", "a prepared message needs its check-back address")
	}
	sp.QueryURL = g.QueryPrepared
	if g.QueryPrepared != "" {
		if err := s.checkURL("query_prepared", g.QueryPrepared, g.Gid); err != nil {
			return err
		}
	}
	var custom struct {
		Delay uint64 `json:"delay"`
	}
	if strings.TrimSpace(g.CustomData) != "" {
		if err := json.Unmarshal([]byte(g.CustomData), &custom); err != nil {
			return invalid("custom_data", "it is not the JSON of a message: %v", err)
		}
	}
	if custom.Delay > secondsMax {
		return invalid("custom_data.delay", "%d seconds is out of range", custom.Delay)
	}
	sp.Opt.Delay = time.Duration(custom.Delay) * time.Second
	for i, st := range g.Steps {
		urls := []string{st["action"]}
		if name, ok := strings.CutPrefix(st["action"], topicScheme); ok {
			if urls, err = s.topics.URLs(ctx, name); err != nil {
				return err
			}
		}
		for k, u := range urls {
			id := stepID(i)
			if len(urls) > 1 {
				id = txn.BranchID(fmt.Sprintf("%s-%02d", id, k+1))
			}
			if u == "" {
				return invalid("steps", "step %d has no action", i)
			}
			b := txn.Branch{ID: id, Confirm: u, Payload: payloads[i]}
			if n := len(sp.Branches); n > 0 && !g.Concurrent {
				b.After = []int{n - 1}
			}
			sp.Branches = append(sp.Branches, b)
		}
	}
	return nil
}

func (s *Server) workflowSpec(g *global, sp *txn.Spec) error {
	var custom struct {
		Name string `json:"name"`
		Data string `json:"data"`
	}
	if err := json.Unmarshal([]byte(g.CustomData), &custom); err != nil || custom.Name == "" {
		return invalid("custom_data", `a workflow needs {"name":…,"data":<base64>}`)
	}
	if g.QueryPrepared == "" {
		return invalid("query_prepared", "a workflow needs its callback address")
	}
	sp.QueryURL = g.QueryPrepared
	return s.checkURL("query_prepared", g.QueryPrepared, g.Gid)
}
