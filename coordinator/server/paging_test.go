package server

import (
	"context"
	"encoding/json"
	"fmt"
	"net/url"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/lockstep-tx/lockstep/coordinator/api/admin"
	"github.com/lockstep-tx/lockstep/coordinator/engine"
	"github.com/lockstep-tx/lockstep/coordinator/txn"
	"github.com/lockstep-tx/lockstep/region/journal"
	"github.com/lockstep-tx/lockstep/region/journal/sample"
)

// pageGrowthMax bounds what the heap may grow by from the first page to the last.
const pageGrowthMax = 32 << 20

// TestEveryFinishedTransactionIsOnOnePage pages through all finished transactions (pagedRows: a million with the build tag
// servers) by the admin API's cursor, while more of them end: each that was there at the first page is seen exactly once,
// none twice, and the process needs no more memory for the last page than for the first.
func TestEveryFinishedTransactionIsOnOnePage(t *testing.T) {
	dir := t.TempDir()
	begin := time.Now()
	var m sample.Maker
	rows := func(prefix string, from, n int) []engine.Row {
		out := make([]engine.Row, n)
		for i := range out {
			at := begin.Add(-time.Hour + time.Duration(from+i)*time.Millisecond/1000)
			out[i] = m.Row(sample.Payment{Gid: txn.Gid(fmt.Sprintf("%s%07d", prefix, from+i)), BegunAt: at.UnixMilli(), Abort: i%50 == 0})
		}
		return out
	}
	fill(t, "sqlite:"+filepath.Join(dir, "journal.db"), rows)
	p := serve(t, "--data-dir", dir, "--log-level=info")
	t.Logf("%d rows were written and read at the start in %v", pagedRows, time.Since(begin).Round(time.Second))

	c := web(t, nil)
	seen, more := make([]bool, pagedRows), map[string]bool{}
	var first uint64
	size := min(10_000, pagedRows/20)
	pages, cursor := 0, ""
	for begin = time.Now(); ; pages++ {
		code, _, body := ask(t, c, "GET", fmt.Sprintf("http://%s/v1/transactions?limit=%d&cursor=%s", p.addr.Admin, size, url.QueryEscape(cursor)), "", "")
		var page admin.List
		if err := json.Unmarshal([]byte(body), &page); code != 200 || err != nil || len(page.Transactions) > size {
			t.Fatalf("page %d: %d with %d rows, %v: %.200s", pages, code, len(page.Transactions), err, body)
		}
		for i := range page.Transactions {
			gid := page.Transactions[i].Gid
			if rest, late := strings.CutPrefix(gid, "late"); late {
				if more[gid] {
					t.Fatalf("page %d: %s for the second time", pages, rest)
				}
				more[gid] = true
				continue
			}
			n, err := strconv.Atoi(strings.TrimPrefix(gid, "paged"))
			if err != nil || n >= pagedRows || seen[n] {
				t.Fatalf("page %d: %q is unknown or there for the second time", pages, gid)
			}
			seen[n] = true
		}
		if cursor = page.NextCursor; cursor == "" {
			break
		}
		if pages%10 == 0 {
			if err := p.journal.Append(context.Background(), rows("late", pages*10, 10)); err != nil {
				t.Fatal(err)
			}
			runtime.GC()
			var ms runtime.MemStats
			runtime.ReadMemStats(&ms)
			if first == 0 {
				first = ms.HeapAlloc
			} else if ms.HeapAlloc > first+pageGrowthMax {
				t.Fatalf("page %d: the heap grew from %d to %d bytes", pages, first, ms.HeapAlloc)
			}
		}
	}
	for n, ok := range seen {
		if !ok {
			t.Fatalf("%d of %d was on no page", n, pagedRows)
		}
	}
	t.Logf("%d pages in %v", pages+1, time.Since(begin).Round(time.Millisecond))
}

// fill writes the rows, made by one goroutine while another writes.
func fill(t *testing.T, url string, rows func(prefix string, from, n int) []engine.Row) {
	t.Helper()
	j, err := journal.Open(context.Background(), url)
	if err != nil {
		t.Fatal(err)
	}
	defer j.Close()
	const batch = 1000
	made := make(chan []engine.Row, 2)
	go func() {
		defer close(made)
		for from := 0; from < pagedRows; from += batch {
			made <- rows("paged", from, min(batch, pagedRows-from))
		}
	}()
	for b := range made {
		if err == nil {
			err = j.Append(context.Background(), b)
		}
	}
	if err != nil {
		t.Fatal(err)
	}
}
