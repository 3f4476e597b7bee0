package bed

import (
	"errors"
	"io"
	"net"
	"sync"
	"time"
)

// delayed carries TCP connections from listen to a target and holds every byte back for a time, in both directions, as a
// long line does: what follows soon after is not held longer.
type delayed struct {
	l    net.Listener
	to   string
	wait time.Duration

	mu    sync.Mutex
	conns []net.Conn
}

func delay(listen, to string, wait time.Duration) (*delayed, error) {
	l, err := net.Listen("tcp", listen)
	if err != nil {
		return nil, err
	}
	d := &delayed{l: l, to: to, wait: wait}
	go d.serve()
	return d, nil
}

func (d *delayed) serve() {
	for {
		in, err := d.l.Accept()
		if err != nil {
			return // closed
		}
		go func() {
			time.Sleep(2 * d.wait) // the handshake
			out, err := net.Dial("tcp", d.to)
			if err != nil {
				in.Close()
				return
			}
			d.mu.Lock()
			d.conns = append(d.conns, in, out)
			d.mu.Unlock()
			go d.carry(in, out)
			d.carry(out, in)
		}()
	}
}

// carry reads as fast as it comes and writes each piece when its time has come.
func (d *delayed) carry(from, to net.Conn) {
	type piece struct {
		at   time.Time
		data []byte
	}
	line := make(chan piece, 4096)
	go func() {
		defer close(line)
		for {
			buf := make([]byte, 32<<10)
			n, err := from.Read(buf)
			if n > 0 {
				line <- piece{time.Now().Add(d.wait), buf[:n]}
			}
			if err != nil {
				return
			}
		}
	}()
	for p := range line {
		time.Sleep(time.Until(p.at))
		if _, err := to.Write(p.data); err != nil {
			from.Close() // the reader ends, and with it the line
			for range line {
			}
			break
		}
	}
	if c, ok := to.(*net.TCPConn); ok {
		_ = c.CloseWrite() // the other direction may go on
	}
}

// Close ends it with its connections.
func (d *delayed) Close() error {
	err := d.l.Close()
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, c := range d.conns {
		if cerr := c.Close(); cerr != nil && !errors.Is(cerr, net.ErrClosed) && !errors.Is(cerr, io.EOF) {
			err = errors.Join(err, cerr)
		}
	}
	return err
}
