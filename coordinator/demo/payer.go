package demo

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"sync"
	"syscall"
)

// payer is a customer's program that uses DTM's Go SDK, in a process of its own: it takes orders as JSON lines
// (participants/payer).
type payer struct {
	cmd  *exec.Cmd
	in   io.WriteCloser
	done chan error

	mu      sync.Mutex
	next    int64
	waiting map[int64]chan payment
	dead    error
}

type order struct {
	ID       int64  `json:"id"`
	Buyer    string `json:"buyer"`
	Merchant string `json:"merchant"`
	Amount   int64  `json:"amount"`
	Points   int64  `json:"points"`
}

type payment struct {
	ID    int64  `json:"id"`
	Gid   string `json:"gid"`
	Error string `json:"error"`
}

func startPayer(program, logFile, dtm, participants string) (*payer, error) {
	f, err := os.OpenFile(logFile, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	p := &payer{cmd: exec.Command(program, "pay", "--dtm", dtm, "--participants", participants), done: make(chan error, 1), waiting: map[int64]chan payment{}}
	p.cmd.Stderr = f
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if p.in, err = p.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := p.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start the payer: %w", err)
	}
	go p.read(out)
	return p, nil
}

// read hands the answers to those who wait for them.
func (p *payer) read(out io.Reader) {
	dec := json.NewDecoder(out)
	var err error
	for {
		var a payment
		if err = dec.Decode(&a); err != nil {
			break
		}
		p.mu.Lock()
		ch := p.waiting[a.ID]
		delete(p.waiting, a.ID)
		p.mu.Unlock()
		if ch != nil {
			ch <- a
		}
	}
	p.mu.Lock()
	p.dead = errors.New("the payer has ended")
	for id, ch := range p.waiting {
		close(ch)
		delete(p.waiting, id)
	}
	p.mu.Unlock()
	p.done <- p.cmd.Wait()
}

// pay makes one payment; the error is DTM's SDK's.
func (p *payer) pay(ctx context.Context, o order) (string, error) {
	ch := make(chan payment, 1)
	p.mu.Lock()
	if p.dead != nil {
		p.mu.Unlock()
		return "", p.dead
	}
	p.next++
	o.ID = p.next
	p.waiting[o.ID] = ch
	raw, err := json.Marshal(o)
	if err == nil {
		_, err = p.in.Write(append(raw, '\n'))
	}
	p.mu.Unlock()
	if err != nil {
		return "", err
	}
	select {
	case a, ok := <-ch:
		if !ok {
			return "", errors.New("the payer has ended")
		}
		if a.Error != "" {
			return a.Gid, errors.New(a.Error)
		}
		return a.Gid, nil
	case <-ctx.Done():
		return "", ctx.Err()
	}
}

// stop ends the payer: its input is over.
func (p *payer) stop() error {
	err := p.in.Close()
	return errors.Join(err, <-p.done)
}
