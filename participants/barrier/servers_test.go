//go:build servers

package barrier_test

import "github.com/lockstep-tx/lockstep/participants/barrier"

func init() { dialects = append(dialects, barrier.PostgreSQL, barrier.MySQL) }
