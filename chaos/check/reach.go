package check

import (
	"context"
	"database/sql"
)

// Reach is how far a journal had another region's events of one slot, at one look while the run went on.
type Reach struct {
	Region string `json:"region"` // whose journal
	At     int64  `json:"at"`
	Origin int64  `json:"origin"`
	Slot   int    `json:"slot"`
	Mark   int64  `json:"mark"` // the watermark: events up to it are said to be there
	// Low, High and Count are of the events that were there.
	Low   int64 `json:"low"`
	High  int64 `json:"high"`
	Count int64 `json:"count"`
}

// same says that nothing has moved since an earlier look.
func (r Reach) same(o Reach) bool {
	return r.Mark == o.Mark && r.Low == o.Low && r.High == o.High && r.Count == o.Count
}

// Moved are those of the reaches that differ from what was seen of their chain before; seen takes note of them.
func Moved(seen map[[2]int64]Reach, now []Reach) (out []Reach) {
	for _, r := range now {
		key := [2]int64{r.Origin, int64(r.Slot)}
		if old, ok := seen[key]; !ok || !r.same(old) {
			seen[key] = r
			out = append(out, r)
		}
	}
	return out
}

// reaches joins watermarks, which there are of other regions alone, with the events that are there, in one read.
const reaches = `SELECT w.origin, w.slot, w.seq, coalesce(min(e.seq), 0), coalesce(max(e.seq), 0), count(e.seq)
	FROM lockstep_watermark w LEFT JOIN (
		SELECT decision_epoch % 100 AS origin, slot, decision_seq AS seq FROM lockstep_journal
		UNION ALL SELECT finish_epoch % 100, slot, finish_seq FROM lockstep_journal WHERE finish_seq IS NOT NULL
		UNION ALL SELECT origin, slot, seq FROM lockstep_event
	) e ON e.origin = w.origin AND e.slot = w.slot GROUP BY w.origin, w.slot, w.seq`

// ReadReaches looks how far a region's journal is with the others' events.
func ReadReaches(ctx context.Context, region, address string, now func() int64) (out []Reach, err error) {
	err = reading(ctx, address, func(tx *sql.Tx, _ string) error {
		out, err = all(tx, reaches, func(r *sql.Rows, one *Reach) error {
			one.Region = region
			return r.Scan(&one.Origin, &one.Slot, &one.Mark, &one.Low, &one.High, &one.Count)
		})
		return err
	})
	at := now()
	for i := range out {
		out[i].At = at
	}
	return out, err
}
