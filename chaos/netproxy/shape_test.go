package netproxy

import (
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"
)

func shape(t *testing.T, k *Link, d Direction, s Shape) {
	t.Helper()
	if err := k.Shape(d, s); err != nil {
		t.Fatal(err)
	}
}

// TestALongLineTakesItsTimeInOneDirection: over a connection that was there before and over a new one; the other direction has its
// own, and the order stays.
func TestALongLineTakesItsTimeInOneDirection(t *testing.T) {
	e := newEcho(t)
	k := open(t, Route{Name: "long", To: e.Addr().String()})
	old := dial(t, k)
	if _, err := say(old, "before", limit); err != nil {
		t.Fatal(err)
	}
	shape(t, k, Forth, Shape{Delay: 150 * time.Millisecond, Jitter: 20 * time.Millisecond})
	shape(t, k, Back, Shape{Delay: 50 * time.Millisecond})
	for name, c := range map[string]net.Conn{"old": old, "new": dial(t, k)} {
		began := time.Now()
		if _, err := say(c, name, limit); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(began); took < 200*time.Millisecond {
			t.Errorf("%s connection: there and back in %v", name, took)
		}
	}
	for n := range 20 {
		if _, err := fmt.Fprintf(old, "%d\n", n); err != nil {
			t.Fatal(err)
		}
	}
	if err := old.SetReadDeadline(time.Now().Add(limit)); err != nil {
		t.Fatal(err)
	}
	for n := range 20 {
		var got int
		if _, err := fmt.Fscanln(old, &got); err != nil || got != n {
			t.Fatalf("answer %d is %d, %v", n, got, err)
		}
	}
	shape(t, k, Forth, Shape{})
	shape(t, k, Back, Shape{})
	var took time.Duration
	for end := time.Now().Add(limit); time.Now().Before(end); { // a busy machine may need several
		began := time.Now()
		if _, err := say(old, "after", limit); err != nil {
			t.Fatal(err)
		}
		if took = time.Since(began); took < 150*time.Millisecond {
			break
		}
	}
	if took >= 150*time.Millisecond {
		t.Errorf("there and back in %v after the healing", took)
	}
	if err := k.Shape(Forth, Shape{Delay: -1}); err == nil {
		t.Error("a delay below zero is taken")
	}
}

