package txn

// The retry schedule, in milliseconds: 500, 1,000, 2,000, … doubling up to BackoffCapMillis, each with up to 20 %
// taken off or added by a hash of the transaction, the branch and the attempt. A client's retry_interval takes the
// place of the first pause, and of the cap where it is longer.
const (
	BackoffBaseMillis = 500
	BackoffCapMillis  = 60_000
)

// Backoff is the pause after the failure with the given number (1 is the first), in milliseconds. It is a pure
// function of its arguments: seed makes different branches spread out. base 0 means BackoffBaseMillis.
func Backoff(failure int, base int64, seed uint64) int64 {
	if base <= 0 {
		base = BackoffBaseMillis
	}
	limit := int64(BackoffCapMillis)
	if base > limit {
		limit = base
	}
	d := base
	for i := 1; i < failure && d < limit; i++ {
		d *= 2
	}
	if d > limit {
		d = limit
	}
	h := mix(seed + uint64(failure)*0x9e3779b97f4a7c15)
	return d + d*int64(h%401)/1000 - d/5
}

// mix is the finaliser of splitmix64 (Steele, Lea, Flood 2014): every input bit reaches every output bit.
func mix(z uint64) uint64 {
	z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9
	z = (z ^ (z >> 27)) * 0x94d049bb133111eb
	return z ^ (z >> 31)
}

// hash64 is FNV-1a over both ids.
func hash64(gid Gid, b BranchID) uint64 {
	h := uint64(14695981039346656037)
	for i := 0; i < len(gid); i++ {
		h = (h ^ uint64(gid[i])) * 1099511628211
	}
	h = (h ^ 0xff) * 1099511628211
	for i := 0; i < len(b); i++ {
		h = (h ^ uint64(b[i])) * 1099511628211
	}
	return h
}
