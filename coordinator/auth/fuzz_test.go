package auth

import (
	"encoding/hex"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// FuzzParseTokens: every line of a tokens file is somebody or an error that names the line; nobody gets a role that no
// line gives, and what was read means the same when it is written and read again.
func FuzzParseTokens(f *testing.F) {
	_, line := NewToken(RoleOperator, "jane")
	_, other := NewToken(RoleAdmin, "joe")
	for _, s := range []string{
		"", "# nobody\n", line, line + " # the till\n\n" + other + "\n", line + "\n" + line, strings.ToUpper(line), line[:len(line)-1], "none x " + line[len(line)-64:], "viewer a b " + line[len(line)-64:],
		"admin\u00a0x\u2003" + line[len(line)-64:], "viewer a\x00b " + line[len(line)-64:], strings.Repeat("x", 70_000),
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		tokens, err := parseTokens(strings.NewReader(text), "FILE")
		if err != nil {
			for l := range strings.SplitSeq(err.Error(), "\n") {
				if !strings.HasPrefix(l, "tokens: FILE line ") {
					t.Errorf("the fault %q names no line", l)
				}
			}
			return
		}
		named := 0
		for l := range strings.SplitSeq(text, "\n") {
			if l, _, _ = strings.Cut(l, "#"); strings.TrimSpace(l) != "" {
				named++
			}
		}
		if named != len(tokens) {
			t.Errorf("%d lines name %d callers", named, len(tokens))
		}
		var b strings.Builder
		for hash, id := range tokens {
			if id.Role < RoleViewer || id.Role > RoleAdmin || id.Name == "" || id.How != "token" || !strings.Contains(text, id.Name) || !strings.Contains(strings.ToLower(text), hex.EncodeToString(hash[:])) {
				t.Errorf("%+v is in no line", id)
			}
			fmt.Fprintf(&b, "%s %s %s\n", id.Role, id.Name, hex.EncodeToString(hash[:]))
		}
		again, err := parseTokens(strings.NewReader(b.String()), "FILE")
		if d := cmp.Diff(tokens, again); err != nil || d != "" {
			t.Errorf("(-read +read again), %v:\n%s", err, d)
		}
	})
}

// FuzzNewToken: a name that will do makes a line that the tokens file takes, and the token is its bearer's.
func FuzzNewToken(f *testing.F) {
	for _, s := range []string{"jane", "a b", "", "#", "x#y", "jörg", "\u00a0", "\u2028", "a\tb", "\xff"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, name string) {
		if CheckName(name) != nil {
			return
		}
		_, line := NewToken(RoleViewer, name)
		tokens, err := parseTokens(strings.NewReader(line), "FILE")
		if err != nil || len(tokens) != 1 {
			t.Fatalf("%q makes the line %q: %v", name, line, err)
		}
		for _, id := range tokens {
			if id.Name != name || id.Role != RoleViewer {
				t.Errorf("%q is read as %+v", name, id)
			}
		}
	})
}
