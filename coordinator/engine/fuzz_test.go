package engine

import (
	"errors"
	"testing"

	"github.com/lockstep-tx/lockstep/coordinator/txn"
)

// FuzzLiveCursor: a cursor is the place that a listing gave, or it is refused as the client's mistake; none begins the
// list again but the empty one.
func FuzzLiveCursor(f *testing.F) {
	for _, s := range []string{"", "l:", "l:5:", "l:5:g", "l:-5:g:h", "l:+5:g", "l:9223372036854775808:g", "j:7", "5:g", "l:5", "l:0:\x00"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		c, err := parseLiveCursor(text)
		if err != nil {
			var te *txn.Error
			if !errors.As(err, &te) || te.Code != txn.CodeInvalid || te.Text == "" || c != (LiveCursor{}) {
				t.Errorf("%q: %+v, %v", text, c, err)
			}
			return
		}
		if c.Gid == "" {
			if text != "" {
				t.Errorf("%q begins the list again", text)
			}
			return
		}
		if again, err := parseLiveCursor(c.String()); err != nil || again != c {
			t.Errorf("%q was read as %+v, then as %+v (%v)", text, c, again, err)
		}
	})
}
