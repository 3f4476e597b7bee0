// Package registry knows the participants by name: one endpoint per region, and what each can do. It says where a branch
// call goes: to the endpoint in the home of its account.
//
// The law it keeps: a call whose participant, account or home is not known goes where its URL says, with the epoch of the
// transaction's own slot, so that an unregistered participant is called as DTM calls it. Resolve is pure; the Registry
// beside it keeps what it needs up to date.
//
// It is tested by a table of URLs, accounts and homes, and against an arbiter. Source: DESIGN sections 6 and 7; ADR 8.
package registry

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"regexp"
	"slices"
	"sort"
	"strings"

	"github.com/lockstep-tx/lockstep/region/slot"
)

// Scheme begins the URL of a branch that names its participant: lockstep://ledger/pay/confirm.
const Scheme = "lockstep://"

// Participant is one registered participant.
type Participant struct {
	Name string `json:"name"`
	// Endpoints by region: the base of its URLs, http(s)://host:port/path or host:port for gRPC.
	Endpoints map[string]string `json:"endpoints"`
	// AccountField is the field of a JSON payload that names the account, where the branch itself names none.
	AccountField string `json:"account_field,omitempty"`
	// Can is what the participant answered when it was last probed; nil before.
	Can *Capabilities `json:"can,omitempty"`
	// Rev is the row's revision in the arbiter; not stored.
	Rev int64 `json:"-"`
}

// Capabilities are what a participant's probe answers (GET {endpoint}/lockstep/probe).
type Capabilities struct {
	// Fenced: it checks epochs. One that is not is called without protection from an owner of before.
	Fenced bool `json:"fenced"`
	Batch  bool `json:"batch"`
	// Apply: it posts committed effects of other homes to its copy.
	Apply bool `json:"apply"`
	// Movable: it releases and adopts the accounts of a slot.
	Movable bool `json:"movable"`
	// Tries: it lists what was tried, raises fences, adopts without a release and lifts what it adopted so (ADR 9).
	Tries bool `json:"tries,omitempty"`
	// Settle: it ends a try by its name.
	Settle bool `json:"settle,omitempty"`
	// Hold: it rebuilds at a copy what a try holds whose home was lost.
	Hold bool `json:"hold,omitempty"`
}

