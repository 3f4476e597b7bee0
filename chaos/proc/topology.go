package proc

import (
	"bytes"
	"errors"
	"fmt"
	"net/url"
	"os"
	"strings"

	"gopkg.in/yaml.v3"
)

// Participant is a program that keeps accounts and is called as a branch: ours, or a user's own, as a topology file says.
//
// In Command {listen} stands for HOST:PORT, {db} for a database address of its own (sqlite:FILE, or what --db says), {dir} for a
// directory of its own. In Payload and Open {account} stands for an account's id, {amount} for minor units.
type Participant struct {
	Command []string `yaml:"command" json:"command"`
	Ready   string   `yaml:"ready" json:"ready"` // a path that answers 200 when it is up
	Pay     Branch   `yaml:"pay" json:"pay"`
	Receive Branch   `yaml:"receive" json:"receive"`
	Payload string   `yaml:"payload" json:"payload"`
	// Account is the payload's field with the account.
	Account string `yaml:"account_field" json:"account_field"`
	// Open is POSTed to OpenPath to open an account with so much. Balances is what a GET answers with {"balances":{"account":
	// minor}} or {"account":minor}, as for lockstep-participants check --state-url.
	OpenPath string `yaml:"open_path" json:"open_path"`
	Open     string `yaml:"open" json:"open"`
	Balances string `yaml:"balances" json:"balances"`
}

// Branch is the paths of one kind of branch.
type Branch struct {
	Try     string `yaml:"try" json:"try"`
	Confirm string `yaml:"confirm" json:"confirm"`
	Cancel  string `yaml:"cancel" json:"cancel"`
}

// ours is lockstep-participants wallet; it is started in another way.
var ours = Participant{
	Ready: "/healthz", Pay: Branch{"/wallet/pay/try", "/wallet/pay/confirm", "/wallet/pay/cancel"},
	Receive: Branch{"/wallet/receive/try", "/wallet/receive/confirm", "/wallet/receive/cancel"},
	Payload: `{"account":"{account}","amount":{amount}}`, Account: "account", OpenPath: "/accounts", Open: `{"id":"{account}","balance":{amount}}`, Balances: "/balances",
}

// Load reads a topology file. A key that is not known, or one that is missing, is an error that names it.
func Load(file string) (*Participant, error) {
	raw, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	var t struct {
		Participant Participant `yaml:"participant"`
	}
	dec := yaml.NewDecoder(bytes.NewReader(raw))
	dec.KnownFields(true)
	if err := dec.Decode(&t); err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	p := &t.Participant
	if err := p.Valid(); err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	return p, nil
}

// Valid names every key that is missing or cannot be.
func (p *Participant) Valid() error {
	var err error
	for _, k := range []struct{ key, value string }{
		{"ready", p.Ready}, {"pay.try", p.Pay.Try}, {"pay.confirm", p.Pay.Confirm}, {"pay.cancel", p.Pay.Cancel},
		{"receive.try", p.Receive.Try}, {"receive.confirm", p.Receive.Confirm}, {"receive.cancel", p.Receive.Cancel}, {"open_path", p.OpenPath}, {"balances", p.Balances},
	} {
		if u, uerr := url.Parse(k.value); uerr != nil || !strings.HasPrefix(k.value, "/") || u.Host != "" {
			err = errors.Join(err, fmt.Errorf("participant.%s: %q is no path", k.key, k.value))
		}
	}
	if len(p.Command) == 0 || !strings.Contains(strings.Join(p.Command, " "), "{listen}") {
		err = errors.Join(err, errors.New("participant.command: a program is to be named, and told {listen}"))
	}
	for key, text := range map[string]string{"payload": p.Payload, "open": p.Open} {
		if !strings.Contains(text, "{account}") || !strings.Contains(text, "{amount}") {
			err = errors.Join(err, fmt.Errorf("participant.%s: {account} and {amount} are to be in it", key))
		}
	}
	if p.Account == "" {
		err = errors.Join(err, errors.New("participant.account_field: the payload's field with the account is to be named"))
	}
	return err
}

// args fills in the command line.
func (p *Participant) args(listen, db, dir string) []string {
	r := strings.NewReplacer("{listen}", listen, "{db}", db, "{dir}", dir)
	var out []string
	for _, a := range p.Command {
		out = append(out, r.Replace(a))
	}
	return out
}

func fill(text, account string, amount int64) []byte {
	return []byte(strings.NewReplacer("{account}", account, "{amount}", fmt.Sprint(amount)).Replace(text))
}

// Body is a call's payload.
func (p *Participant) Body(account string, amount int64) []byte {
	return fill(p.Payload, account, amount)
}

// Of gives the paths of the branch of that name: pay or receive.
func (p *Participant) Of(branch string) Branch {
	if branch == "pay" {
		return p.Pay
	}
	return p.Receive
}
