package netproxy

import (
	"bufio"
	"encoding/binary"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"
)

// limit is long enough for a busy machine; silence is how long nothing must come.
const (
	limit   = 20 * time.Second
	silence = 200 * time.Millisecond
)

// echo answers every line and remembers it.
type echo struct {
	net.Listener
	mu   sync.Mutex
	seen []string
}

func newEcho(t *testing.T) *echo {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	e := &echo{Listener: l}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer c.Close()
				for in := bufio.NewScanner(c); in.Scan(); {
					e.mu.Lock()
					e.seen = append(e.seen, in.Text())
					e.mu.Unlock()
					if _, err := io.WriteString(c, in.Text()+"\n"); err != nil {
						return
					}
				}
			})
		}
	})
	t.Cleanup(func() { l.Close(); wg.Wait() })
	return e
}

func (e *echo) has(line string) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, s := range e.seen {
		if s == line {
			return true
		}
	}
	return false
}

func open(t *testing.T, r Route) *Link {
	t.Helper()
	r.Listen = "127.0.0.1:0"
	k, err := Open(r)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := k.Close(); err != nil {
			t.Error(err)
		}
	})
	return k
}

func dial(t *testing.T, k *Link) net.Conn {
	t.Helper()
	c, err := net.Dial("tcp", k.Addr())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// say sends a line and gives the answer, within a time.
func say(c net.Conn, line string, within time.Duration) (string, error) {
	if _, err := io.WriteString(c, line+"\n"); err != nil {
		return "", err
	}
	if err := c.SetReadDeadline(time.Now().Add(within)); err != nil {
		return "", err
	}
	s, err := bufio.NewReader(c).ReadString('\n')
	return strings.TrimSpace(s), err
}

func timedOut(err error) bool {
	var ne net.Error
	return errors.As(err, &ne) && ne.Timeout()
}

func TestADroppedLinkSwallowsAndAHealedOneCarriesOnlyWhatIsNew(t *testing.T) {
	e := newEcho(t)
	k := open(t, Route{Name: "a", To: e.Addr().String()})
	old := dial(t, k)
	if s, err := say(old, "before", limit); err != nil || s != "before" {
		t.Fatalf("a whole link answered %q, %v", s, err)
	}
	if err := k.Cut(Drop); err != nil {
		t.Fatal(err)
	}
	if s, err := say(old, "during-old", silence); !timedOut(err) {
		t.Errorf("a cut connection answered %q, %v: want silence", s, err)
	}
	during := dial(t, k)
	if s, err := say(during, "during-new", silence); !timedOut(err) {
		t.Errorf("a connection that came during the cut answered %q, %v: want silence", s, err)
	}
	c := k.Counters()
	if !c.Cut || c.EndedConns != 1 || c.RefusedConns != 1 || c.RefusedBytes != uint64(len("during-old\n")+len("during-new\n")) || c.Bytes != 2*uint64(len("before\n")) {
		t.Errorf("the counters of a cut that bit: %+v", c)
	}
	k.Heal()
	for _, c := range []net.Conn{old, during} {
		if s, err := say(c, "too-late", limit); err == nil || timedOut(err) {
			t.Errorf("a connection that the cut has touched answered %q, %v: want its end", s, err)
		}
	}
	if s, err := say(dial(t, k), "after", limit); err != nil || s != "after" {
		t.Errorf("the healed link answered %q, %v", s, err)
	}
	for _, line := range []string{"during-old", "during-new", "too-late"} {
		if e.has(line) {
			t.Errorf("%q has passed the cut", line)
		}
	}
	if k.Counters().Cut {
		t.Error("a healed link says that it is cut")
	}
}

func TestARefusedLinkEndsConnections(t *testing.T) {
	e := newEcho(t)
	k := open(t, Route{Name: "a", To: e.Addr().String()})
	old := dial(t, k)
	if _, err := say(old, "before", limit); err != nil {
		t.Fatal(err)
	}
	if err := k.Cut(Refuse); err != nil {
		t.Fatal(err)
	}
	for _, c := range []net.Conn{old, dial(t, k)} {
		if s, err := say(c, "during", limit); err == nil || timedOut(err) {
			t.Errorf("a refused connection answered %q, %v: want its end", s, err)
		}
	}
	if c := k.Counters(); c.EndedConns != 1 || c.RefusedConns != 1 || e.has("during") {
		t.Errorf("%+v", c)
	}
	if err := k.Cut("sideways"); err == nil {
		t.Error("there is no such way")
	}
}

func TestTheControlCutsByName(t *testing.T) {
	e := newEcho(t)
	set, err := OpenAll([]Route{{Name: "east-west/grpc", Listen: "127.0.0.1:0", To: e.Addr().String()}, {Name: "west-east/grpc", Listen: "127.0.0.1:0", To: e.Addr().String()}})
	if err != nil {
		t.Fatal(err)
	}
	defer set.Close()
	srv := httptest.NewServer(set.Handler())
	defer srv.Close()
	post := func(path string) (list []Counters, code int) {
		t.Helper()
		resp, err := http.Post(srv.URL+path, "", nil)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		if resp.StatusCode == http.StatusOK {
			if err := json.NewDecoder(resp.Body).Decode(&list); err != nil {
				t.Fatal(err)
			}
		}
		return list, resp.StatusCode
	}
	if list, _ := post("/cut?route=east-west"); len(list) != 1 || !list[0].Cut || list[0].Way != Drop {
		t.Errorf("one of two links was to be cut: %+v", list)
	}
	if c := set.links[1].Counters(); c.Cut {
		t.Error("the other one is cut too")
	}
	if list, _ := post("/cut?way=refuse"); len(list) != 2 || !list[1].Cut || list[1].Way != Refuse {
		t.Errorf("all were to be cut: %+v", list)
	}
	if list, _ := post("/heal"); len(list) != 2 || list[0].Cut || list[1].Cut {
		t.Errorf("all were to be healed: %+v", list)
	}
	if _, code := post("/cut?route=nowhere"); code != http.StatusNotFound {
		t.Errorf("a route that is not there: %d", code)
	}
	if _, code := post("/cut?way=sideways"); code != http.StatusBadRequest {
		t.Errorf("a way that is not there: %d", code)
	}
}

// A broker that says where it is must not lead its clients around the link; what else it says passes as it is.
func TestKafkasMetadataNamesTheLink(t *testing.T) {
	for _, version := range []int16{1, 8, 9, 12} {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		other := []byte{0, 0, 0, 6, 0, 0, 0, 8, 'o', 'k'} // the answer to another question
		go func() {
			c, err := l.Accept()
			if err != nil {
				return
			}
			defer c.Close()
			for range 2 {
				b, err := frame(c)
				if err != nil {
					return
				}
				out := other
				if binary.BigEndian.Uint16(b[4:]) == metadataKey {
					out = metadata(version, b[8:12])
				}
				if _, err := c.Write(out); err != nil {
					return
				}
			}
		}()
		k := open(t, Route{Name: "a/kafka", To: l.Addr().String(), Kafka: true})
		c := dial(t, k)
		if err := c.SetDeadline(time.Now().Add(limit)); err != nil {
			t.Fatal(err)
		}
		for _, q := range [][]byte{{0, 0, 0, 8, 0, metadataKey, 0, byte(version), 0, 0, 0, 7}, {0, 0, 0, 8, 0, 18, 0, 0, 0, 0, 0, 8}} {
			if _, err := c.Write(q); err != nil {
				t.Fatal(err)
			}
		}
		b, err := frame(c)
		if err != nil {
			t.Fatal(err)
		}
		got := kmsg.NewPtrMetadataResponse()
		got.SetVersion(version)
		head := 8
		if got.IsFlexible() {
			head++
		}
		if err := got.ReadFrom(b[head:]); err != nil {
			t.Fatal(err)
		}
		_, port, _ := net.SplitHostPort(k.Addr())
		if len(got.Brokers) != 1 || got.Brokers[0].Host != "127.0.0.1" || port != portText(got.Brokers[0].Port) || got.Brokers[0].NodeID != 5 || got.ControllerID != 5 {
			t.Errorf("version %d: %+v does not name the link at %s", version, got, k.Addr())
		}
		if b, err := frame(c); err != nil || string(b) != string(other) {
			t.Errorf("version %d: another answer came as %v, %v", version, b, err)
		}
		if n := k.Counters().MetadataMoved; n != 1 {
			t.Errorf("version %d: %d answers changed", version, n)
		}
	}
}

func portText(n int32) string {
	_, p, _ := net.SplitHostPort((&net.TCPAddr{Port: int(n)}).String())
	return p
}

// metadata is a broker's answer to the question with the correlation id given.
func metadata(version int16, correlation []byte) []byte {
	resp := kmsg.NewPtrMetadataResponse()
	resp.SetVersion(version)
	resp.ControllerID = 5
	resp.Brokers = append(resp.Brokers, kmsg.MetadataResponseBroker{NodeID: 5, Host: "broker.elsewhere", Port: 9092})
	out := append([]byte{0, 0, 0, 0}, correlation...)
	if resp.IsFlexible() {
		out = append(out, 0)
	}
	out = resp.AppendTo(out)
	binary.BigEndian.PutUint32(out, uint32(len(out)-4))
	return out
}
