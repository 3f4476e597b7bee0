// Package volume is disks whose power can be cut: an ext4 image on a loop device, which can be shut down as if the current
// had failed, and mounted again with what had reached the image.
//
// Its law: after Cut nothing more is written to the image, not even the file system's own journal, and who writes is told
// so (EIO); after Restore the volume holds what was synced before the cut, and of the rest what the kernel had happened to
// write. SIGKILL shows none of that: the page cache outlives the process. What a process that was killed has left mounted, the
// next Open on the machine removes: each loop device says whose it is, and goes with its mount. Volumes of processes that live are
// never touched.
//
// Linux, root and loop devices are needed. Probe says whether they are there, by doing it once.
package volume

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	shutdown    = 0x8004587d // EXT4_IOC_SHUTDOWN
	noLogFlush  = 2          // EXT4_GOING_FLAGS_NOLOGFLUSH: not even the journal is written
	loopTries   = 8
	unmountWait = 10 * time.Second
	sentinel    = "sentinel"
)

// The sentinel's two regions, in bytes.
const (
	Synced   = 4096
	Unsynced = 80 << 10
)

// Volume is one mounted image. Its methods are for one caller at a time.
type Volume struct {
	image, dir string
	mounted    bool
	mark       *os.File // the sentinel, open from before the cut
	err        error    // what the mark's last write met
}

// Open makes an image of so many bytes and mounts it at dir, which it creates. The caller closes it.
func Open(dir string, bytes int64) (*Volume, error) {
	if err := sweep(); err != nil {
		return nil, fmt.Errorf("volumes that a dead process has left: %w", err)
	}
	v := &Volume{image: dir + ".img", dir: dir}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	f, err := os.Create(v.image)
	if err != nil {
		return nil, err
	}
	if err := errors.Join(f.Truncate(bytes), f.Close()); err != nil {
		return nil, err
	}
	// Nothing is left to be initialised later, which would write at times of its own.
	if out, err := exec.Command("mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0", v.image).CombinedOutput(); err != nil {
		return nil, fmt.Errorf("mkfs.ext4: %w: %s", err, strings.TrimSpace(string(out)))
	}
	return v, v.mount()
}

// Dir is where it is mounted.
func (v *Volume) Dir() string { return v.dir }

// mount puts the image on a loop device, which is released with the mount.
func (v *Volume) mount() error {
	device, err := attach(v.image)
	if err != nil {
		return err
	}
	defer device.Close() // the mount holds it from here on
	if err := unix.Mount(device.Name(), v.dir, "ext4", unix.MS_NOATIME, ""); err != nil {
		return fmt.Errorf("mount %s: %w", device.Name(), err)
	}
	v.mounted = true
	return nil
}

// attach gives a free loop device with the image on it.
func attach(image string) (*os.File, error) {
	control, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer control.Close()
	back, err := os.OpenFile(image, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer back.Close()
	for range loopTries { // somebody else may take the free one first
		n, err := unix.IoctlRetInt(int(control.Fd()), unix.LOOP_CTL_GET_FREE)
		if err != nil {
			return nil, fmt.Errorf("loop device: %w", err)
		}
		device, err := os.OpenFile(fmt.Sprintf("/dev/loop%d", n), os.O_RDWR, 0)
		if err != nil {
			return nil, err
		}
		cfg := unix.LoopConfig{Fd: uint32(back.Fd()), Info: unix.LoopInfo64{Flags: unix.LO_FLAGS_AUTOCLEAR, File_name: owned(os.Getpid())}}
		err = unix.IoctlLoopConfigure(int(device.Fd()), &cfg)
		if err == nil {
			return device, nil
		}
		device.Close()
		if !errors.Is(err, unix.EBUSY) {
			return nil, fmt.Errorf("loop device %d: %w", n, err)
		}
	}
	return nil, errors.New("no loop device is free")
}

// Sync writes everything that is on the volume now to the image.
func (v *Volume) Sync() error {
	f, err := os.Open(v.dir)
	if err != nil {
		return err
	}
	defer f.Close()
	return unix.Syncfs(int(f.Fd()))
}

// Mark writes the sentinel: a region that is synced, and behind it one that is not.
func (v *Volume) Mark() error {
	f, err := os.Create(filepath.Join(v.dir, sentinel))
	if err != nil {
		return err
	}
	v.mark = f
	if _, err := f.Write(pattern(Synced)); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	_, err = f.Write(pattern(Unsynced))
	return err
}

func pattern(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i%251) + 1 // never zero: a hole would be
	}
	return b
}

