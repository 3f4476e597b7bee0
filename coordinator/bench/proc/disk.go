package proc

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"
)

// DiskWritten returns how many bytes the block device under path was told to write since the machine started, by anybody.
// It is the truth where the kernel accounts whole large folios to a process that dirties a few bytes of one, and
// write_bytes shows many times what was written; but it is only about one process while all others are idle. File systems
// without a block device of their own (overlay, btrfs) give an error.
func DiskWritten(path string) (int64, error) {
	const fieldSectorsWritten, sectorBytes = 6, 512 // see Documentation/block/stat.rst
	var st syscall.Stat_t
	if err := syscall.Stat(path, &st); err != nil {
		return 0, err
	}
	major := st.Dev>>8&0xfff | st.Dev>>32&^0xfff
	minor := st.Dev&0xff | st.Dev>>12&^0xff
	b, err := os.ReadFile(fmt.Sprintf("/sys/dev/block/%d:%d/stat", major, uint32(minor)))
	if err != nil {
		return 0, err
	}
	f := strings.Fields(string(b))
	if len(f) <= fieldSectorsWritten {
		return 0, fmt.Errorf("/sys/dev/block/%d:%d/stat: %q", major, minor, b)
	}
	n, err := strconv.ParseInt(f[fieldSectorsWritten], 10, 64)
	return n * sectorBytes, err
}
