package replica

import (
	"context"
	"crypto/rand"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/lockstep-tx/lockstep/coordinator/engine"
	"github.com/lockstep-tx/lockstep/coordinator/txn"
	"github.com/lockstep-tx/lockstep/region/eventlog"
	"github.com/lockstep-tx/lockstep/region/journal"
	"github.com/lockstep-tx/lockstep/region/journal/sample"
	"github.com/lockstep-tx/lockstep/region/slot"
)

const begin = int64(1_760_000_000_000)

// suite runs a case on every broker and journal that is there; with the tag servers there are more.
var (
	brokersOf  = map[string]func(t testing.TB) []string{"kfake": embedded}
	databaseOf = map[string]func(t testing.TB) string{
		"sqlite": func(t testing.TB) string { return "sqlite:" + filepath.Join(t.TempDir(), "journal.db") },
	}
)

func onEach(t *testing.T, run func(t *testing.T, d *deployment)) {
	for broker, brokers := range brokersOf {
		for database, url := range databaseOf {
			t.Run(broker+"/"+database, func(t *testing.T) {
				t.Parallel()
				run(t, &deployment{t: t, brokers: brokers, url: url, suffix: strings.ToLower(rand.Text()[:8])})
			})
		}
	}
}

// embedded starts a broker in this process.
func embedded(t testing.TB) []string {
	ready := make(chan string, 1)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	dir := t.TempDir()
	go func() {
		done <- eventlog.RunBroker(ctx, eventlog.BrokerConfig{Addr: "127.0.0.1:0", Dir: dir, Ready: func(a string) { ready <- a }})
	}()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	select {
	case addr := <-ready:
		return []string{addr}
	case <-time.After(10 * time.Second):
		t.Fatal("the broker does not come up")
		return nil
	}
}

// deployment is some regions that replicate with each other.
type deployment struct {
	t       testing.TB
	brokers func(t testing.TB) []string
	url     func(t testing.TB) string
	suffix  string
	regions []*area
	seals   sealTable
}

// area is one region of a test.
type area struct {
	d       *deployment
	name    string
	index   int
	url     string
	journal *journal.Journal
	brokers []string
	server  *httptest.Server
	mux     *http.ServeMux
	maker   *sample.Maker
	service *Service
	stop    func()
	logs    *lines
	shape   func(*Config)
}

// lines keeps what a service logged.
type lines struct {
	mu   sync.Mutex
	text strings.Builder
}

func (l *lines) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(b)
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

// sealTable is the arbiter's.
type sealTable struct {
	mu    sync.Mutex
	seals map[int][]slot.Seal
}

func (s *sealTable) add(n int, seal slot.Seal) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.seals == nil {
		s.seals = map[int][]slot.Seal{}
	}
	s.seals[n] = append(s.seals[n], seal)
}

func (s *sealTable) of(_ context.Context, n int) ([]slot.Seal, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]slot.Seal{}, s.seals[n]...), nil
}

// region adds a region, not running yet.
func (d *deployment) region(name string) *area {
	a := &area{d: d, name: name + "-" + d.suffix, index: len(d.regions) + 1, url: d.url(d.t), brokers: d.brokers(d.t), mux: http.NewServeMux(), logs: &lines{}}
	a.maker = &sample.Maker{Epoch: uint64(slot.Initial(a.index))}
	a.journal = a.open()
	a.server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { a.mux.ServeHTTP(w, r) }))
	d.t.Cleanup(a.server.Close)
	d.regions = append(d.regions, a)
	return a
}

func (a *area) open() *journal.Journal {
	j, err := journal.Open(context.Background(), a.url)
	if err != nil {
		a.d.t.Fatal(err)
	}
	a.d.t.Cleanup(func() { j.Close() })
	return j
}

