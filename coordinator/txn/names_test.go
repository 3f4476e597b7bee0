package txn_test

import (
	"strings"
	"testing"

	"github.com/lockstep-tx/lockstep/coordinator/txn"
)

// Names of transactions and branches: what would forge a line, hide a letter or merge two names is refused.
func TestNamesThatForgeHideOrMergeAreRefused(t *testing.T) {
	for _, good := range []string{"a", "order 7", "Bestellung-ü", "注文", "{tag}x", "it's", "-rf", "a\u0301", "👩‍👧", strings.Repeat("x", txn.GidBytesMax)} {
		if err := txn.CheckName(good); err != nil {
			t.Errorf("%+q: %v", good, err)
		}
	}
	for _, bad := range []string{
		"", strings.Repeat("x", txn.GidBytesMax+1), "a\xffb", "\xed\xa0\x80", "a\ufffdb", "a\x00", "a\tb", "a\nb", "a\rb", "\x1b[2J", "a\x7f",
		"a\u0080", "a\u0085b", "a\u009bb", "a\u2028b", "a\u2029b", "a\u061cb", "a\u200eb", "a\u200fb", "a\u202ab", "a\u202eb", "a\u2066b", "a\u2069b",
	} {
		if txn.CheckName(bad) == nil {
			t.Errorf("%+q is taken", bad)
		}
	}
}
