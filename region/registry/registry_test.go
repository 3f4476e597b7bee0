package registry

import (
	"errors"
	"strings"
	"testing"

	"github.com/lockstep-tx/lockstep/region/slot"
)

// accountIn gives an account of a slot that the region owns.
func accountIn(m *slot.Map, region string) string {
	for i := 0; ; i++ {
		if a := "acct" + string(rune('a'+i%26)) + strings.Repeat("x", i/26); m[slot.Of(a)].Region == region {
			return a
		}
	}
}

func owners() *slot.Map {
	m := &slot.Map{}
	for n := range m {
		m[n] = slot.Owner{Region: []string{"east", "west"}[n%2], Epoch: slot.Initial(1 + n%2), Status: slot.Active}
	}
	return m
}

func TestABranchGoesToTheEndpointInTheHomeOfItsAccount(t *testing.T) {
	m := owners()
	table := NewTable([]Participant{
		{Name: "ledger", Endpoints: map[string]string{"east": "http://e:1/l", "west": "http://w:1/l/"}, AccountField: "who.id"},
		{Name: "bank", Endpoints: map[string]string{"east": "http://e:1/l/bank"}},
		{Name: "grpc", Endpoints: map[string]string{"east": "e:2", "west": "w:2"}},
	})
	east, west := accountIn(m, "east"), accountIn(m, "west")
	for _, tc := range []struct {
		name, url, account, payload string
		want                        string
		account2                    string // whose slot is expected; "" for the transaction's
		err                         bool
	}{
		{name: "by name", url: "lockstep://ledger/pay/confirm", account: west, want: "http://w:1/l/pay/confirm", account2: west},
		{name: "by DTM's absolute URL", url: "http://e:1/l/pay/confirm", account: west, want: "http://w:1/l/pay/confirm", account2: west},
		{name: "the other way round", url: "http://w:1/l/pay?x=1", account: east, want: "http://e:1/l/pay?x=1", account2: east},
		{name: "account in the query", url: "http://e:1/l/pay?account=" + west, want: "http://w:1/l/pay?account=" + west, account2: west},
		{name: "account in the payload", url: "http://e:1/l/pay", payload: `{"who":{"id":"` + west + `"}}`, want: "http://w:1/l/pay", account2: west},
		{name: "the branch's own word counts more", url: "http://e:1/l/pay?account=" + west, account: east, want: "http://e:1/l/pay?account=" + west, account2: east},
		{name: "no account: the transaction's slot", url: "lockstep://ledger/pay", want: "http://e:1/l/pay"},
		{name: "the longest prefix", url: "http://e:1/l/bank/in", account: east, want: "http://e:1/l/bank/in", account2: east},
		{name: "no endpoint in the home, by URL: as it stands", url: "http://e:1/l/bank/in", account: west, want: "http://e:1/l/bank/in", account2: west},
		{name: "no endpoint in the home, by name", url: "lockstep://bank/in", account: west, err: true},
		{name: "no such name", url: "lockstep://nobody/in", err: true},
		{name: "a prefix ends at a slash", url: "http://e:1/lost", want: "http://e:1/lost"},
		{name: "gRPC", url: "e:2/pkg.Service/Confirm", account: west, want: "w:2/pkg.Service/Confirm", account2: west},
		{name: "unregistered", url: "http://other/pay", account: west, want: "http://other/pay", account2: west},
		{name: "a payload that is no JSON", url: "http://e:1/l/pay", payload: `<xml>`, want: "http://e:1/l/pay"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			const txSlot = 4 // east's
			got, err := table.Resolve(tc.url, tc.account, []byte(tc.payload), txSlot, m)
			if tc.err {
				if !errors.Is(err, ErrNowhere) {
					t.Fatalf("%+v, %v", got, err)
				}
				return
			}
			n := txSlot
			if tc.account2 != "" {
				n = slot.Of(tc.account2)
			}
			if err != nil || got.URL != tc.want || got.Slot != n || got.Epoch != m[n].Epoch || got.Region != m[n].Region {
				t.Fatalf("%+v, %v; want %s in slot %d", got, err, tc.want, n)
			}
		})
	}
}

func TestABadParticipantIsRefusedWithTheField(t *testing.T) {
	for field, p := range map[string]Participant{
		"name":                {Name: "Ledger!", Endpoints: map[string]string{"east": "http://e:1"}},
		"endpoints: none":     {Name: "a"},
		"no region \"north\"": {Name: "a", Endpoints: map[string]string{"north": "http://n:1"}},
		"no base":             {Name: "a", Endpoints: map[string]string{"east": "http://"}},
		"account-field":       {Name: "a", Endpoints: map[string]string{"east": "e:1"}, AccountField: "a b"},
	} {
		if err := p.Check([]string{"east", "west"}); err == nil || !strings.Contains(err.Error(), field) {
			t.Errorf("%+v: %v, want %q", p, err, field)
		}
	}
	good := Participant{Name: "a", Endpoints: map[string]string{"east": "e:1", "west": "https://w/x"}}
	if err := good.Check([]string{"east", "west"}); err != nil {
		t.Error(err)
	}
}