// TestAThinLineTakesItsTimeForEachByte: so many bytes take so long, and none is lost.
func TestAThinLineTakesItsTimeForEachByte(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	k := open(t, Route{Name: "thin", To: l.Addr().String()})
	const rate, bytes = 64 << 10, 24 << 10
	shape(t, k, Forth, Shape{Rate: rate})
	c := dial(t, k)
	far, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer far.Close()
	began := time.Now()
	if _, err := c.Write(make([]byte, bytes)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(far, make([]byte, bytes)); err != nil {
		t.Fatal(err)
	}
	if took, least := time.Since(began), time.Second*bytes/rate; took < least*9/10 || took > least*20 {
		t.Errorf("%d bytes at %d a second took %v", bytes, rate, took)
	}
}

// TestAClogLosesNothing: what is sent meanwhile comes when it is unclogged; and a clogged link can be closed.
func TestAClogLosesNothing(t *testing.T) {
	e := newEcho(t)
	k := open(t, Route{Name: "clogged", To: e.Addr().String()})
	c := dial(t, k)
	if _, err := say(c, "before", limit); err != nil {
		t.Fatal(err)
	}
	shape(t, k, Forth, Shape{Hold: true})
	if got, err := say(c, "during", silence); !timedOut(err) || e.has("during") {
		t.Errorf("it came through a clogged link: %q, %v", got, err)
	}
	if n := k.Waiting(); n != uint64(len("during\n")) {
		t.Errorf("%d bytes are on their way", n)
	}
	shape(t, k, Forth, Shape{})
	for end := time.Now().Add(limit); !e.has("during") && time.Now().Before(end); time.Sleep(time.Millisecond) {
	}
	if !e.has("during") {
		t.Error("it never came")
	}
	shape(t, k, Forth, Shape{Hold: true})
	if _, err := io.WriteString(c, "never\n"); err != nil {
		t.Fatal(err)
	}
	c.Close()
	closed := make(chan error, 1)
	go func() { closed <- k.Close() }()
	select {
	case err := <-closed:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(limit):
		t.Fatal("a clogged link does not close")
	}
}

// TestATearIsInTheMiddle: the other side gets the beginning of what was sent, and then a reset.
func TestATearIsInTheMiddle(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	k := open(t, Route{Name: "torn", To: l.Addr().String()})
	c := dial(t, k)
	far, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer far.Close()
	k.Tear(1000)
	if _, err := c.Write(make([]byte, 4000)); err != nil {
		t.Fatal(err)
	}
	if err := far.SetReadDeadline(time.Now().Add(limit)); err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(far)
	if len(got) > 1000 || timedOut(err) {
		t.Errorf("%d bytes came, then %v", len(got), err)
	}
	if n := k.Counters(); n.Torn != 1 {
		t.Errorf("%+v", n)
	}
	k.Tear(0)
	whole := dial(t, k)
	far, err = l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer far.Close()
	if _, err := whole.Write(make([]byte, 4000)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(far, make([]byte, 4000)); err != nil {
		t.Errorf("after the healing: %v", err)
	}
}

// TestAHalfOpenConnectionHasNoOtherSide: it can be written to, and nothing ever comes; every other one is whole.
func TestAHalfOpenConnectionHasNoOtherSide(t *testing.T) {
	e := newEcho(t)
	k := open(t, Route{Name: "half", To: e.Addr().String()})
	k.HalfOpen(2)
	if _, err := say(dial(t, k), "whole", limit); err != nil {
		t.Fatal(err)
	}
	half := dial(t, k)
	if got, err := say(half, "half", silence); !timedOut(err) || e.has("half") {
		t.Errorf("%q, %v", got, err)
	}
	half.Close()
	for end := time.Now().Add(limit); k.Counters().HalfLeft == 0 && time.Now().Before(end); time.Sleep(time.Millisecond) {
	}
	if n := k.Counters(); n.HalfOpened != 1 || n.HalfLeft != 1 {
		t.Errorf("%+v", n)
	}
	k.HalfOpen(0)
	for range 2 {
		if _, err := say(dial(t, k), "healed", limit); err != nil {
			t.Error(err)
		}
	}
}

// TestAnAnswerToProduceIsLost: the broker has had the request; other answers pass, and so does the next one to Produce.
func TestAnAnswerToProduceIsLost(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	k := open(t, Route{Name: "x/kafka", To: l.Addr().String(), Kafka: true})
	c := dial(t, k)
	broker, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer broker.Close()
	k.LoseProduced(1)
	ask := func(key int16, id int32) { // and the broker answers with the id alone
		b := binary.BigEndian.AppendUint32(nil, kafkaHeader)
		b = binary.BigEndian.AppendUint16(b, uint16(key))
		b = binary.BigEndian.AppendUint16(b, 9)
		b = binary.BigEndian.AppendUint32(b, uint32(id))
		if _, err := c.Write(b); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(broker, make([]byte, len(b))); err != nil {
			t.Fatalf("request %d did not come to the broker: %v", id, err)
		}
		if err := binary.Write(broker, binary.BigEndian, [2]uint32{4, uint32(id)}); err != nil {
			t.Fatal(err)
		}
	}
	produce, fetch := int16(kmsg.Produce), int16(kmsg.Fetch)
	ask(produce, 1)
	ask(fetch, 2)
	ask(produce, 3)
	if err := c.SetReadDeadline(time.Now().Add(limit)); err != nil {
		t.Fatal(err)
	}
	for _, want := range []uint32{2, 3} {
		var got [2]uint32
		if err := binary.Read(c, binary.BigEndian, &got); err != nil || got[1] != want {
			t.Fatalf("answer %d, want %d, %v", got[1], want, err)
		}
	}
	if n := k.Counters(); n.Unproduced != 1 {
		t.Errorf("%+v", n)
	}
}