var (
	nameRule  = regexp.MustCompile(`^[a-z0-9][a-z0-9-]{0,31}$`)
	fieldRule = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_.]{0,63}$`)
)

// Check reports everything that is wrong with p, each line with the field; nil when it is sound. regions are those of the
// deployment.
func (p *Participant) Check(regions []string) error {
	var errs []error
	if !nameRule.MatchString(p.Name) {
		errs = append(errs, fmt.Errorf("name: %q has not 1 to 32 small letters, digits and dashes", p.Name))
	}
	if len(p.Endpoints) == 0 {
		errs = append(errs, errors.New("endpoints: none; give REGION=URL for each region"))
	}
	for region, e := range p.Endpoints {
		if !slices.Contains(regions, region) {
			errs = append(errs, fmt.Errorf("endpoints: no region %q; the deployment has %s", region, strings.Join(regions, ", ")))
		}
		u, err := url.Parse(e)
		if isHTTP(e) && (err != nil || u.Host == "" || u.RawQuery != "" || u.Fragment != "") || strings.HasPrefix(e, Scheme) || strings.TrimSpace(e) == "" {
			errs = append(errs, fmt.Errorf("endpoints: %s=%q is no base of a URL: http://host:port/path or host:port", region, e))
		}
	}
	if p.AccountField != "" && !fieldRule.MatchString(p.AccountField) {
		errs = append(errs, fmt.Errorf("account-field: %q is no name of a JSON field", p.AccountField))
	}
	return errors.Join(errs...)
}

func isHTTP(u string) bool {
	return strings.HasPrefix(u, "http://") || strings.HasPrefix(u, "https://")
}

// Table is all participants as Resolve needs them. The zero Table knows none.
type Table struct {
	list  []Participant
	named map[string]int
	// bases by length, the longest first: an absolute URL belongs to the longest one that begins it.
	bases []base
}

type base struct {
	prefix string
	p      int
}

// NewTable makes a table. The participants are not changed afterwards.
func NewTable(list []Participant) *Table {
	t := &Table{list: list, named: map[string]int{}}
	for i := range list {
		t.named[list[i].Name] = i
		for _, e := range list[i].Endpoints {
			t.bases = append(t.bases, base{strings.TrimSuffix(e, "/"), i})
		}
	}
	sort.Slice(t.bases, func(i, j int) bool { return len(t.bases[i].prefix) > len(t.bases[j].prefix) })
	return t
}

// All gives the participants in the order of their names. Read-only.
func (t *Table) All() []Participant {
	out := slices.Clone(t.list)
	sort.Slice(out, func(i, j int) bool { return out[i].Name < out[j].Name })
	return out
}

// Named gives a participant; nil when there is none of that name.
func (t *Table) Named(name string) *Participant {
	if i, ok := t.named[name]; ok {
		return &t.list[i]
	}
	return nil
}

// Split gives the participant that a branch URL belongs to and the rest of the URL; nil and the URL for one that is not
// registered.
func (t *Table) Split(u string) (*Participant, string) {
	if rest, ok := strings.CutPrefix(u, Scheme); ok {
		name, path := rest, ""
		if i := strings.IndexAny(rest, "/?"); i >= 0 {
			name, path = rest[:i], rest[i:]
		}
		return t.Named(name), path
	}
	for _, b := range t.bases {
		if rest, ok := strings.CutPrefix(u, b.prefix); ok && (rest == "" || rest[0] == '/' || rest[0] == '?') {
			return &t.list[b.p], rest
		}
	}
	return nil, u
}

// Target is where a call goes and what it carries.
type Target struct {
	URL string
	// Slot and Epoch of the account; the transaction's own where no account is named.
	Slot  int
	Epoch slot.Epoch
	// Region is the account's home; "" when it is not known.
	Region string
	// Participant is nil for one that is not registered.
	Participant *Participant
}

// ErrNowhere: a branch names a participant that is not registered, or one without an endpoint in its account's home.
var ErrNowhere = errors.New("the branch's participant has no endpoint")

// Resolve says where a branch call goes. account is what the branch names, "" for nothing: then the URL's query (account),
// then the payload's field that the participant is registered with, and else the transaction's own slot stands for it.
func (t *Table) Resolve(u, account string, payload []byte, txSlot int, owners *slot.Map) (Target, error) {
	p, rest := t.Split(u)
	if p == nil && strings.HasPrefix(u, Scheme) {
		return Target{}, fmt.Errorf("%w: %s: no participant of that name; next: lockstep participant list", ErrNowhere, u)
	}
	out := Target{URL: u, Slot: accountSlot(p, rest, account, payload, txSlot), Participant: p}
	o := owners[out.Slot]
	out.Epoch, out.Region = o.Epoch, o.Region
	if p == nil {
		return out, nil
	}
	e, ok := p.Endpoints[o.Region]
	if !ok {
		if strings.HasPrefix(u, Scheme) {
			return Target{}, fmt.Errorf("%w: %s has none in region %q; next: lockstep participant set %s --endpoint %s=URL", ErrNowhere, p.Name, o.Region, p.Name, o.Region)
		}
		return out, nil
	}
	out.URL = strings.TrimSuffix(e, "/") + rest
	return out, nil
}

// AccountSlot is the slot of the account that a branch works on, as Resolve finds it, whatever its home.
func (t *Table) AccountSlot(u, account string, payload []byte, txSlot int) int {
	p, rest := t.Split(u)
	return accountSlot(p, rest, account, payload, txSlot)
}

func accountSlot(p *Participant, rest, account string, payload []byte, txSlot int) int {
	if account == "" {
		account = inQuery(rest)
	}
	if account == "" && p != nil && p.AccountField != "" {
		account = inPayload(payload, p.AccountField)
	}
	if account == "" {
		return txSlot
	}
	return slot.Of(account)
}

func inQuery(rest string) string {
	_, query, ok := strings.Cut(rest, "?")
	if !ok || !strings.Contains(query, "account=") {
		return ""
	}
	q, err := url.ParseQuery(query)
	if err != nil {
		return ""
	}
	return q.Get("account")
}

// inPayload reads a text from a JSON object; a dot goes down one level.
func inPayload(payload []byte, field string) string {
	head, tail, down := strings.Cut(field, ".")
	var obj map[string]json.RawMessage
	if json.Unmarshal(payload, &obj) != nil || obj[head] == nil {
		return ""
	}
	if down {
		return inPayload(obj[head], tail)
	}
	var s string
	if json.Unmarshal(obj[head], &s) != nil {
		return ""
	}
	return s
}
