package proc

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestATopologyThatLacksSomethingSaysWhat: nothing is started with half a contract.
func TestATopologyThatLacksSomethingSaysWhat(t *testing.T) {
	whole := `participant:
  command: [x, "{listen}"]
  ready: /up
  pay: {try: /a, confirm: /b, cancel: /c}
  receive: {try: /a, confirm: /b, cancel: /c}
  payload: '{"card":"{account}","cents":{amount}}'
  account_field: card
  open_path: /cards
  open: '{account} {amount}'
  balances: /cards
`
	for _, c := range []struct{ from, to, says string }{
		{"", "", ""},
		{`"{listen}"`, "y", "participant.command"},
		{"cancel: /c}\n  receive", "cancel: http://h/c}\n  receive", "participant.pay.cancel"},
		{"{amount}}'", "5}'", "participant.payload"},
		{"account_field: card", "account_field: ''", "participant.account_field"},
		{"balances: /cards", "balance: /cards", "balance"},
	} {
		file := filepath.Join(t.TempDir(), "t.yaml")
		if err := os.WriteFile(file, []byte(strings.Replace(whole, c.from, c.to, 1)), 0o600); err != nil {
			t.Fatal(err)
		}
		p, err := Load(file)
		if (err == nil) != (c.says == "") || err != nil && !strings.Contains(err.Error(), c.says) {
			t.Errorf("%q for %q: %v", c.to, c.from, err)
		}
		if err == nil && string(p.Body("a", 5)) != `{"card":"a","cents":5}` {
			t.Errorf("the payload is %s", p.Body("a", 5))
		}
	}
}
