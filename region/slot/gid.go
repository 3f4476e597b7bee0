package slot

import (
	"crypto/rand"
	"encoding/binary"
	"time"
)

// GidPrefix begins every gid made by NewGid, and marks it as one that carries its time.
const GidPrefix = "ls1"

const (
	crockford  = "0123456789abcdefghjkmnpqrstvwxyz"
	timeChars  = 10 // 50 bits of milliseconds
	randChars  = 12 // 60 bits
	gidLength  = len(GidPrefix) + timeChars + randChars
	tailChars  = 4 // 20 bits: more than there are tries
	triesOfGid = 1 << 16
)

// NewGid makes a gid that carries now (to the millisecond) and 60 random bits, for whose slot accept is true; a nil
// accept takes any. Gids sort by time. Where accept takes almost nothing it gives up after many tries and gives any.
func NewGid(now time.Time, accept func(slot int) bool) string {
	var b [gidLength]byte
	copy(b[:], GidPrefix)
	putTime(b[len(GidPrefix):], now)
	var seed [8]byte
	_, _ = rand.Read(seed[:]) // it never fails (crypto/rand's contract)
	v := binary.LittleEndian.Uint64(seed[:])
	for i := gidLength - randChars; i < gidLength-tailChars; i++ {
		b[i] = crockford[v&31]
		v >>= 5
	}
	// Only the tail changes from try to try, so only its part of the hash is computed again.
	head := hashOn(fnvOffset, string(b[:gidLength-tailChars]))
	for range triesOfGid {
		h := head
		for i := range tailChars {
			c := crockford[v>>(5*i)&31]
			b[gidLength-tailChars+i] = c
			h = (h ^ uint64(c)) * fnvPrime
		}
		if accept == nil || accept(int(h%Count)) {
			break
		}
		v++
	}
	return string(b[:])
}

// FirstGid is not above any gid that NewGid makes at t or later, and above those that it made before.
func FirstGid(t time.Time) string {
	var b [len(GidPrefix) + timeChars]byte
	copy(b[:], GidPrefix)
	putTime(b[len(GidPrefix):], t)
	return string(b[:])
}

func putTime(b []byte, t time.Time) {
	ms := uint64(t.UnixMilli())
	for i := timeChars - 1; i >= 0; i-- {
		b[i] = crockford[ms&31]
		ms >>= 5
	}
}

// TimeOf gives the time that a gid made by NewGid carries; false for any other gid.
func TimeOf(gid string) (time.Time, bool) {
	if len(gid) != gidLength || gid[:len(GidPrefix)] != GidPrefix {
		return time.Time{}, false
	}
	var ms uint64
	for i := range timeChars {
		v := decode(gid[len(GidPrefix)+i])
		if v < 0 {
			return time.Time{}, false
		}
		ms = ms<<5 | uint64(v)
	}
	return time.UnixMilli(int64(ms)), true
}

func decode(c byte) int {
	for i := range len(crockford) {
		if crockford[i] == c {
			return i
		}
	}
	return -1
}
