package proc

import (
	"bufio"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// ListenerPID returns the process that listens on a local TCP port, the oldest when several share the socket (a server
// and its forked workers). It sees only processes whose file descriptors the caller may read.
func ListenerPID(port int) (int, error) {
	inodes := map[string]bool{}
	for _, file := range []string{"/proc/net/tcp", "/proc/net/tcp6"} {
		if err := listeners(file, port, inodes); err != nil && !os.IsNotExist(err) {
			return 0, err
		}
	}
	fds, err := filepath.Glob("/proc/[0-9]*/fd/*")
	if err != nil {
		return 0, err
	}
	best := 0
	for _, fd := range fds {
		to, err := os.Readlink(fd)
		if err != nil {
			continue // ended, or another user's
		}
		inode, ok := strings.CutPrefix(to, "socket:[")
		if !ok || !inodes[strings.TrimSuffix(inode, "]")] {
			continue
		}
		pid, _ := strconv.Atoi(strings.Split(fd, "/")[2])
		if best == 0 || pid < best {
			best = pid
		}
	}
	if best == 0 {
		return 0, fmt.Errorf("no process found that listens on port %d", port)
	}
	return best, nil
}

// listeners adds the inodes of the sockets in file (a /proc/net/tcp table) that listen on port.
func listeners(file string, port int, inodes map[string]bool) error {
	const stateListen, fieldLocal, fieldState, fieldInode = "0A", 1, 3, 9
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	suffix := fmt.Sprintf(":%04X", port)
	sc := bufio.NewScanner(f)
	for sc.Scan() {
		col := strings.Fields(sc.Text())
		if len(col) > fieldInode && col[fieldState] == stateListen && strings.HasSuffix(col[fieldLocal], suffix) {
			inodes[col[fieldInode]] = true
		}
	}
	return sc.Err()
}
