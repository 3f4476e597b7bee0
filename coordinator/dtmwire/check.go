package dtmwire

import "github.com/lockstep-tx/lockstep/coordinator/txn"

// CheckGid says why a gid cannot be used; nil when it can. The native API judges by the same rules.
func CheckGid(gid string) error { return checkGid(gid) }

// CheckURL says why an address can never be called; nil when it may be. field names it in the text.
func (s *Server) CheckURL(field, raw string) error { return s.checkURL(field, raw) }

// CheckBranches bounds a transaction's branches and checks their addresses.
func (s *Server) CheckBranches(bs []txn.Branch) error { return s.checkBranches("", bs) }
