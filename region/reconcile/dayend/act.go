package dayend

import (
	"context"
	"database/sql"
	"errors"
	"fmt"

	"github.com/lockstep-tx/lockstep/participants/sqldb"
	"github.com/lockstep-tx/lockstep/region/reconcile/channelfile"
)

const machine = "lockstep recon"

// act does what is due of a channel, of whatever day. What fails stays due; one failure does not hold up the others.
func (b *Book) act(ctx context.Context, ours Ours, channel string, kind channelfile.Kind, o Options) error {
	due, err := b.findings(ctx, "channel = ? AND kind = ? AND status = 'due' ORDER BY id", channel, string(kind))
	if err != nil || len(due) == 0 {
		return err
	}
	unread, err := b.badLines(ctx, channel, kind)
	if err != nil {
		return err
	}
	var failed []error
	for i := range due {
		f := &due[i]
		if ctx.Err() != nil {
			return errors.Join(append(failed, ctx.Err())...)
		}
		if o.acted != nil {
			if err := o.acted(); err != nil {
				return err
			}
		}
		switch {
		case f.Class == LostAnswer:
			err = b.recover(ctx, ours, f)
		case f.Class == Long && unread > 0:
			err = nil // it may be the line that cannot be read; Held says so
		case f.Class == Long:
			err = b.reverse(ctx, ours, f)
		}
		if err != nil {
			failed = append(failed, fmt.Errorf("%s %s: %w", f.Class, f.ID, err))
		}
	}
	return errors.Join(failed...)
}

// GoOn does what is due of a channel's kind, of every day that was compared. What fails stays due.
func (b *Book) GoOn(ctx context.Context, m *channelfile.Mapping, ours Ours) error {
	return b.act(ctx, ours, m.Channel, m.Kind, Options{})
}

// Standing counts the findings of a channel's kind that are not ended, of every day, by class, and how many of them are due:
// done without a person.
func (b *Book) Standing(ctx context.Context, channel string, kind channelfile.Kind) (standing map[Class]int, due int, err error) {
	rows, err := b.DB.QueryContext(ctx, b.Dialect.Q("SELECT class, status, count(*) FROM recon_finding WHERE channel = ? AND kind = ? AND status <> 'ended' GROUP BY class, status"), channel, string(kind))
	if err != nil {
		return nil, 0, err
	}
	defer rows.Close()
	standing = map[Class]int{}
	for rows.Next() {
		var class Class
		var status Status
		var n int
		if err := rows.Scan(&class, &status, &n); err != nil {
			return nil, 0, err
		}
		standing[class] += n
		if status == StatusDue {
			due += n
		}
	}
	return standing, due, rows.Err()
}

// badLines is how many lines of a channel nobody has read yet.
func (b *Book) badLines(ctx context.Context, channel string, kind channelfile.Kind) (n int, err error) {
	err = b.DB.QueryRowContext(ctx, b.Dialect.Q("SELECT count(*) FROM recon_finding WHERE channel = ? AND kind = ? AND class = ? AND status = 'open'"), channel, string(kind), string(BadLine)).Scan(&n)
	return n, err
}

// Held says why what is long is not reversed, "" if nothing is in the way.
func (b *Book) Held(ctx context.Context, channel string, kind channelfile.Kind) (string, error) {
	n, err := b.badLines(ctx, channel, kind)
	if err != nil || n == 0 {
		return "", err
	}
	return fmt.Sprintf("%d bad lines of %s %s are open: any of them may be what is missed, so nothing is reversed until a person has ended them", n, channel, kind), nil
}

// recover asks what became of a payment whose answer was lost. A payment that is paid now is one of a later day: its line
// goes ahead into the pool, so that it is not missed there.
func (b *Book) recover(ctx context.Context, ours Ours, f *Finding) error {
	k, err := ours.Ask(ctx, f.Key)
	if err != nil {
		return err
	}
	switch {
	case k.State == channelfile.Open:
		return nil // it stays due
	case k.State == channelfile.Failed:
		return b.moved(ctx, f, StatusOpen, machine, "it was refused here, the channel has it as paid: book the order anew, or have the channel give it back", nil)
	case k.Amount != f.Theirs.Amount || k.Currency != f.Theirs.Currency:
		return b.moved(ctx, f, StatusOpen, machine, fmt.Sprintf("it is paid, with %d %s; theirs is %d %s", k.Amount, k.Currency, f.Theirs.Amount, f.Theirs.Currency), b.ahead(ctx, f))
	}
	return b.moved(ctx, f, StatusEnded, machine, "recovered: it is paid", b.ahead(ctx, f))
}

// ahead puts a finding's line into the pool as one whose other side comes with a later day's rows.
func (b *Book) ahead(ctx context.Context, f *Finding) func(*sql.Tx) error {
	return func(tx *sql.Tx) error {
		return b.suspend(ctx, tx, f.of(), &pooled{Row: *f.Theirs, id: idOf("ahead", f.ID), side: "theirs", ahead: true})
	}
}

// ReversalPrefix begins the id of every reversal of ours.
const ReversalPrefix = "recon-"

// ReversalID is the id under which a finding is reversed: the same finding is reversed under the same id for ever.
func ReversalID(f *Finding) string { return ReversalPrefix + f.ID }

