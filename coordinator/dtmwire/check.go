package dtmwire

import "github.com/lockstep-tx/lockstep/coordinator/txn"

// CheckGid says why a gid cannot be used; nil when it can. The native API judges by the same rules.
func CheckGid(gid string) error { return checkGid(gid) }

// CheckURL says why an address can never be called; nil when it may be. field names it in the text.
func (s *Server) CheckURL(field, raw string) error { return s.checkURL(field, raw) }

// CheckBranches bounds a transaction's branches and refuses those that can never be called; headers go with every call.
func (s *Server) CheckBranches(gid string, bs []txn.Branch, headers map[string]string) error {
	if err := s.checkBranches(gid, bs); err != nil {
		return err
	}
	grpc := false
	for i := range bs {
		for _, u := range []string{bs[i].Try, bs[i].Confirm, bs[i].Cancel} {
			grpc = grpc || (u != "" && !isHTTP(u))
		}
	}
	return checkHeaders("options.headers", headers, grpc)
}
