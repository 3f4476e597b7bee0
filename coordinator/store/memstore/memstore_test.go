package memstore

import (
	"testing"

	"github.com/lockstep-tx/lockstep/coordinator/engine"
	"github.com/lockstep-tx/lockstep/coordinator/store/storetest"
)

func TestStore(t *testing.T) {
	storetest.Run(t, func(*testing.T) engine.Store { return New() })
}
