package channelfile

import (
	"context"
	"net"

	"golang.org/x/crypto/ssh"
)

// sshDial is ssh.Dial that ends with ctx: every read and write of the connection fails then.
func sshDial(ctx context.Context, addr string, c *ssh.ClientConfig) (*ssh.Client, error) {
	d := net.Dialer{Timeout: c.Timeout}
	conn, err := d.DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, err
	}
	context.AfterFunc(ctx, func() { conn.Close() })
	sc, chans, reqs, err := ssh.NewClientConn(conn, addr, c)
	if err != nil {
		conn.Close()
		return nil, err
	}
	return ssh.NewClient(sc, chans, reqs), nil
}
