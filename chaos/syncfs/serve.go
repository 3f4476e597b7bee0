package syncfs

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// owned begins the source of each mount of ours; the pid follows of whom it is for. kind is their type, without fuse. before it.
const (
	owned = "lockstep-chaos-"
	kind  = "lockstep-chaos"
)

// Child is to be called first by every main function of a program that calls Open. It returns at once, unless this process is one that
// Open has started: then it serves until that one is gone, and ends the process.
func Child() {
	text := os.Getenv(variable)
	if text == "" {
		return
	}
	var j job
	err := json.Unmarshal([]byte(text), &j)
	if err == nil {
		err = serve(j, os.Stdin, os.Stdout)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "syncfs:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

// serve mounts, and does what it is told line by line, until in ends.
func serve(j job, in io.Reader, out io.Writer) error {
	d := &disk{}
	var st syscall.Stat_t
	if err := syscall.Stat(j.Back, &st); err != nil {
		return err
	}
	root := &fs.LoopbackRoot{Path: j.Back, Dev: uint64(st.Dev), NewNode: func(of *fs.LoopbackRoot, _ *fs.Inode, _ string, _ *syscall.Stat_t) fs.InodeEmbedder {
		return &node{LoopbackNode: fs.LoopbackNode{RootData: of}, disk: d}
	}}
	top := &node{LoopbackNode: fs.LoopbackNode{RootData: root}, disk: d}
	root.RootNode = top
	// Who calls is root, or the kernel asks no more than the files' modes say.
	o := &fs.Options{NullPermissions: true}
	o.MountOptions = fuse.MountOptions{Name: kind, FsName: owned + strconv.Itoa(j.Owner), DirectMountStrict: true, AllowOther: true}
	if _, err := fs.Mount(j.Dir, top, o); err != nil {
		return err
	}
	return errors.Join(d.obey(in, out), detach(j.Dir))
}

// detach takes a mount away at once; whoever has a file open there has it until he closes it, or nobody serves it any more.
func detach(dir string) error {
	if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) { // EINVAL: there is none any more
		return fmt.Errorf("unmount %s: %w", dir, err)
	}
	return nil
}

// disk is what is done with syncs, and what was.
type disk struct {
	slow                  atomic.Int64 // time.Duration
	fail                  atomic.Bool
	syncs, slowed, failed atomic.Int64
}

// obey takes a Mode from each line, and answers with Counts.
func (d *disk) obey(in io.Reader, out io.Writer) error {
	lines, answers := bufio.NewScanner(in), json.NewEncoder(out)
	for lines.Scan() {
		var m Mode
		if err := json.Unmarshal(lines.Bytes(), &m); err != nil {
			return err
		}
		d.slow.Store(int64(m.Slow))
		d.fail.Store(m.Fail)
		if err := answers.Encode(Counts{d.syncs.Load(), d.slowed.Load(), d.failed.Load()}); err != nil {
			return err
		}
	}
	return lines.Err()
}

// sync is called before each.
func (d *disk) sync() syscall.Errno {
	d.syncs.Add(1)
	if slow := time.Duration(d.slow.Load()); slow > 0 {
		d.slowed.Add(1)
		time.Sleep(slow)
	}
	if d.fail.Load() {
		d.failed.Add(1)
		return syscall.EIO
	}
	return 0
}

// node is a file or a directory.
type node struct {
	fs.LoopbackNode
	disk *disk
}

// Fsync is a file's.
func (n *node) Fsync(ctx context.Context, f fs.FileHandle, flags uint32) syscall.Errno {
	if errno := n.disk.sync(); errno != 0 {
		return errno
	}
	file, ok := f.(fs.FileFsyncer)
	if !ok {
		return syscall.ENOTSUP
	}
	return file.Fsync(ctx, flags)
}

// OpendirHandle opens a directory.
func (n *node) OpendirHandle(ctx context.Context, flags uint32) (fs.FileHandle, uint32, syscall.Errno) {
	h, how, errno := n.LoopbackNode.OpendirHandle(ctx, flags)
	if errno != 0 {
		return nil, 0, errno
	}
	open, ok := h.(opened)
	if !ok {
		return nil, 0, syscall.ENOTSUP
	}
	return &directory{open, n.disk}, how, 0
}

// opened is what an open directory can do.
type opened interface {
	fs.FileReaddirenter
	fs.FileReleasedirer
	fs.FileSeekdirer
	fs.FileFsyncdirer
}

type directory struct {
	opened
	disk *disk
}

// Fsyncdir is a directory's.
func (d *directory) Fsyncdir(ctx context.Context, flags uint32) syscall.Errno {
	if errno := d.disk.sync(); errno != 0 {
		return errno
	}
	return d.opened.Fsyncdir(ctx, flags)
}
