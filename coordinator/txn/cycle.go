package txn

// Cycle finds a branch that waits for itself through After, by index; -1 when there is none. Every index in After must
// be in range.
func Cycle(bs []Branch) int {
	state := make([]uint8, len(bs)) // 0 unseen, 1 on the path, 2 done
	var visit func(i int) bool
	visit = func(i int) bool {
		switch state[i] {
		case 1:
			return true
		case 2:
			return false
		}
		state[i] = 1
		for _, j := range bs[i].After {
			if visit(j) {
				return true
			}
		}
		state[i] = 2
		return false
	}
	for i := range bs {
		if visit(i) {
			return i
		}
	}
	return -1
}