// make gives a service of the region, on a journal of its own where j is nil.
func (a *area) make(j *journal.Journal) *Service {
	var peers []Peer
	for _, p := range a.d.regions {
		if p.index != a.index {
			peers = append(peers, Peer{Name: p.name, Index: p.index, Brokers: p.brokers, AdminURLs: []string{p.server.URL}})
		}
	}
	cfg := Config{
		Region: a.name, Index: a.index, Journal: j, Brokers: a.brokers, Peers: peers, Seals: a.d.seals.of, Partitions: 4,
		Log: slog.New(slog.NewTextHandler(a.logs, &slog.HandlerOptions{Level: slog.LevelInfo})),
	}
	if a.shape != nil {
		a.shape(&cfg)
	}
	s, err := New(cfg)
	if err != nil {
		a.d.t.Fatal(err)
	}
	return s
}

// run starts s and gives what stops it.
func (a *area) run(s *Service) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		select {
		case err := <-done:
			if err != nil {
				a.d.t.Error(err)
			}
		case <-time.After(15 * time.Second):
			a.d.t.Error("a service does not end")
		}
	})
	a.d.t.Cleanup(stop)
	return stop
}

// start runs the region's service.
func (a *area) start() {
	a.service = a.make(a.journal)
	a.mux = http.NewServeMux()
	a.service.Mount(a.mux)
	a.stop = a.run(a.service)
}

func (d *deployment) start() {
	for _, a := range d.regions {
		a.start()
	}
}

// pay appends finished payments to a region's journal and gives their rows.
func (a *area) pay(prefix string, n int) []engine.Row {
	rows := a.rows(prefix, n)
	a.append(rows...)
	return rows
}

func (a *area) rows(prefix string, n int) []engine.Row {
	rows := make([]engine.Row, n)
	for i := range rows {
		rows[i] = a.maker.Row(sample.Payment{Gid: txn.Gid(fmt.Sprintf("%s-%s-%05d", a.name, prefix, i)), BegunAt: begin + int64(i), Abort: i%5 == 0})
	}
	return rows
}

func (a *area) append(rows ...engine.Row) {
	a.d.t.Helper()
	if err := a.journal.Append(context.Background(), rows); err != nil {
		a.d.t.Fatal(err)
	}
}

