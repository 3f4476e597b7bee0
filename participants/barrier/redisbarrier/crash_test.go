//go:build servers

package redisbarrier_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/url"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/lockstep-tx/lockstep/participants/barrier"
	"github.com/lockstep-tx/lockstep/participants/barrier/redisbarrier"
)

// Rule (G5): of many simultaneous repeats exactly one acts, and all succeed; of racing opposites never both act.
func TestConcurrentCalls(t *testing.T) {
	f := open(t, redisbarrier.Options{})
	for round := range 20 {
		gid := fmt.Sprintf("%sg%d", f.name, round)
		outcomes := make([]barrier.Outcome, 48)
		errs := make([]error, len(outcomes))
		var wg sync.WaitGroup
		ops := []string{"try", "confirm", "cancel"}
		for i := range outcomes {
			wg.Go(func() {
				op := ops[i%3]
				outcomes[i], errs[i] = f.b.Do(context.WithoutCancel(t.Context()), call("tcc", gid, op, 1), f.effect(gid+op))
			})
		}
		wg.Wait()
		n := map[string]int{}
		for i, o := range outcomes {
			if errs[i] != nil && !errors.Is(errs[i], barrier.ErrContradiction) && !errors.Is(errs[i], barrier.ErrRefused) {
				t.Fatal(errs[i])
			}
			if o == barrier.Done || o == barrier.Empty {
				n[ops[i%3]]++
			}
		}
		for _, op := range ops {
			if e := f.effects(t, gid+op); n[op] > 1 || e > n[op] {
				t.Errorf("%s %s: %d first, %d effects", gid, op, n[op], e)
			}
		}
		if n["confirm"]+n["cancel"] != 1 || f.effects(t, gid+"cancel") > f.effects(t, gid+"try") {
			t.Errorf("%s: %v", gid, n)
		}
	}
}

// proxy forwards connections to addr; once armed, it lets one request through and drops the connection instead of giving
// its answer.
func proxy(t *testing.T, addr string) (at string, armed *atomic.Bool) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	armed = new(atomic.Bool)
	go func() {
		for {
			in, err := l.Accept()
			if err != nil {
				return // closed
			}
			out, err := net.Dial("tcp", addr)
			if err != nil {
				in.Close()
				continue
			}
			go func() { _, _ = io.Copy(out, in); out.Close() }()
			go func() {
				defer in.Close()
				answer := make([]byte, 1<<16)
				for {
					n, err := out.Read(answer)
					if err != nil || armed.CompareAndSwap(true, false) {
						return
					}
					if _, err := in.Write(answer[:n]); err != nil {
						return
					}
				}
			}()
		}
	}()
	return l.Addr().String(), armed
}

// Rule (G5): where the answer is lost after the script has run, the call is unknown, and its repeat runs nothing.
func TestAnswerThatIsLost(t *testing.T) {
	f := open(t, redisbarrier.Options{})
	u, err := url.Parse(redisURL(t))
	if err != nil {
		t.Fatal(err)
	}
	var armed *atomic.Bool
	u.Host, armed = proxy(t, u.Host)
	c, err := redisbarrier.Open(t.Context(), u.String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	b, err := redisbarrier.New(c, redisbarrier.Options{Prefix: f.name})
	if err != nil {
		t.Fatal(err)
	}
	f.do(t, call("tcc", "warm", "try", 1), barrier.Done, nil, 1) // the script is known to the server
	for i, s := range []struct {
		transType, op string
		again         barrier.Outcome
		err           error
	}{{"tcc", "try", barrier.Repeated, nil}, {"tcc", "confirm", barrier.Repeated, nil}, {"msg", "msg", barrier.Unknown, barrier.ErrDuplicate}} {
		one := func() *barrier.Call { return call(s.transType, fmt.Sprint(f.name, s.op), s.op, 1) }
		effect := fmt.Sprint("lost", i)
		armed.Store(true)
		if got, err := b.Do(t.Context(), one(), f.effect(effect)); err == nil || errors.Is(err, barrier.ErrDuplicate) || errors.Is(err, barrier.ErrRefused) {
			t.Errorf("%s whose answer is lost: %s, %v", s.op, got, err)
		}
		if got, err := b.Do(t.Context(), one(), f.effect(effect)); got != s.again || !errors.Is(err, s.err) || f.effects(t, effect) != 1 {
			t.Errorf("%s again: %s, %v, %d effects", s.op, got, err, f.effects(t, effect))
		}
	}
}

const crashAs = "LOCKSTEP_REDIS_BARRIER_CRASH"

// TestMain turns the test binary into the participant that TestKilledClientActsOnce kills.
func TestMain(m *testing.M) {
	if as := os.Getenv(crashAs); as != "" {
		url, name, _ := strings.Cut(as, " ")
		c, err := redisbarrier.Open(context.Background(), url)
		if err != nil {
			fmt.Println(err)
			os.Exit(4)
		}
		f := fixture{name: name, client: c}
		f.b, _ = redisbarrier.New(c, redisbarrier.Options{Prefix: name})
		for i := range 100000 {
			if _, err := f.b.Do(context.Background(), call("tcc", fmt.Sprint(name, i), "try", 1), f.effect("try")); err != nil {
				fmt.Println(err)
				os.Exit(4)
			}
			fmt.Println(i)
		}
	}
	os.Exit(m.Run())
}

// Rule (G5): a client killed with SIGKILL amid its calls has done each or not; the repeats make each once, and what was
// answered is there.
func TestKilledClientActsOnce(t *testing.T) {
	for range 5 {
		f := open(t, redisbarrier.Options{})
		child := exec.Command(os.Args[0])
		child.Env = append(os.Environ(), crashAs+"="+redisURL(t)+" "+f.name)
		out, err := child.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := child.Start(); err != nil {
			t.Fatal(err)
		}
		answered := -1
		lines := bufio.NewScanner(out)
		for lines.Scan() {
			if answered, err = strconv.Atoi(lines.Text()); err != nil {
				t.Fatal(lines.Text())
			}
			if answered == 20+rand.IntN(20) || answered > 40 {
				_ = child.Process.Kill()
			}
		}
		_ = child.Wait()
		if answered < 20 {
			t.Fatalf("the child answered %d calls", answered)
		}
		for i := range answered + 3 {
			got, err := f.b.Do(t.Context(), call("tcc", fmt.Sprint(f.name, i), "try", 1), f.effect("try"))
			if err != nil || i <= answered && got != barrier.Repeated {
				t.Fatalf("call %d of %d answered: %s, %v", i, answered, got, err)
			}
		}
		if n := f.effects(t, "try"); n != answered+3 {
			t.Errorf("%d effects of %d calls", n, answered+3)
		}
	}
}

// The servers of make test keep what they answer, or say what is wrong.
func TestDurable(t *testing.T) {
	f := open(t, redisbarrier.Options{})
	if err := f.b.Durable(t.Context()); err != nil {
		t.Error(err)
	}
	loose, err := redisbarrier.Open(t.Context(), os.Getenv("LOCKSTEP_TEST_REDIS_URL"))
	if err != nil {
		t.Fatal(err)
	}
	defer loose.Close()
	b, err := redisbarrier.New(loose, redisbarrier.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if err := b.Durable(t.Context()); err == nil {
		t.Error("a Redis without its log passed as durable")
	}
}
