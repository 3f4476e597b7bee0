package barrier_test

import (
	"errors"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"

	"github.com/lockstep-tx/lockstep/participants/barrier"
)

// FuzzFromMetadata: metadata is a call that can be, or invalid; and the same call over HTTP is read in the same way.
func FuzzFromMetadata(f *testing.F) {
	own := itoa(barrier.SlotOf("g"))
	f.Add("g", "tcc", "01", "try", own, "1", "9", "3")
	f.Add("g", "saga", "01", "action", "", "", "", "")
	f.Add("g", "tcc", "01", "try", own, "0", "", "")
	f.Add("", "tcc", strings.Repeat("b", 129), "\x00", "1024", "-1", "", "1")
	f.Add("ä", "xa", "01", "commit", "00", "+1", " 9", "9223372036854775808")
	f.Fuzz(func(t *testing.T, gid, transType, branch, op, slot, epoch, accountSlot, accountEpoch string) {
		fences := map[string]string{
			barrier.HeaderSlot: slot, barrier.HeaderEpoch: epoch, barrier.HeaderAccountSlot: accountSlot, barrier.HeaderAccountEpoch: accountEpoch,
		}
		md := map[string][]string{"dtm-gid": {gid}, "dtm-trans_type": {transType}, "dtm-branch_id": {branch}, "dtm-op": {op}}
		r := httptest.NewRequest("POST", "/", nil)
		r.URL.RawQuery = url.Values{"gid": {gid}, "trans_type": {transType}, "branch_id": {branch}, "op": {op}}.Encode()
		for k, v := range fences {
			md[strings.ToLower(k)] = []string{v}
			r.Header[k] = []string{v}
		}
		call, err := barrier.FromMetadata(md)
		over, overErr := barrier.FromHTTP(r)
		if (err == nil) != (overErr == nil) {
			t.Fatalf("over gRPC %v, over HTTP %v", err, overErr)
		}
		if err != nil {
			if !errors.Is(err, barrier.ErrInvalid) || call != nil && call.Gid != gid {
				t.Fatalf("%+v, %v", call, err)
			}
			return
		}
		if *call != *over {
			t.Errorf("over gRPC %+v, over HTTP %+v", *call, *over)
		}
		if call.Gid != gid || call.TransType != transType || call.BranchID != branch || call.Op != op || gid == "" || op == "" {
			t.Errorf("%+v was read", *call)
		}
		for _, fence := range []barrier.Fence{call.Fence, call.Account} {
			if fence != (barrier.Fence{}) && (fence.Epoch < 1 || fence.Slot < 0 || fence.Slot >= barrier.SlotCount) {
				t.Errorf("the fence %+v was let through", fence)
			}
		}
		if call.Fence.Epoch != 0 && call.Fence.Slot != barrier.SlotOf(gid) {
			t.Errorf("the slot of %q is not %d", gid, call.Fence.Slot)
		}
	})
}
