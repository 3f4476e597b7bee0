package journal

import (
	"context"
	"database/sql"
	"fmt"

	"github.com/lockstep-tx/lockstep/coordinator/record"
)

// AppendEvents is engine.Journal's.
func (j *Journal) AppendEvents(ctx context.Context, events []record.Event) error {
	err := j.retry(ctx, func(int) error {
		return j.inTx(ctx, func(tx *sql.Tx) error {
			for i := range events {
				if err := j.putEvent(ctx, tx, &events[i]); err != nil {
					return err
				}
			}
			return nil
		})
	})
	if err != nil {
		return fmt.Errorf("append %d events to the journal at %s: %w", len(events), j.where, err)
	}
	return nil
}

// putEvent stores a carry or a seal; one that is there already stays as it is.
func (j *Journal) putEvent(ctx context.Context, tx *sql.Tx, e *record.Event) error {
	if e.Kind != record.KindCarry && e.Kind != record.KindSeal {
		return fmt.Errorf("event %d of slot %d: a %s has its place in the transaction's row", e.Head.Seq, e.Slot, e.Kind)
	}
	_, err := tx.ExecContext(ctx, j.d.bind(`INSERT INTO lockstep_event (origin, slot, seq, kind, epoch, chain, gid, body)
		SELECT ?, ?, ?, ?, ?, ?, ?, ? FROM (SELECT 1) one WHERE NOT EXISTS (SELECT 1 FROM lockstep_event WHERE origin = ? AND slot = ? AND seq = ?)`),
		e.Origin(), e.Slot, int64(e.Head.Seq), int64(e.Kind), int64(e.Epoch), e.Head.Chain[:], []byte(e.Gid), nonNil(e.Body),
		e.Origin(), e.Slot, int64(e.Head.Seq))
	return err
}

func nonNil(b []byte) []byte {
	if b == nil {
		return []byte{}
	}
	return b
}

func (j *Journal) inTx(ctx context.Context, work func(*sql.Tx) error) error {
	tx, err := j.write.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer func() { _ = tx.Rollback() }() // after Commit it does nothing
	if err := work(tx); err != nil {
		return err
	}
	return tx.Commit()
}
