//go:build !chaos

package engine

import "github.com/lockstep-tx/lockstep/coordinator/txn"

// traced is a transition that is being written down: never, in this build.
type traced struct{}

func trace(*txn.State, txn.Event) traced { return traced{} }

func (traced) end(*txn.State, []txn.Effect, error) {}
