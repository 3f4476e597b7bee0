package invoke

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/lockstep-tx/lockstep/coordinator/txn"
)

// What a later branch needs is kept up to 16 KiB. A larger answer fails its try, in whatever protocol, and nothing of it
// is kept: a later branch that acts on a part, or on nothing, would move other money than was meant.
func TestAResultThatIsTooLargeFailsItsTry(t *testing.T) {
	t.Parallel()
	const limit = 16 << 10
	for _, size := range []int{limit, limit + 1, 5 * limit} {
		want, kept := txn.Done, size
		if size > limit {
			want, kept = txn.Unknown, 0
		}
		result := strings.Repeat("x", size-2)
		web := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Query().Has("method") {
				fmt.Fprintf(w, `{"jsonrpc":"2.0","id":1,"result":%q}`, result)
				return
			}
			fmt.Fprintf(w, "%q", result)
		}))
		defer web.Close()
		for protocol, url := range map[string]string{"http": web.URL, "json-rpc": web.URL + "/?method=try", "grpc": grpcServerOf(t, []byte(`"`+result+`"`)) + "/p.S/M"} {
			v := newInvoker(t, Config{})
			c := callTo(url)
			c.Op, c.OpWord, c.WantResult = txn.OpTry, "try", true
			if protocol == "json-rpc" {
				c.Protocol = txn.ProtocolJSONRPC
			}
			res := one(t, v, c)
			if res.Outcome != want || len(res.Result) != kept {
				t.Errorf("%s, %d bytes: %v %q, %d bytes kept; want %v and %d", protocol, size, res.Outcome, res.Text, len(res.Result), want, kept)
			}
			if size == limit+1 && !strings.Contains(res.Text, "16384") {
				t.Errorf("%s: %q does not name the limit", protocol, res.Text)
			}
			c.WantResult = false
			if res := one(t, v, c); size <= limit+1 && (res.Outcome != txn.Done || res.Result != nil) {
				t.Errorf("%s, %d bytes that nobody needs: %v %q", protocol, size, res.Outcome, res.Text)
			}
		}
	}
}
