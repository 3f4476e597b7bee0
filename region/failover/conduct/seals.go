package conduct

import (
	"fmt"
	"maps"
	"slices"

	"github.com/lockstep-tx/lockstep/region/slot"
)

// Mark is how far a frozen journal has a slot's chain of the lost region. Chain is lower-case hexadecimal.
type Mark struct {
	Slot  int    `json:"slot"`
	Epoch uint64 `json:"epoch"`
	Seq   uint64 `json:"seq"`
	Chain string `json:"chain"`
}

// Seals gives each slot's forced seal: the highest event in any journal, by region. An error where a slot is in no journal's
// answer, or two journals have another chain at the same event: then one of them is not what it should be, and nobody may
// choose.
func Seals(epochs map[int]slot.Epoch, marks map[string][]Mark) (map[int]*slot.Seal, error) {
	out := map[int]*slot.Seal{}
	from := map[int]string{}
	for _, region := range slices.Sorted(maps.Keys(marks)) {
		for _, m := range marks[region] {
			epoch, asked := epochs[m.Slot]
			if !asked {
				continue
			}
			if m.Epoch > uint64(epoch) {
				return nil, fmt.Errorf("slot %d: the journal of region %s is at epoch %d already, the slot was taken from epoch %d", m.Slot, region, m.Epoch, epoch)
			}
			have := out[m.Slot]
			if have != nil && have.Seq == m.Seq && have.Chain != m.Chain {
				return nil, fmt.Errorf("slot %d: the journals of %s and %s have different chains at event %d; next: lockstep drift run", m.Slot, from[m.Slot], region, m.Seq)
			}
			if have == nil || m.Seq > have.Seq {
				out[m.Slot], from[m.Slot] = &slot.Seal{Epoch: epoch, Seq: m.Seq, Chain: m.Chain, Forced: true}, region
			}
		}
	}
	for n := range epochs {
		if out[n] == nil {
			return nil, fmt.Errorf("slot %d: no journal says how far it is", n)
		}
	}
	return out, nil
}
