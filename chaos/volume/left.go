package volume

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// mark is what the name of each loop device of ours begins with; the pid of its process follows.
const mark = "lockstep-chaos-"

// owned is the name of a process' loop devices.
func owned(pid int) (name [64]uint8) {
	copy(name[:], mark+strconv.Itoa(pid))
	return name
}

// owner gives the pid in a loop device's name; false where it is none of ours.
func owner(name [64]uint8) (pid int, ours bool) {
	text, _, _ := bytes.Cut(name[:], []byte{0})
	rest, ours := strings.CutPrefix(string(text), mark)
	pid, err := strconv.Atoi(rest)
	return pid, ours && err == nil && pid > 0
}

// sweep unmounts and removes what dead processes have left. What is mounted elsewhere, in another container, is not seen here,
// and is left alone: its process may live there.
func sweep() error {
	mounts, err := loops()
	if err != nil {
		return err
	}
	for device, dir := range mounts {
		dead, image, err := left(device)
		if err != nil {
			return err
		}
		if !dead {
			continue
		}
		// Whoever had files there has died with it, or keeps them until then.
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) { // somebody else was first
			return fmt.Errorf("unmount %s: %w", dir, err)
		}
		if err := os.Remove(image); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	return nil
}

// loops are the loop devices that are mounted here, and where.
func loops() (map[string]string, error) {
	f, err := os.Open("/proc/self/mountinfo")
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil // no Linux: no volumes either
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	out := map[string]string{}
	sc := bufio.NewScanner(f)
	for sc.Scan() {
		// ID PARENT DEVICE ROOT DIR OPTIONS … - TYPE SOURCE OPTIONS
		before, after, _ := strings.Cut(sc.Text(), " - ")
		at, on := strings.Fields(before), strings.Fields(after)
		if len(at) > 4 && len(on) > 1 && strings.HasPrefix(on[1], "/dev/loop") {
			out[on[1]] = unescaped.Replace(at[4])
		}
	}
	return out, sc.Err()
}

// unescaped is a path as mountinfo has it.
var unescaped = strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`)

// left says whether a loop device is one of ours whose process is no more, and what image is on it.
func left(device string) (dead bool, image string, err error) {
	f, err := os.Open(device)
	if errors.Is(err, os.ErrPermission) {
		return false, "", nil // who may not look has none
	}
	if err != nil {
		return false, "", err
	}
	defer f.Close()
	var info unix.LoopInfo64
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), unix.LOOP_GET_STATUS64, uintptr(unsafe.Pointer(&info))); errno != 0 {
		if errno == unix.ENXIO { // it has been let go meanwhile
			return false, "", nil
		}
		return false, "", fmt.Errorf("%s: %w", device, errno)
	}
	pid, ours := owner(info.File_name)
	if !ours || !errors.Is(unix.Kill(pid, 0), unix.ESRCH) {
		return false, "", nil
	}
	raw, err := os.ReadFile(filepath.Join("/sys/block", filepath.Base(device), "loop", "backing_file"))
	return true, strings.TrimSuffix(string(raw), "\n"), err
}
