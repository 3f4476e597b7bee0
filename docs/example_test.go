package docs_test

import (
	"testing"

	"github.com/lockstep-tx/lockstep/coordinator/config"
	"github.com/lockstep-tx/lockstep/region/topology"
)

// TestTheExampleOfTwoRegionsIsLoaded: what deploy/example shows is what the programs take.
func TestTheExampleOfTwoRegionsIsLoaded(t *testing.T) {
	f, err := topology.Load("../deploy/example/regions.yaml")
	if err != nil {
		t.Fatal(err)
	}
	for _, region := range []string{"east", "west"} {
		values, err := config.ReadFile("../deploy/example/coordinator-" + region + ".yaml")
		if err != nil {
			t.Fatal(err)
		}
		if values["region"] != region || values["regions-file"] == "" || values["etcd-endpoints"] == "" {
			t.Errorf("%s: %v", region, values)
		}
		if _, ok := f.Regions[region]; !ok {
			t.Errorf("%s is not in the regions file", region)
		}
	}
	if len(f.Arbiter) != 3 {
		t.Errorf("an arbiter of %d members in an example of three failure domains", len(f.Arbiter))
	}
}
