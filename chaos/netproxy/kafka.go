package netproxy

import (
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"strconv"
	"sync"

	"github.com/twmb/franz-go/pkg/kmsg"
)

// A Kafka client asks any broker for all brokers' addresses and goes there: a proxy that does not change them is used once.
// This file replaces them in answers to Metadata by the link's own address. One link stands for one broker.

const (
	produceKey   = 0
	metadataKey  = 3
	kafkaHeader  = 8        // api key, version, correlation id
	kafkaFrame   = 64 << 20 // larger is no Kafka
	versionsMost = 20000
)

// questions remembers which answers are to be changed or may be lost: those of Metadata and of Produce, by correlation id.
type questions struct {
	mu    sync.Mutex
	asked map[int32]question
}

type question struct{ key, version int16 }

func (q *questions) put(id int32, is question) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.asked == nil || len(q.asked) > versionsMost {
		q.asked = map[int32]question{}
	}
	q.asked[id] = is
}

func (q *questions) take(id int32) (question, bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	v, ok := q.asked[id]
	delete(q.asked, id)
	return v, ok
}

// frame reads one message with its length before it.
func frame(from io.Reader) ([]byte, error) {
	var size [4]byte
	if _, err := io.ReadFull(from, size[:]); err != nil {
		return nil, err
	}
	n := binary.BigEndian.Uint32(size[:])
	if n > kafkaFrame {
		return nil, fmt.Errorf("a frame of %d bytes is no Kafka", n)
	}
	b := make([]byte, 4+n)
	copy(b, size[:])
	_, err := io.ReadFull(from, b[4:])
	return b, err
}

// follow carries requests until an error, which ends the connection.
func (q *questions) follow(to io.Writer, from io.Reader) {
	for {
		b, err := frame(from)
		if err != nil {
			return
		}
		if body := b[4:]; len(body) >= kafkaHeader {
			if is := (question{int16(binary.BigEndian.Uint16(body)), int16(binary.BigEndian.Uint16(body[2:]))}); is.key == metadataKey || is.key == produceKey {
				q.put(int32(binary.BigEndian.Uint32(body[4:])), is)
			}
		}
		if _, err := to.Write(b); err != nil {
			return
		}
	}
}

// answer carries responses until an error; those to Metadata name the link's address as every broker's, and of those to Produce so
// many are lost as LoseProduced has said.
func (q *questions) answer(k *Link, to io.Writer, from io.Reader) {
	for {
		b, err := frame(from)
		if err != nil {
			return
		}
		if len(b) >= 8 {
			is, ok := q.take(int32(binary.BigEndian.Uint32(b[4:])))
			if ok && is.key == produceKey && k.loses() {
				continue
			}
			if ok && is.key == metadataKey {
				if b, err = renamed(b, is.version, k.route.Listen); err != nil {
					return // better no answer than one that leads around the link
				}
				k.moved.Add(1)
			}
		}
		if _, err := to.Write(b); err != nil {
			return
		}
	}
}

// loses says whether an answer to Produce is lost.
func (k *Link) loses() bool {
	for n := k.lose.Load(); n > 0; n = k.lose.Load() {
		if k.lose.CompareAndSwap(n, n-1) {
			k.unproduced.Add(1)
			return true
		}
	}
	return false
}

// renamed is an answer to Metadata with another address for every broker.
func renamed(b []byte, version int16, address string) ([]byte, error) {
	host, text, err := net.SplitHostPort(address)
	if err != nil {
		return nil, err
	}
	port, err := strconv.ParseInt(text, 10, 32)
	if err != nil {
		return nil, err
	}
	resp := kmsg.NewPtrMetadataResponse()
	resp.SetVersion(version)
	head := 8 // length and correlation id
	if resp.IsFlexible() {
		head++ // no tags
	}
	if len(b) < head {
		return nil, io.ErrUnexpectedEOF
	}
	if err := resp.ReadFrom(b[head:]); err != nil {
		return nil, err
	}
	for i := range resp.Brokers {
		resp.Brokers[i].Host, resp.Brokers[i].Port = host, int32(port)
	}
	out := resp.AppendTo(append([]byte(nil), b[:head]...))
	binary.BigEndian.PutUint32(out, uint32(len(out)-4))
	return out, nil
}