// eventually waits until ok says nothing.
func eventually(t testing.TB, what string, ok func() string) {
	t.Helper()
	until := time.Now().Add(60 * time.Second)
	for {
		said := ok()
		if said == "" {
			return
		}
		if time.Now().After(until) {
			t.Fatalf("%s: %s", what, said)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// has waits until the region's journal has rows as they are.
func (a *area) has(rows []engine.Row) {
	a.d.t.Helper()
	defer func() {
		if a.d.t.Failed() {
			a.d.t.Logf("log of %s:\n%.8000s", a.name, a.logs)
		}
	}()
	eventually(a.d.t, "the journal of "+a.name, func() string {
		for i := range rows {
			if said := a.lacks(&rows[i]); said != "" {
				return fmt.Sprintf("row %d of %d: %s", i, len(rows), said)
			}
		}
		return ""
	})
}

func (a *area) lacks(r *engine.Row) string {
	tx, err := a.journal.Get(context.Background(), r.Gid)
	switch {
	case err != nil:
		return err.Error()
	case tx == nil:
		return string(r.Gid) + " is not there"
	case tx.Decision != r.Decision || tx.Finish != r.Finish:
		return fmt.Sprintf("%s has decision %d, finish %d, not %d, %d", r.Gid, tx.Decision.Seq, tx.Finish.Seq, r.Decision.Seq, r.Finish.Seq)
	case string(tx.Closed) != string(r.Closed) || string(tx.Progress) != string(r.Progress):
		return string(r.Gid) + " has other bodies"
	}
	return ""
}

func (a *area) originOf(o *area) OriginStatus {
	for _, s := range a.service.Status().Origins {
		if s.Index == o.index {
			return s
		}
	}
	a.d.t.Fatalf("%s knows nothing of %s", a.name, o.name)
	return OriginStatus{}
}

// stoppedAt waits until exactly one slot of an origin does not go on, and gives it.
func (a *area) stoppedAt(o *area) SlotStop {
	a.d.t.Helper()
	var out SlotStop
	eventually(a.d.t, "a slot of "+o.name+" stops in "+a.name, func() string {
		st := a.originOf(o)
		if len(st.Stopped) != 1 {
			return fmt.Sprintf("%d stopped: %v", len(st.Stopped), st.Stopped)
		}
		out = st.Stopped[0]
		return ""
	})
	return out
}

// quietly checks that replication has neither lag nor anything stopped.
func (a *area) quietly() {
	a.d.t.Helper()
	eventually(a.d.t, a.name+" comes to rest", func() string {
		for _, o := range a.service.Status().Origins {
			if o.LagEvents != 0 || len(o.Stopped) != 0 || o.HeardMillis < 0 || o.LagMillis != 0 {
				return fmt.Sprintf("%+v", o)
			}
		}
		return ""
	})
}

func TestWhatIsDecidedInOneRegionReachesTheOther(t *testing.T) {
	onEach(t, func(t *testing.T, d *deployment) {
		east, west := d.region("east"), d.region("west")
		before := east.pay("before", 100) // a journal that was there before its region replicated
		d.start()
		a, b := east.pay("a", 300), west.pay("b", 300)
		open := east.rows("c", 50)
		for _, r := range open {
			east.append(sample.Decision(r))
		}
		west.has(before)
		west.has(a)
		east.has(b)
		var decided []engine.Row
		for _, r := range open {
			decided = append(decided, sample.Decision(r))
		}
		west.has(decided)
		east.append(open...)
		west.has(open)
		east.quietly()
		west.quietly()
		eventually(t, "what west has is known in east", func() string {
			if st := east.service.Status(); st.Unpublished != 0 || st.Unacknowledged[west.name] != 0 {
				return fmt.Sprintf("%+v", st)
			}
			return ""
		})
	})
}

// counted sums a metric of a region's service.
func counted(t testing.TB, a *area, name string) float64 {
	t.Helper()
	reg := prometheus.NewRegistry()
	if err := reg.Register(a.service.m); err != nil {
		t.Fatal(err)
	}
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	sum := 0.0
	for _, f := range families {
		if f.GetName() == name {
			for _, m := range f.GetMetric() {
				sum += m.GetCounter().GetValue() + m.GetGauge().GetValue()
			}
		}
	}
	return sum
}

func BenchmarkReplication(b *testing.B) {
	d := &deployment{t: b, brokers: embedded, url: databaseOf["sqlite"], suffix: strings.ToLower(rand.Text()[:8])}
	east, west := d.region("east"), d.region("west")
	d.start()
	west.has(east.pay("warm", 10))
	rows := east.rows("bench", (b.N+1)/2)
	b.ResetTimer()
	for len(rows) > 0 {
		n := min(500, len(rows))
		east.append(rows[:n]...)
		if rows = rows[n:]; len(rows) == 0 {
			break
		}
	}
	eventually(b, "everything arrives", func() string {
		if got := counted(b, west, "lockstep_replication_applied_total"); got < float64(b.N) {
			return fmt.Sprintf("%v of %d", got, b.N)
		}
		return ""
	})
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "events/s")
}

// TestARegionKnowsWhatAnotherHasOfAThird: whoever takes a slot over removes what the region before has finished only when
// everybody has it.
func TestARegionKnowsWhatAnotherHasOfAThird(t *testing.T) {
	onEach(t, func(t *testing.T, d *deployment) {
		east, west, north := d.region("east"), d.region("west"), d.region("north")
		d.start()
		rows := east.pay("a", 20)
		west.has(rows)
		last := map[int]uint64{}
		for _, r := range rows {
			last[r.Slot] = max(last[r.Slot], r.Finish.Seq, r.Decision.Seq)
		}
		eventually(t, "north hears what west has of east", func() string {
			for n, seq := range last {
				if got := north.service.Has(west.index, east.index, n); got != seq {
					return fmt.Sprintf("slot %d: %d of %d", n, got, seq)
				}
			}
			return ""
		})
		if north.service.Has(9, east.index, 1) != 0 {
			t.Error("a region that is not there has something")
		}
	})
}