// reverse undoes what is long. The reversal is written down before it is made, so that nothing is undone that is not recorded.
func (b *Book) reverse(ctx context.Context, ours Ours, f *Finding) error {
	id := ReversalID(f)
	err := sqldb.InTx(ctx, b.DB, func(tx *sql.Tx) error {
		// A person who settles the case at this moment is either before this, or finds it changed.
		ok, err := b.Dialect.Change(ctx, tx, "UPDATE recon_finding SET attempts = attempts + 1 WHERE id = ? AND status = 'due' AND attempts = ?", f.ID, f.Attempts)
		if err == nil && !ok {
			err = &Conflict{"case", f.ID + " was changed by somebody else meanwhile"}
		}
		if err != nil {
			return err
		}
		fresh, err := b.inserted(ctx, tx, "INTO recon_reversal (id, finding, state, begun_ms) VALUES (?, ?, 'begun', ?)", id, f.ID, b.Now().UnixMilli())
		if err != nil || !fresh {
			return err
		}
		return b.audit(ctx, tx, machine, "reversal begun", fmt.Sprintf("%s %s: %s", f.of(), id, f.Key))
	})
	if err != nil {
		return err
	}
	f.Attempts++
	outcome, done, err := ours.Reverse(ctx, id, f.Key)
	var no *Conflict
	switch {
	case errors.As(err, &no):
		return b.moved(ctx, f, StatusOpen, machine, "it was not reversed: "+no.Error(), b.reversed(ctx, id, notReversed+no.Error()))
	case err != nil || !done:
		return err
	}
	return b.moved(ctx, f, StatusEnded, machine, outcome, b.reversed(ctx, id, outcome))
}

// notReversed begins what a reversal came to that was refused.
const notReversed = "not reversed: "

func (b *Book) reversed(ctx context.Context, id, outcome string) func(*sql.Tx) error {
	return func(tx *sql.Tx) error {
		_, err := tx.ExecContext(ctx, b.Dialect.Q("UPDATE recon_reversal SET state = 'done', outcome = ?, done_ms = ? WHERE id = ?"), clip(outcome, 1000), b.Now().UnixMilli(), id)
		return err
	}
}

// Bookable is nil for a case that Book ends, and a *Conflict that says why for any other.
func Bookable(f *Finding) error {
	if f.Class != Short && f.Class != StateDiffers && f.Class != LostAnswer || f.Theirs == nil {
		return &Conflict{"case", fmt.Sprintf("%s is %s: what is booked is what the channel has and we lack; settle it instead", f.ID, f.Class)}
	}
	return nil
}

// MayBook reads a case that a person is about to Book; a *Conflict says why it may not be.
func (b *Book) MayBook(ctx context.Context, id, who, reason string) (*Finding, error) {
	f, err := b.person(ctx, id, who, reason)
	if err == nil {
		err = Bookable(f)
	}
	if err != nil {
		return nil, err
	}
	return f, nil
}

// Book ends a short case: the order that we lack is made, by whom and why stands in the audit. It is one of a later day then,
// so that its line goes ahead into the pool.
func (b *Book) Book(ctx context.Context, ours Ours, id string, how Missing) (*Finding, error) {
	f, err := b.MayBook(ctx, id, how.Who, how.Reason)
	if err != nil {
		return nil, err
	}
	outcome, done, err := ours.Book(ctx, f, how)
	if err != nil {
		return f, errors.Join(err, b.moved(ctx, f, StatusOpen, how.Who, "it was not booked: "+err.Error(), nil))
	}
	if !done {
		return f, b.moved(ctx, f, StatusOpen, how.Who, outcome, nil)
	}
	return f, b.moved(ctx, f, StatusEnded, how.Who, outcome+": "+how.Reason, b.ahead(ctx, f))
}

// Settle ends a case without moving money: a person has seen to it elsewhere, and says how.
func (b *Book) Settle(ctx context.Context, id, who, reason string) (*Finding, error) {
	f, err := b.MaySettle(ctx, id, who, reason)
	if err != nil {
		return nil, err
	}
	return f, b.moved(ctx, f, StatusEnded, who, "settled: "+reason, nil)
}

// MaySettle reads a case that a person is about to Settle; a *Conflict says why it may not be.
func (b *Book) MaySettle(ctx context.Context, id, who, reason string) (*Finding, error) {
	f, err := b.person(ctx, id, who, reason)
	if err != nil {
		return nil, err
	}
	var begun int
	if err := b.DB.QueryRowContext(ctx, b.Dialect.Q("SELECT count(*) FROM recon_reversal WHERE finding = ? AND state = 'begun'"), id).Scan(&begun); err != nil {
		return nil, err
	}
	if begun > 0 {
		return nil, &Conflict{"case", id + ": its reversal was begun and may have been made; run the day again first, which finishes it"}
	}
	return f, nil
}

// person reads a case that a person is about to end.
func (b *Book) person(ctx context.Context, id, who, reason string) (*Finding, error) {
	if who == "" {
		return nil, &Conflict{"who", "it is empty: who does it belongs there"}
	}
	if reason == "" {
		return nil, &Conflict{"reason", "it is empty: why, for whoever reads the audit, belongs there"}
	}
	f, err := b.Finding(ctx, id)
	if err != nil {
		return nil, err
	}
	if f.Status == StatusEnded {
		return nil, &Conflict{"case", fmt.Sprintf("%s is ended: %s", id, f.Outcome)}
	}
	return f, nil
}

// Reversal is a reversal that was made, or begun.
type Reversal struct {
	ID, Finding, State, Outcome string
	BegunMS, DoneMS             int64
}

// Reversals are all of them, oldest first.
func (b *Book) Reversals(ctx context.Context) ([]Reversal, error) {
	rows, err := b.DB.QueryContext(ctx, "SELECT id, finding, state, outcome, begun_ms, done_ms FROM recon_reversal ORDER BY begun_ms, id")
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var out []Reversal
	for rows.Next() {
		var r Reversal
		if err := rows.Scan(&r.ID, &r.Finding, &r.State, &r.Outcome, &r.BegunMS, &r.DoneMS); err != nil {
			return nil, err
		}
		out = append(out, r)
	}
	return out, rows.Err()
}