// Cut takes the power away.
func (v *Volume) Cut() error {
	f, err := os.Open(v.dir)
	if err != nil {
		return err
	}
	defer f.Close()
	how := uint32(noLogFlush)
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), shutdown, uintptr(unsafe.Pointer(&how))); errno != 0 {
		return fmt.Errorf("shut the file system down: %w", errno)
	}
	return nil
}

// Refuses says whether a write to the file that Mark left open is refused with EIO, as all are after Cut.
func (v *Volume) Refuses() (bool, error) {
	if v.mark == nil {
		return false, errors.New("there is no sentinel")
	}
	_, v.err = v.mark.Write([]byte{1})
	return errors.Is(v.err, unix.EIO), nil
}

// Restore mounts the image again, once nobody has a file on the volume open any more.
func (v *Volume) Restore() error {
	if err := v.unmount(); err != nil {
		return err
	}
	return v.mount()
}

func (v *Volume) unmount() error {
	if v.mark != nil {
		v.mark.Close() // its errors are those of the cut
		v.mark = nil
	}
	if !v.mounted {
		return nil
	}
	var err error
	for end := time.Now().Add(unmountWait); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		if err = unix.Unmount(v.dir, 0); err == nil {
			v.mounted = false
			return nil
		}
		if !errors.Is(err, unix.EBUSY) {
			break
		}
	}
	return fmt.Errorf("unmount %s: %w", v.dir, err)
}

// Left says how much of the sentinel's two regions is there, in bytes, after a Restore. What was not synced may be there as
// zeroes; those do not count.
func (v *Volume) Left() (kept, lost int, err error) {
	b, err := os.ReadFile(filepath.Join(v.dir, sentinel))
	if err != nil {
		return 0, Unsynced, err
	}
	kept = same(b, pattern(Synced))
	return kept, Unsynced - same(b[min(Synced, len(b)):], pattern(Unsynced)), nil
}

// same is how many bytes of b are those of want.
func same(b, want []byte) (n int) {
	for i := range min(len(b), len(want)) {
		if b[i] == want[i] {
			n++
		}
	}
	return n
}

// Close unmounts it and removes the image. It may be called twice.
func (v *Volume) Close() error {
	err := v.unmount()
	if err != nil { // somebody still has a file open: it goes when they have gone
		err = errors.Join(err, unix.Unmount(v.dir, unix.MNT_DETACH))
		v.mounted = false
	}
	if rerr := os.Remove(v.image); rerr != nil && !errors.Is(rerr, os.ErrNotExist) {
		err = errors.Join(err, rerr)
	}
	return err
}

// Probe says why volumes cannot be had here; nil where they can. It tries once.
var Probe = sync.OnceValue(func() error {
	dir, err := os.MkdirTemp("", "lockstep-volume-")
	if err != nil {
		return err
	}
	return errors.Join(try(filepath.Join(dir, "probe")), os.RemoveAll(dir))
})

// try cuts the power of a small volume, and wants the sentinel to tell.
func try(dir string) (err error) {
	v, err := Open(dir, 16<<20)
	if v != nil {
		defer func() { err = errors.Join(err, v.Close()) }()
	}
	if err != nil {
		return err
	}
	if err := errors.Join(v.Mark(), v.Cut()); err != nil {
		return err
	}
	if no, err := v.Refuses(); err != nil || !no {
		return errors.Join(fmt.Errorf("a write after the cut was not refused: %v", v.err), err)
	}
	if err := v.Restore(); err != nil {
		return err
	}
	if kept, lost, err := v.Left(); err != nil || kept != Synced || lost != Unsynced {
		return errors.Join(fmt.Errorf("of %d synced bytes %d are there, of %d others %d are gone", Synced, kept, Unsynced, lost), err)
	}
	return nil
}
