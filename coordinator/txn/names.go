package txn

import (
	"fmt"
	"unicode"
	"unicode/utf8"
)

// CheckName says why s cannot be the name of a transaction or a branch; nil when it can. Names stand in tables, logs,
// terminals and URLs, and two that look alike must be alike: it takes 1 to GidBytesMax bytes of valid UTF-8 without
// control characters (C0, DEL, C1), line and paragraph separators, the marks that turn the direction of text, and
// U+FFFD, which decoders put where they could not read: different names would become one.
func CheckName(s string) error {
	switch {
	case s == "":
		return fmt.Errorf("it is empty")
	case len(s) > GidBytesMax:
		return fmt.Errorf("it has %d bytes; at most %d fit the barrier table", len(s), GidBytesMax)
	case !utf8.ValidString(s):
		return fmt.Errorf("it is not valid UTF-8")
	}
	for _, r := range s {
		switch {
		case r == utf8.RuneError:
			return fmt.Errorf("the character %+q is not allowed: it stands where a text could not be read", r)
		case unicode.IsControl(r), r == '\u2028', r == '\u2029', unicode.Is(unicode.Bidi_Control, r):
			return fmt.Errorf("the character %+q is not allowed", r)
		}
	}
	return nil
}
