package dtmimport

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/lockstep-tx/lockstep/coordinator/txn"
)

// saga converts a saga. Which compensations are owed follows the reference DTM wire, section 8.
func (c *conversion) saga() error {
	list, err := c.pairs("action", "compensate")
	if err != nil {
		return err
	}
	var custom struct {
		Concurrent bool             `json:"concurrent"`
		Orders     map[string][]int `json:"orders"`
	}
	if err := c.custom(&custom); err != nil {
		return err
	}
	c.s.Query.Status = txn.OpSkipped
	c.s.Opt.Concurrent = custom.Concurrent
	undone := make([]txn.OpState, len(list))
	for i, p := range list {
		b := txn.Branch{ID: txn.BranchID(p.id), Try: p.first.URL, Cancel: p.end.URL, Payload: p.first.Data}
		if !custom.Concurrent && i > 0 {
			b.After = []int{i - 1}
		}
		if b.One, err = call(p.first); err == nil {
			undone[i], err = call(p.end)
		}
		if err != nil {
			return err
		}
		c.s.Branches = append(c.s.Branches, b)
	}
	if custom.Concurrent {
		if err := c.orders(custom.Orders); err != nil {
			return err
		}
	}
	// Where results may be lost a step may have run although the one before it is not known to have.
	c.lossy = c.lossy && !custom.Concurrent && c.s.Opt.Timeout == 0
	refused := slices.IndexFunc(c.s.Branches, func(b txn.Branch) bool { return b.One.Status == txn.OpRefused })
	switch {
	case c.g.Status == prepared:
		for i := range list {
			if list[i].first.Status != prepared || list[i].end.Status != prepared {
				return fmt.Errorf("step %s was called before the submit", list[i].id)
			}
		}
		c.s.Phase = txn.PhasePrepared
		return nil
	case c.g.Status == submitted && refused < 0:
		c.s.Phase = txn.PhaseRunning
	case c.g.Status == submitted:
		c.s.Reason = fmt.Sprintf("url:%s return failed: what it said was lost when DTM was stopped", c.s.Branches[refused].Try)
		c.decide(txn.PhaseAborting)
	case c.g.Status == aborting:
		c.decide(txn.PhaseAborting)
	default:
		return c.unfit()
	}
	for i := range c.s.Branches {
		b := &c.s.Branches[i]
		may := c.mayHaveRun(i)
		if may && b.One.Status == txn.OpPending {
			b.One.Attempts = 1 // what was started is compensated, whatever comes
		}
		switch {
		case c.s.Phase == txn.PhaseRunning && undone[i].Status != txn.OpPending:
			return fmt.Errorf("step %s is compensated in a saga that is %s", b.ID, c.g.Status)
		case c.s.Phase == txn.PhaseRunning:
		case undone[i].Status == txn.OpDone:
			b.Two = undone[i]
		case !may:
			b.Two.Status = txn.OpSkipped
		}
	}
	return nil
}

// mayHaveRun says whether step i's action may have taken effect under DTM: it was answered, or all that it waits for
// had succeeded, or may have.
func (c *conversion) mayHaveRun(i int) bool {
	b := &c.s.Branches[i]
	if b.One.Status != txn.OpPending {
		return true
	}
	for _, j := range b.After {
		switch c.s.Branches[j].One.Status {
		case txn.OpDone:
		case txn.OpPending:
			if !c.lossy || !c.mayHaveRun(j) {
				return false
			}
		case txn.OpRefused, txn.OpSkipped:
			return false
		}
	}
	return true
}

// orders reads which steps wait for which.
func (c *conversion) orders(orders map[string][]int) error {
	n := len(c.s.Branches)
	for key, after := range orders {
		i, err := strconv.Atoi(key)
		if err != nil || i < 0 || i >= n || slices.ContainsFunc(after, func(j int) bool { return j < 0 || j >= n || j == i }) {
			return fmt.Errorf("custom_data.orders: step %s cannot wait for %v in %d steps", key, after, n)
		}
		c.s.Branches[i].After = after
	}
	if i := txn.Cycle(c.s.Branches); i >= 0 {
		return fmt.Errorf("custom_data.orders: step %d waits for itself in a circle", i)
	}
	return nil
}

// custom reads the mode's custom_data.
func (c *conversion) custom(into any) error {
	if strings.TrimSpace(c.g.CustomData) == "" {
		return nil
	}
	if err := json.Unmarshal([]byte(c.g.CustomData), into); err != nil {
		return fmt.Errorf("custom_data is not the JSON of a %s: %w", c.g.TransType, err)
	}
	return nil
}

// msg converts a message.
func (c *conversion) msg() error {
	var custom struct {
		Delay uint64 `json:"delay"`
	}
	if err := c.custom(&custom); err != nil {
		return err
	}
	if custom.Delay > secondsMax {
		return fmt.Errorf("custom_data.delay of %d seconds is out of range", custom.Delay)
	}
	c.s.Opt.Delay = time.Duration(custom.Delay) * time.Second
	c.s.QueryURL = c.g.QueryPrepared
	if err := checkAddress(c.s.QueryURL); err != nil {
		return fmt.Errorf("query_prepared: %w", err)
	}
	switch c.g.Status {
	case prepared:
		if c.s.QueryURL == "" {
			return errors.New("a prepared message without a check-back address: nothing can say whether it was meant; submit or abort it with DTM")
		}
		c.s.Phase = txn.PhasePrepared
	case submitted:
		c.decide(txn.PhaseCommitting)
	default:
		return c.unfit()
	}
	for i := range c.rows {
		r := &c.rows[i]
		two, err := call(r)
		switch {
		case err != nil:
			return err
		case r.Op != "action" || two.Status == txn.OpRefused || (two.Status == txn.OpDone && c.g.Status == prepared):
			return fmt.Errorf("branch %s: its %s is %s in a message that is %s", r.BranchID, r.Op, r.Status, c.g.Status)
		}
		b := txn.Branch{ID: txn.BranchID(r.BranchID), Confirm: r.URL, Payload: r.Data, One: txn.OpState{Status: txn.OpSkipped}, Two: two}
		if i > 0 && !c.s.Opt.Concurrent {
			b.After = []int{i - 1}
		}
		c.s.Branches = append(c.s.Branches, b)
	}
	return nil
}

// workflow converts a workflow: its client is called back with the progress that it registered.
func (c *conversion) workflow() error {
	var custom struct {
		Name string `json:"name"`
		Data []byte `json:"data"`
	}
	if err := c.custom(&custom); err != nil {
		return err
	}
	switch {
	case c.g.Status != prepared:
		return c.unfit()
	case custom.Name == "":
		return errors.New("custom_data lacks the workflow's name: nobody can be called back")
	case c.g.QueryPrepared == "":
		return errors.New("it has no callback address: nobody can be called back")
	}
	if err := checkAddress(c.g.QueryPrepared); err != nil {
		return fmt.Errorf("query_prepared: %w", err)
	}
	c.s.Phase, c.s.QueryURL = txn.PhasePrepared, c.g.QueryPrepared
	for i := range c.rows {
		r := &c.rows[i]
		if r.Status != succeed && r.Status != failed {
			return fmt.Errorf("step %s, %s: a workflow's progress is not %q", r.BranchID, r.Op, r.Status)
		}
		c.s.Steps = append(c.s.Steps, txn.WorkflowStep{Branch: txn.BranchID(r.BranchID), Op: r.Op, Failed: r.Status == failed, Data: r.Data, At: millis(r.Created)})
	}
	return nil
}
