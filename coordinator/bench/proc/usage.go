package proc

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// ticksPerSecond is USER_HZ, the unit of the times in /proc/PID/stat: 100 on every Linux that Go runs on.
const ticksPerSecond = 100

// Usage is what a process has consumed since it started.
type Usage struct {
	CPU          time.Duration // user and system time, to 10 ms
	WrittenBytes int64         // bytes it caused to be written to storage (write_bytes of /proc/PID/io)
}

// Sub returns what was consumed between old and u.
func (u Usage) Sub(old Usage) Usage {
	return Usage{CPU: u.CPU - old.CPU, WrittenBytes: u.WrittenBytes - old.WrittenBytes}
}

// Add returns the sum of both.
func (u Usage) Add(v Usage) Usage {
	return Usage{CPU: u.CPU + v.CPU, WrittenBytes: u.WrittenBytes + v.WrittenBytes}
}

// ReadUsage reads the usage of one process, its children not included.
func ReadUsage(pid int) (Usage, error) {
	st, err := readStat(pid)
	if err != nil {
		return Usage{}, err
	}
	w, err := writtenBytes(pid)
	return Usage{CPU: ticks(st.utime + st.stime), WrittenBytes: w}, err
}

// ReadTreeUsage reads the usage of a process, its living descendants and those it has already waited for (their times
// are in its cutime and cstime, their bytes in its io accounting), so that a difference of two readings is right even
// while a database server starts and ends its workers.
func ReadTreeUsage(pid int) (Usage, error) {
	children := map[int][]int{}
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return Usage{}, err
	}
	for _, d := range dirs {
		if id, err := strconv.Atoi(filepath.Base(d)); err == nil {
			if st, err := readStat(id); err == nil {
				children[st.ppid] = append(children[st.ppid], id)
			}
		}
	}
	var sum func(pid int) (Usage, error)
	sum = func(pid int) (Usage, error) {
		st, err := readStat(pid)
		if err != nil {
			return Usage{}, err
		}
		w, err := writtenBytes(pid)
		if err != nil {
			return Usage{}, err
		}
		u := Usage{CPU: ticks(st.utime + st.stime + st.cutime + st.cstime), WrittenBytes: w}
		for _, c := range children[pid] {
			if cu, err := sum(c); err == nil { // a child may just have ended; then its parent has its figures
				u = u.Add(cu)
			}
		}
		return u, nil
	}
	return sum(pid)
}

// PeakRSSBytes returns the largest resident set the process ever had (VmHWM).
func PeakRSSBytes(pid int) (int64, error) {
	f, err := os.Open(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, err
	}
	defer f.Close()
	sc := bufio.NewScanner(f)
	for sc.Scan() {
		if rest, ok := strings.CutPrefix(sc.Text(), "VmHWM:"); ok {
			kb, err := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(rest), " kB"), 10, 64)
			return kb << 10, err
		}
	}
	return 0, fmt.Errorf("no VmHWM in /proc/%d/status", pid)
}

type stat struct{ ppid, utime, stime, cutime, cstime int }

func ticks(n int) time.Duration { return time.Duration(n) * time.Second / ticksPerSecond }

func readStat(pid int) (stat, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return stat{}, err
	}
	// The command's name stands in parentheses and may hold anything; the fields after it are plain.
	i := bytes.LastIndexByte(b, ')')
	f := strings.Fields(string(b[i+1:]))
	if i < 0 || len(f) < 15 {
		return stat{}, fmt.Errorf("/proc/%d/stat: %q", pid, b)
	}
	at := func(field int) int { n, _ := strconv.Atoi(f[field-3]); return n } // fields counted from 1 as in proc(5)
	return stat{ppid: at(4), utime: at(14), stime: at(15), cutime: at(16), cstime: at(17)}, nil
}

func writtenBytes(pid int) (int64, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/io", pid))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(b)) {
		if rest, ok := strings.CutPrefix(line, "write_bytes:"); ok {
			return strconv.ParseInt(strings.TrimSpace(rest), 10, 64)
		}
	}
	return 0, fmt.Errorf("no write_bytes in /proc/%d/io", pid)
}
