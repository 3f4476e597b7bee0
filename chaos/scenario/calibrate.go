package scenario

import (
	"crypto/sha256"
	"os"
	"path/filepath"
	"sync"
	"time"
)

// What the reference machine (two cores, otherwise idle) takes for the same.
const (
	referenceCPU  = 400 * time.Millisecond
	referenceSync = 80 * time.Millisecond
)

// slowMax: on a machine that is slower than this nothing is waited for any longer.
const slowMax = 4.0

// Calibrate says how much slower this machine is now than the reference, at least 1: two cores' worth of arithmetic, and
// writes that are synced. Waits are longer by it, and the load may be less.
func Calibrate(dir string) (float64, error) {
	began := time.Now()
	var wg sync.WaitGroup
	for range 2 {
		wg.Go(func() {
			buf := make([]byte, 1<<20)
			for range 128 {
				s := sha256.Sum256(buf)
				copy(buf, s[:])
			}
		})
	}
	wg.Wait()
	cpu := time.Since(began)
	file := filepath.Join(dir, "calibrate")
	f, err := os.Create(file)
	if err != nil {
		return 1, err
	}
	defer os.Remove(file)
	defer f.Close()
	began = time.Now()
	for range 40 {
		if _, err := f.Write(make([]byte, 4096)); err != nil {
			return 1, err
		}
		if err := f.Sync(); err != nil {
			return 1, err
		}
	}
	return min(slowMax, max(1, cpu.Seconds()/referenceCPU.Seconds(), time.Since(began).Seconds()/referenceSync.Seconds())), nil
}
