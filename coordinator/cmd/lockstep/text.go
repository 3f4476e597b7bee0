package main

import (
	"fmt"
	"io"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

// What a table shows was written by others: clients name gids and reasons, participants the answers. A terminal obeys
// some of the characters, and a reader the lines that begin with "next:", so that neither is let through.

// shown is s for a terminal: characters that move the cursor, hide, or turn the direction of text, and bytes that are
// no text, are written as escapes (\x1b, \u202e).
func shown(s string) string {
	clean := func(r rune) bool {
		return r == ' ' || unicode.IsPrint(r) && r != utf8.RuneError
	}
	if utf8.ValidString(s) && strings.IndexFunc(s, func(r rune) bool { return !clean(r) }) < 0 {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); {
		r, n := utf8.DecodeRuneInString(s[i:])
		switch {
		case r == utf8.RuneError && n == 1:
			fmt.Fprintf(&b, `\x%02x`, s[i])
		case clean(r):
			b.WriteRune(r)
		default:
			q := strconv.QuoteRuneToASCII(r)
			b.WriteString(q[1 : len(q)-1])
		}
		i += n
	}
	return b.String()
}

// row writes one row of a table: its cells as a terminal may have them. A first cell that would pass for a line of ours
// is quoted.
func row(w io.Writer, cells ...any) {
	for i, c := range cells {
		text := shown(fmt.Sprint(c))
		if i == 0 && strings.HasPrefix(strings.ToLower(strings.TrimSpace(text)), "next:") {
			text = strconv.Quote(text)
		}
		if i > 0 {
			fmt.Fprint(w, "\t")
		}
		fmt.Fprint(w, text)
	}
	fmt.Fprintln(w)
}

// next prints what to do next, on one line.
func next(w io.Writer, command string) { fmt.Fprintln(w, "next:", shown(command)) }

// cut shortens a text to n characters on one line.
func cut(s string, n int) string {
	s = strings.Join(strings.Fields(s), " ")
	if r := []rune(s); len(r) > n {
		return string(r[:n-1]) + "…"
	}
	return s
}

// shellQuote makes a word that a shell takes as one.
func shellQuote(s string) string {
	if s != "" && strings.IndexFunc(s, func(r rune) bool {
		return !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("-_.:/", r))
	}) < 0 {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}

// flagOf is a flag with its value, so that no value is taken for a flag.
func flagOf(name, v string) string {
	if strings.HasPrefix(v, "-") {
		return "--" + name + "=" + shellQuote(v)
	}
	return "--" + name + " " + shellQuote(v)
}
