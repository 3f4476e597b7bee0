package volume

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

const filler = "filler"

// Fill takes all the space that is left, to the last block.
func (v *Volume) Fill() (err error) {
	f, err := os.Create(filepath.Join(v.dir, filler))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	at := int64(0)
	for step := int64(64 << 20); step >= 512; {
		switch err := unix.Fallocate(int(f.Fd()), 0, at, step); {
		case err == nil:
			at += step
		case errors.Is(err, unix.ENOSPC):
			step /= 2
		default:
			return fmt.Errorf("fill %s: %w", v.dir, err)
		}
	}
	return nil
}

// Full says whether a new file of a block meets ENOSPC.
func (v *Volume) Full() (bool, error) {
	name := filepath.Join(v.dir, "probe")
	err := os.WriteFile(name, make([]byte, 4096), 0o600)
	if errors.Is(err, unix.ENOSPC) {
		_ = os.Remove(name) // its name may have found room
		return true, nil
	}
	return false, errors.Join(err, os.Remove(name))
}

// Empty gives the space back that Fill has taken. It may be called twice.
func (v *Volume) Empty() error {
	if err := os.Remove(filepath.Join(v.dir, filler)); !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}
