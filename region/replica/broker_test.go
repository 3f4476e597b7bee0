package replica

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/lockstep-tx/lockstep/region/eventlog"
)

// TestMain is also the broker as a process of its own.
func TestMain(m *testing.M) {
	if dir := os.Getenv("REPLICA_TEST_BROKER"); dir != "" {
		ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
		defer stop()
		if err := eventlog.RunBroker(ctx, eventlog.BrokerConfig{Addr: os.Getenv("REPLICA_TEST_ADDR"), Dir: dir}); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// process is a broker in a process that can be killed.
type process struct {
	t    testing.TB
	dir  string
	addr string
	cmd  *exec.Cmd
}

func newProcess(t testing.TB) *process {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	p := &process{t: t, dir: t.TempDir(), addr: l.Addr().String()}
	t.Cleanup(p.kill)
	return p
}

func (p *process) start() {
	p.t.Helper()
	p.cmd = exec.Command(os.Args[0])
	p.cmd.Env = append(os.Environ(), "REPLICA_TEST_BROKER="+p.dir, "REPLICA_TEST_ADDR="+p.addr)
	p.cmd.Stderr = os.Stderr
	if err := p.cmd.Start(); err != nil {
		p.t.Fatal(err)
	}
	eventually(p.t, "the broker comes up", func() string {
		c, err := net.DialTimeout("tcp", p.addr, time.Second)
		if err != nil {
			return err.Error()
		}
		c.Close()
		return ""
	})
}

// kill ends it with SIGKILL.
func (p *process) kill() {
	if p.cmd != nil {
		_ = p.cmd.Process.Kill()
		_ = p.cmd.Wait()
		p.cmd = nil
	}
}

// withProcess is two regions, the first of which has a broker of its own that can be killed.
func withProcess(t *testing.T) (*process, *area, *area) {
	t.Parallel()
	p := newProcess(t)
	d := &deployment{t: t, url: databaseOf["sqlite"], suffix: strings.ToLower(t.Name()[4:12])}
	d.brokers = func(testing.TB) []string { return []string{p.addr} }
	east := d.region("east")
	d.brokers = embedded
	return p, east, d.region("west")
}

func TestABrokerThatIsKilledKeepsWhatItAcknowledged(t *testing.T) {
	p, east, west := withProcess(t)
	p.start()
	east.d.start()
	var all sync.WaitGroup
	all.Go(func() {
		for range 3 {
			time.Sleep(300 * time.Millisecond)
			p.kill()
			p.start()
		}
	})
	for i := range 30 {
		rows := east.pay(fmt.Sprint(i), 40)
		time.Sleep(50 * time.Millisecond)
		defer west.has(rows)
	}
	all.Wait()
	eventually(t, "everything is published", func() string {
		if st := east.service.Status(); st.Unpublished != 0 {
			return fmt.Sprintf("%+v", st)
		}
		return ""
	})
	west.quietly()
	if filled := counted(t, west, "lockstep_replication_filled_total"); filled != 0 {
		t.Errorf("%v events had to be filled: the broker lost what it had acknowledged", filled)
	}
}

// TestABrokerThatLosesItsDiskIsFilledFromTheJournal: it has acknowledged, and knows nothing any more.
func TestABrokerThatLosesItsDiskIsFilledFromTheJournal(t *testing.T) {
	p, east, west := withProcess(t)
	p.start()
	east.d.start()
	west.has(east.pay("a", 100))
	west.stop()
	lost := east.pay("b", 100)
	eventually(t, "everything is published", func() string {
		if st := east.service.Status(); st.Unpublished != 0 {
			return fmt.Sprintf("%+v", st)
		}
		return ""
	})
	p.kill()
	p.dir = t.TempDir()
	p.start()
	after := east.pay("c", 100)
	west.start()
	west.has(lost)
	west.has(after)
	west.quietly()
}

// TestARegionCutOffForLongHoldsNothingUp: appending, on which the release of records from etcd depends, goes on at its pace;
// the backlog is in the journal, whole whatever its age, and memory is bounded.
func TestARegionCutOffForLongHoldsNothingUp(t *testing.T) {
	p, east, west := withProcess(t) // east's broker is down from the beginning
	east.shape = func(c *Config) { c.Live = func() eventlog.Live { return eventlog.Live{Open: 7} } }
	east.d.start()
	b := west.pay("b", 100)
	start := time.Now()
	rows := east.pay("a", 6000)
	if took := time.Since(start); took > 5*time.Second {
		t.Errorf("appending took %v while the region was cut off", took)
	}
	east.has(b) // the other direction goes on
	future := time.Now().UnixMilli()
	if n, err := east.journal.Trim(context.Background(), future, future, 100_000); err != nil || n != 100 {
		// the 100 are west's: their origin keeps them
		t.Fatalf("trimmed %d, %v", n, err)
	}
	eventually(t, "the backlog is known", func() string {
		if st := east.service.Status(); st.Unpublished != 12_000 || st.Open != 7 {
			return fmt.Sprintf("%d unpublished, %d open", st.Unpublished, st.Open)
		}
		return ""
	})
	eventually(t, "west hears of it though Kafka is down", func() string {
		if st := west.originOf(east); st.Open != 7 || st.Unpublished != 12_000 {
			return fmt.Sprintf("open %d, unpublished %d", st.Open, st.Unpublished)
		}
		return ""
	})
	p.start()
	west.has(rows)
	west.quietly()
	eventually(t, "everything may be trimmed", func() string {
		if n, err := east.journal.Trim(context.Background(), future, 0, 100_000); err != nil || n < 6000 {
			if st := east.service.Status(); st.Unacknowledged[west.name] != 0 || err != nil {
				return fmt.Sprintf("trimmed %d, %v", n, err)
			}
		}
		return ""
	})
}

func TestPullersAreKilledAndDoubled(t *testing.T) {
	onEach(t, func(t *testing.T, d *deployment) {
		east, west := d.region("east"), d.region("west")
		d.start()
		other := west.open()
		var rows int
		for i := range 8 {
			a := east.pay(fmt.Sprint(i), 50)
			rows += len(a)
			defer west.has(a)
			switch i % 4 {
			case 1: // a second process does the same work, on a journal handle of its own
				stop := west.run(west.make(other))
				defer stop()
			case 2:
				west.stop()
			case 3:
				west.start()
			}
			time.Sleep(20 * time.Millisecond)
		}
		west.quietly()
	})
}

// TestOneProcessPublishesWhatAnotherAppends: of two coordinators that share a journal each has half of the partitions.
func TestOneProcessPublishesWhatAnotherAppends(t *testing.T) {
	onEach(t, func(t *testing.T, d *deployment) {
		east, west := d.region("east"), d.region("west")
		var mu sync.Mutex
		turn, none := 0, false
		half := func(k int) func(*Config) {
			return func(c *Config) {
				c.Shared = true
				c.Mine = func(p int) bool { mu.Lock(); defer mu.Unlock(); return !none && (p+turn)%2 == k }
			}
		}
		east.shape = half(0)
		d.start()
		second := *east
		second.shape = half(1)
		stop := east.run(second.make(east.open()))
		defer stop()
		west.has(east.pay("a", 100)) // all appended by the first
		mu.Lock()
		turn = 1
		mu.Unlock()
		west.has(east.pay("b", 100))
		west.quietly()
		if len(east.service.pub.Heads()) == 0 {
			t.Fatal("the first has published nothing: the test shows nothing")
		}
		mu.Lock()
		none = true // by now others publish all partitions
		mu.Unlock()
		s := east.service
		s.mu.Lock()
		clear(s.acks[west.index]) // as if west had not answered since
		s.mu.Unlock()
		if st := s.Status(); st.Unacknowledged[west.name] != 0 {
			t.Errorf("%d events of partitions that another publishes", st.Unacknowledged[west.name])
		}
	})
}
