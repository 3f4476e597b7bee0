package dtmwire

import (
	"bytes"
	"encoding/json"
	"errors"
	"net/http"
)

// JSON-RPC codes of malformed requests (reference, section 5).
const (
	rpcParse    = -32700
	rpcRequest  = -32600
	rpcNoMethod = -32601
)

// jsonRPC answers one call with exactly one of result and error.
func (s *Server) jsonRPC(w http.ResponseWriter, r *http.Request) {
	body, err := s.body(w, r)
	if err != nil {
		writeRPCError(w, http.StatusBadRequest, nil, rpcParse, "Parse json error: "+err.Error())
		return
	}
	var req struct {
		JSONRPC string          `json:"jsonrpc"`
		ID      json.RawMessage `json:"id"`
		Method  string          `json:"method"`
		Params  json.RawMessage `json:"params"`
	}
	if err := json.Unmarshal(body, &req); err != nil {
		writeRPCError(w, http.StatusBadRequest, nil, rpcParse, "Parse json error: "+err.Error())
		return
	}
	var id any
	if err := json.Unmarshal(req.ID, &id); err != nil && len(req.ID) > 0 {
		writeRPCError(w, http.StatusBadRequest, nil, rpcParse, "Parse json error: "+err.Error())
		return
	}
	switch v := id.(type) {
	case string:
		if v == "" {
			writeRPCError(w, http.StatusOK, req.ID, rpcRequest, "Bad json request: id is empty")
			return
		}
	case float64:
	case nil:
		writeRPCError(w, http.StatusOK, nil, rpcRequest, "Bad json request: no id")
		return
	default:
		writeRPCError(w, http.StatusBadRequest, nil, rpcParse, "Parse json error: id is neither a string nor a number")
		return
	}
	if req.JSONRPC != "2.0" {
		writeRPCError(w, http.StatusOK, req.ID, rpcRequest, `Bad json request: jsonrpc must be "2.0"`)
		return
	}
	result, err := s.rpcCall(r, req.Method, req.Params)
	if err != nil {
		f := faultOf(err)
		_, _, code := f.Kind.Codes()
		if errors.Is(err, errNoMethod) {
			code = rpcNoMethod
		}
		writeRPCError(w, http.StatusOK, req.ID, code, f.message())
		return
	}
	writeRPC(w, http.StatusOK, map[string]any{"jsonrpc": "2.0", "id": req.ID, "result": result})
}

var errNoMethod = errors.New("unknown method")

func (s *Server) rpcCall(r *http.Request, method string, params []byte) (any, error) {
	if method == "newGid" {
		return map[string]string{"gid": s.NewGid()}, nil
	}
	if p := bytes.TrimSpace(params); len(p) == 0 || string(p) == "null" {
		params = []byte("{}")
	}
	ctx := r.Context()
	switch method {
	case "prepare", "submit", "abort":
		g, err := decodeGlobal(params)
		if err != nil {
			return nil, err
		}
		switch method {
		case "prepare":
			return nil, s.prepare(ctx, g)
		case "submit":
			return nil, s.submit(ctx, g)
		}
		return nil, s.abort(ctx, g)
	case "registerBranch":
		b, err := decodeBranch(params)
		if err != nil {
			return nil, err
		}
		return nil, s.register(ctx, b)
	}
	return nil, errors.Join(errNoMethod, &Fault{Kind: FaultInternal, Text: "Method not found: " + toValid(method)})
}

func writeRPCError(w http.ResponseWriter, status int, id json.RawMessage, code int, message string) {
	if id == nil {
		id = json.RawMessage("null")
	}
	writeRPC(w, status, map[string]any{"jsonrpc": "2.0", "id": id, "error": map[string]any{"code": code, "message": message}})
}

func writeRPC(w http.ResponseWriter, status int, v any) {
	body, err := json.Marshal(v)
	if err != nil {
		status, body = http.StatusInternalServerError, []byte(`{"jsonrpc":"2.0","id":null,"error":{"code":-32603,"message":"the answer could not be encoded"}}`)
	}
	writeBody(w, status, body)
}
