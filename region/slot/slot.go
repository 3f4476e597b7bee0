// Package slot maps transactions and accounts to slots.
//
// The law it keeps: a gid's slot is a pure function of its text and never changes. A deployment has Count slots, fixed
// when it is created. It is tested by a table of fixed values and by fuzzing.
package slot

import "strings"

// Count is the number of slots of a deployment.
const Count = 1024

const (
	fnvOffset = 14695981039346656037
	fnvPrime  = 1099511628211
)

// Of gives the slot of a gid or an account: FNV-1a-64 modulo Count, of the text between the first '{' and the next
// '}' when that is not empty, else of the whole text. So "{user42}01J…" lives with account "user42".
func Of(id string) int {
	return int(hash(Tag(id)) % Count)
}

// Tag is the part of id that fixes its slot.
func Tag(id string) string {
	open := strings.IndexByte(id, '{')
	if open < 0 {
		return id
	}
	end := strings.IndexByte(id[open+1:], '}')
	if end <= 0 {
		return id
	}
	return id[open+1 : open+1+end]
}

func hash(s string) uint64 { return hashOn(fnvOffset, s) }

// hashOn goes on with a hash of what stands before s.
func hashOn(h uint64, s string) uint64 {
	for i := 0; i < len(s); i++ {
		h = (h ^ uint64(s[i])) * fnvPrime
	}
	return h
}

// Prefer gives the member that should hold slot n, by rendezvous hashing (Thaler and Ravishankar 1998): when a member
// comes or goes, only its own slots move. Members must be distinct; the empty list gives "".
func Prefer(n int, members []string) string {
	best, bestWeight := "", uint64(0)
	for _, m := range members {
		w := mix(hash(m) ^ mix(uint64(n)+1))
		if best == "" || w > bestWeight || (w == bestWeight && m > best) {
			best, bestWeight = m, w
		}
	}
	return best
}

// mix is the finaliser of splitmix64.
func mix(z uint64) uint64 {
	z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9
	z = (z ^ (z >> 27)) * 0x94d049bb133111eb
	return z ^ (z >> 31)
}
