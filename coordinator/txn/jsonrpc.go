package txn

import (
	"encoding/json"
	"strings"
)

// JSONRPC says that an address is called by JSON-RPC: the transaction's protocol says so and the address is of http and
// names a method (DTM's rule).
func (p Protocol) JSONRPC(url string) bool {
	return p == ProtocolJSONRPC && (strings.HasPrefix(url, "http://") || strings.HasPrefix(url, "https://")) && strings.Contains(url, "method")
}

// UncallableByRPC finds a branch whose payload no JSON-RPC call can carry, by index; -1 when there is none. The payload's
// fields become the call's params, beside gid, trans_type, branch_id and op: so it is a JSON object, or nothing.
func UncallableByRPC(p Protocol, bs []Branch) int {
	if p != ProtocolJSONRPC {
		return -1
	}
	for i := range bs {
		b := &bs[i]
		if !p.JSONRPC(b.Try) && !p.JSONRPC(b.Confirm) && !p.JSONRPC(b.Cancel) {
			continue
		}
		text := strings.TrimSpace(string(b.Payload))
		if text == "" || text == "null" {
			continue
		}
		var fields map[string]json.RawMessage
		if json.Unmarshal([]byte(text), &fields) != nil {
			return i
		}
	}
	return -1
}
