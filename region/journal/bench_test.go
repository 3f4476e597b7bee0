package journal

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/lockstep-tx/lockstep/coordinator/engine"
	"github.com/lockstep-tx/lockstep/coordinator/txn"
	"github.com/lockstep-tx/lockstep/region/journal/sample"
	"github.com/lockstep-tx/lockstep/region/slot"
)

// cpu is what this process has used of it; a server's part is not in it.
func cpu(b *testing.B) time.Duration {
	var r syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &r); err != nil {
		b.Fatal(err)
	}
	return time.Duration(r.Utime.Nano() + r.Stime.Nano())
}

// BenchmarkAppend writes batches of 1,000 rows; ns/op is per row.
func BenchmarkAppend(b *testing.B) {
	const batch = 1000
	for name, fresh := range databases {
		for _, kind := range []string{"newGid", "randomGid", "decisionThenFinish"} {
			b.Run(name+"/"+kind, func(b *testing.B) {
				j := open(b, fresh(b))
				var m sample.Maker
				rows := make([]engine.Row, b.N)
				for i := range rows {
					gid := slot.NewGid(time.UnixMilli(begin+int64(i/10)), nil)
					if kind == "randomGid" {
						gid = fmt.Sprintf("%016x%06x", rand.Uint64(), i&0xffffff)
					}
					rows[i] = m.Row(sample.Payment{Gid: txn.Gid(gid), BegunAt: begin + int64(i/10)})
				}
				var decisions []engine.Row
				if kind == "decisionThenFinish" {
					for _, row := range rows {
						decisions = append(decisions, sample.Decision(row))
					}
				}
				b.ResetTimer()
				start := cpu(b)
				n := 0
				for part := range slices.Chunk(rows, batch) {
					if decisions != nil {
						mustAppend(b, j, decisions[n:n+len(part)]...)
					}
					mustAppend(b, j, part...)
					n += len(part)
				}
				b.ReportMetric(float64((cpu(b)-start).Microseconds())/float64(b.N), "cpu-us/row")
				b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "rows/s")
				b.ReportMetric(float64(len(rows[0].Closed)+len(rows[0].Progress)), "body-bytes")
			})
		}
	}
}

// BenchmarkReads asks a journal of 300,000 rows.
func BenchmarkReads(b *testing.B) {
	const total = 300_000
	ctx := context.Background()
	for name, fresh := range databases {
		b.Run(name, func(b *testing.B) {
			j := open(b, fresh(b))
			rows := payments("b", total)
			for part := range slices.Chunk(rows, 1000) {
				mustAppend(b, j, part...)
			}
			b.Run("Get", func(b *testing.B) {
				for range b.N {
					if tx, err := j.Get(ctx, rows[rand.IntN(total)].Gid); tx == nil || err != nil {
						b.Fatal(err)
					}
				}
			})
			b.Run("Gids", func(b *testing.B) {
				for range b.N {
					if n := count(b, j); n != total {
						b.Fatal(n)
					}
				}
				b.ReportMetric(float64(b.Elapsed().Microseconds())/float64(b.N)*1e6/total/1e3, "ms/million")
			})
			for _, tc := range []struct {
				name   string
				f      engine.Filter
				cursor string
				since  int64
			}{
				{"ListNewest", engine.Filter{Slot: -1}, "", 0},
				{"ListDeep", engine.Filter{Slot: -1}, "1000", 0},
				{"ListAborted", engine.Filter{Slot: -1, Phases: []txn.Phase{txn.PhaseAborted}}, "", 0},
				{"ListPrefixOfOne", engine.Filter{Slot: -1, GidPrefix: "b00012"}, "", 0},
				{"ListFewVisible", engine.Filter{Slot: -1}, "", begin + total - 10},
				{"ListNoneOfTheMode", engine.Filter{Slot: -1, Mode: txn.ModeXA}, "", 0},
				{"ListNoneOfTheModeVisible", engine.Filter{Slot: -1, Mode: txn.ModeXA}, "", begin + total/2},
			} {
				b.Run(tc.name, func(b *testing.B) {
					for range b.N {
						if _, _, err := j.List(ctx, tc.f, tc.cursor, 50, tc.since); err != nil {
							b.Fatal(err)
						}
					}
				})
			}
			b.Run("TrimNothing", func(b *testing.B) {
				for range b.N {
					if n, err := j.Trim(ctx, begin, begin, 1000); n != 0 || err != nil {
						b.Fatal(n, err)
					}
				}
			})
			b.Run("TrimBodies1000", func(b *testing.B) {
				for i := range b.N {
					if _, err := j.Trim(ctx, begin+20+int64(i+1)*1000, begin, 1000); err != nil {
						b.Fatal(err)
					}
				}
			})
			b.Run("TrimNothingMore", func(b *testing.B) {
				for range b.N {
					if n, err := j.Trim(ctx, begin+20+1000, begin, 1000); n != 0 || err != nil {
						b.Fatal(n, err)
					}
				}
			})
		})
	}
}
