package arbiter

import (
	"context"
	"fmt"
)

// Voters gives the names of the members that vote, as the cluster itself has them and not whoever lists addresses of it: one without a
// name was added and never started, and a learner has no vote. It asks a majority.
func (a *Arbiter) Voters(ctx context.Context) ([]string, error) {
	got, err := a.cli.MemberList(ctx)
	if err != nil {
		return nil, fmt.Errorf("list the arbiter's members: %w", err)
	}
	var out []string
	for _, m := range got.Members {
		if !m.IsLearner && m.Name != "" {
			out = append(out, m.Name)
		}
	}
	return out, nil
}
