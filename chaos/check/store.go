package check

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"

	"github.com/lockstep-tx/lockstep/chaos/history"
	"github.com/lockstep-tx/lockstep/chaos/tap"
)

// rest is what of the evidence is no long list.
type rest struct {
	Opened  int64    `json:"opened"`
	Windows []Window `json:"windows"`
	Lagged  int      `json:"lagged"`
	Books   []Book   `json:"books"`
	Stores  Stores   `json:"stores"`

	GivenUp []string     `json:"given_up,omitempty"`
	Owned   []Owned      `json:"owned,omitempty"`
	Plants  []Plant      `json:"plants,omitempty"`
	Repairs []tap.Repair `json:"repairs,omitempty"`

	Driven []string `json:"driven,omitempty"`
	Silent []string `json:"silent,omitempty"`

	Foreign  bool             `json:"foreign,omitempty"`
	Balances map[string]int64 `json:"balances,omitempty"`
	Deposit  int64            `json:"deposit,omitempty"`

	Lacks      map[string]string `json:"lacks,omitempty"`
	LateAnswer int               `json:"late_answer,omitempty"`
}

// Save writes the evidence into a directory, from which Load and any other program can read it.
func (e *Evidence) Save(dir string) error {
	raw, err := json.Marshal(rest{e.Opened, e.Windows, e.Lagged, e.Books, e.Stores, e.GivenUp, e.Owned, e.Plants, e.Repairs, e.Driven, e.Silent, e.Foreign, e.Balances, e.Deposit, e.Lacks, e.LateAnswer})
	if err != nil {
		return err
	}
	return errors.Join(
		os.WriteFile(filepath.Join(dir, "evidence.json"), raw, 0o600),
		history.Save(filepath.Join(dir, "history.jsonl"), e.Ops),
		history.Save(filepath.Join(dir, "calls.jsonl"), e.Calls),
		history.Save(filepath.Join(dir, "snapshots.jsonl"), e.Snapshots),
		history.Save(filepath.Join(dir, "decided.jsonl"), e.Decided),
		history.Save(filepath.Join(dir, "events.jsonl"), e.Events),
		history.Save(filepath.Join(dir, "reaches.jsonl"), e.Reaches),
	)
}

// Load reads what Save wrote.
func Load(dir string) (*Evidence, error) {
	raw, err := os.ReadFile(filepath.Join(dir, "evidence.json"))
	if err != nil {
		return nil, err
	}
	var r rest
	if err := json.Unmarshal(raw, &r); err != nil {
		return nil, err
	}
	e := &Evidence{Opened: r.Opened, Windows: r.Windows, Lagged: r.Lagged, Books: r.Books, Stores: r.Stores, GivenUp: r.GivenUp, Owned: r.Owned, Plants: r.Plants, Repairs: r.Repairs, Driven: r.Driven, Silent: r.Silent, Foreign: r.Foreign, Balances: r.Balances, Deposit: r.Deposit, Lacks: r.Lacks, LateAnswer: r.LateAnswer}
	var errs [6]error
	e.Ops, errs[0] = history.Load[history.Op](filepath.Join(dir, "history.jsonl"))
	e.Calls, errs[1] = history.Load[tap.Call](filepath.Join(dir, "calls.jsonl"))
	e.Snapshots, errs[2] = history.Load[Snapshot](filepath.Join(dir, "snapshots.jsonl"))
	e.Decided, errs[3] = history.Load[Decided](filepath.Join(dir, "decided.jsonl"))
	e.Events, errs[4] = history.Load[Event](filepath.Join(dir, "events.jsonl"))
	e.Reaches, errs[5] = history.Load[Reach](filepath.Join(dir, "reaches.jsonl"))
	return e, errors.Join(errs[:]...)
}
