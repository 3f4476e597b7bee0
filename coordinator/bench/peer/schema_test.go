package peer

import (
	"strings"
	"testing"
)

func TestDialectLeavesNoPlaceholder(t *testing.T) {
	for _, list := range [][]string{postgresTables, mysqlTables} {
		if len(list) != 5 {
			t.Errorf("%d statements, want 5", len(list))
		}
		for _, s := range list {
			for _, word := range []string{" ID", " TIME", " BYTES"} {
				if strings.Contains(s, word+",") || strings.Contains(s, word+" ") || strings.Contains(s, word+"\n") {
					t.Errorf("%q left in %s", word, s)
				}
			}
		}
	}
}
