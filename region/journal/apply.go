package journal

import (
	"cmp"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/lockstep-tx/lockstep/coordinator/engine"
	"github.com/lockstep-tx/lockstep/coordinator/record"
	"github.com/lockstep-tx/lockstep/coordinator/txn"
	"github.com/lockstep-tx/lockstep/region/slot"
)

// ApplyConfig is what an Applier has to know.
type ApplyConfig struct {
	// Own is the index of the journal's region.
	Own int
	// Seals gives all seals of a slot that the arbiter has. It must see what was written before it was called. nil: there
	// are none.
	Seals func(ctx context.Context, n int) ([]slot.Seal, error)
}

// Applier writes other regions' events into the journal.
//
// The rules: an event is applied once, in the order of its chain, and only where it continues the chain. The first event of
// an epoch waits until this journal has reached the seal of every earlier epoch of the slot, whoever's it was; so a finish
// never comes before the decision of another origin that it finishes, and a finish without its decision is a
// contradiction. A forced seal bounds its epoch (ADR 9): what comes after it goes to the divergence record and holds nothing
// up; a chain that is past it here is cut before anything else is done with its slot; and of a frozen chain nothing of the
// epoch is judged before its seal is known. What contradicts otherwise stops the chain of (origin, slot), with the event kept as a divergence, and no other
// chain. Rows, watermarks and the offset of a batch are in one SQL transaction.
//
// Several processes may apply the same events at once: the watermarks' rows are locked. Safe for concurrent use.
type Applier struct {
	j   *Journal
	cfg ApplyConfig

	turns turns

	mu    sync.Mutex
	seals [slot.Count]sealsKnown
	// frozen are the chains, by origin and slot, that were found frozen up to an epoch; bound the seals that are kept already.
	frozen map[[2]int]uint64
	bound  map[boundTo]bool
}

// sealsKnown are the seals of a slot as they were read when an event of the epoch had been seen: all below it are there but
// a forced one, which may be written later.
type sealsKnown struct {
	epoch uint64
	seals []slot.Seal
	asked time.Time
}

// askAgain is how often the seals of a frozen slot are asked for.
const askAgain = 200 * time.Millisecond

// Applier makes one. From now on the Journal knows which chains are its own region's.
func (j *Journal) Applier(cfg ApplyConfig) *Applier {
	j.own.Store(int64(cfg.Own))
	return &Applier{j: j, cfg: cfg, frozen: map[[2]int]uint64{}, bound: map[boundTo]bool{}}
}

// Poison is a message that is no event, with the slot that its key named.
type Poison struct {
	Slot   int
	Seq    uint64
	Reason string
	Bytes  []byte
}

// Batch is what was read of one origin.
type Batch struct {
	Origin int
	// Events in any order, repeated or not.
	Events []record.Event
	Poison []Poison
	// Part and Offset: where to go on reading, written with the events; Offset below 0: it is not touched.
	Part   int
	Offset int64
}

// Gap says that events between Have and Next are missing; Next is there.
type Gap struct {
	Slot       int
	Have, Next uint64
}

// Stop is a chain that was stopped.
type Stop struct {
	Slot   int
	Seq    uint64
	Reason string
}

// Diverged is an event after a forced seal: it is in the divergence record, and will never be applied.
type Diverged struct {
	Slot  int
	Seq   uint64
	Epoch uint64
	Gid   txn.Gid
}

// Cut is a chain that was taken back to a forced seal, with the events that are in the divergence record now.
type Cut struct {
	Origin, Slot int
	Seal         slot.Seal
	Events       []record.Event
}

// Result is what became of a batch.
type Result struct {
	Applied, Duplicates int
	// Dropped events are of chains that are stopped.
	Dropped int
	Gaps    []Gap
	// Waiting: slots whose next event waits for the seal of another origin, for the seal of a frozen chain, or for the arbiter.
	Waiting []int
	// Unsure is why the arbiter was not heard, nil where it was.
	Unsure error
	// Stopped are the chains that this batch stopped.
	Stopped []Stop
	// Diverged are the batch's events after a forced seal, those included that had diverged before.
	Diverged []Diverged
	// Cuts are chains, also of other origins, that were past a forced seal here.
	Cuts []Cut
	// Again are events that came again with another chain than what is here while the chain is frozen: whether they are past
	// its seal is not known yet. The caller brings them again.
	Again []record.Event
	// Marks are the watermarks of the batch's slots as they are now.
	Marks []Mark
	// DecidedAt are the times (unix ms) of the decisions applied.
	DecidedAt []int64
}

// Apply writes a batch; calls at once share SQL transactions. On nil everything that Result says is durable; on an error
// nothing or all of it may be, and all may be repeated. What is in Gaps and Waiting was not kept: the caller brings it again.
func (a *Applier) Apply(ctx context.Context, b Batch) (Result, error) {
	w := &applying{a: a, b: &b}
	w.sort()
	unknown, unsure := a.learn(ctx, b.Origin, w.sorted)
	err := a.turns.take(ctx, w, unknown)
	if err != nil {
		return Result{}, fmt.Errorf("apply %d events of origin %d to the journal at %s: %w", len(b.Events), b.Origin, a.j.where, err)
	}
	a.note(w)
	w.res.Unsure = unsure
	return w.res, nil
}

// note remembers what a batch found of frozen chains and made of bounded ones.
func (a *Applier) note(w *applying) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, b := range w.bound {
		a.bound[b] = true
	}
	for n, m := range w.marks {
		if m.Frozen > 0 {
			a.frozen[[2]int{m.Origin, n}] = m.Frozen
		}
	}
}

// learn asks for the seals of slots with an epoch that is new, and of frozen ones whose seal is not known. The slots for
// which nobody answers wait.
func (a *Applier) learn(ctx context.Context, origin int, events map[int][]*record.Event) (unknown map[int]bool, unsure error) {
	unknown = map[int]bool{}
	if a.cfg.Seals == nil {
		return unknown, nil
	}
	for n, list := range events {
		if len(list) == 0 {
			continue
		}
		high, low := uint64(0), list[0].Epoch
		for _, e := range list {
			high, low = max(high, e.Epoch), min(low, e.Epoch)
		}
		if a.knows(origin, n, low, high) {
			continue
		}
		seals, err := a.cfg.Seals(ctx, n)
		if err != nil {
			unknown[n], unsure = true, err
			continue
		}
		a.mu.Lock()
		// Seals are never taken back: of two answers the longer is the later.
		if k := &a.seals[n]; k.epoch < high || len(k.seals) < len(seals) {
			k.epoch, k.seals = max(k.epoch, high), seals
		}
		a.seals[n].asked = time.Now()
		a.mu.Unlock()
	}
	return unknown, unsure
}

// knows says that nothing has to be asked for events of epochs from low to high.
func (a *Applier) knows(origin, n int, low, high uint64) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	k := &a.seals[n]
	if k.epoch < high {
		return false
	}
	frozen := a.frozen[[2]int{origin, n}]
	return low > frozen || sealKnown(k.seals, origin, frozen) || time.Since(k.asked) < askAgain
}

func (a *Applier) sealsOf(n int) []slot.Seal {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.seals[n].seals
}

// applying is one batch on its way.
type applying struct {
	a      *Applier
	b      *Batch
	slots  []int
	sorted map[int][]*record.Event // by slot, in order
	events map[int][]*record.Event // those of them that are not past a forced seal
	poison map[int]Poison

	unknown map[int]bool
	res     Result
	marks   map[int]*Mark
	others  map[int]map[int]uint64 // by slot and origin, where an epoch begins
	rows    map[txn.Gid]*known
	changed []*engine.Row // in the order of arrival
	moved   []record.Event
	parked  []Divergence
	bound   []boundTo
}

// known is a transaction's row as it is here, or as this batch makes it.
type known struct {
	row     engine.Row
	trimmed bool
	queued  bool
}

func (w *applying) sort() {
	w.sorted, w.poison = map[int][]*record.Event{}, map[int]Poison{}
	for i := range w.b.Events {
		e := &w.b.Events[i]
		w.sorted[e.Slot] = append(w.sorted[e.Slot], e)
	}
	for _, p := range w.b.Poison {
		if _, ok := w.poison[p.Slot]; !ok {
			w.poison[p.Slot] = p
		}
		if w.sorted[p.Slot] == nil {
			w.sorted[p.Slot] = []*record.Event{}
		}
	}
	for n, list := range w.sorted {
		w.slots = append(w.slots, n)
		slices.SortStableFunc(list, func(x, y *record.Event) int { return cmp.Compare(x.Head.Seq, y.Head.Seq) })
	}
	slices.Sort(w.slots)
}

func (w *applying) reset(unknown map[int]bool) {
	w.unknown = unknown
	w.res = Result{}
	w.marks, w.others, w.rows = map[int]*Mark{}, map[int]map[int]uint64{}, map[txn.Gid]*known{}
	w.changed, w.moved, w.parked, w.bound = nil, nil, nil, nil
	w.events = maps.Clone(w.sorted) // diverge takes some out
}

func (w *applying) run(ctx context.Context, tx *sql.Tx) error {
	var err error
	if w.marks, err = w.a.j.lockMarks(ctx, tx, w.b.Origin, w.slots); err != nil {
		return err
	}
	if err := w.bind(ctx, tx); err != nil {
		return err
	}
	for _, n := range w.slots {
		if err := w.diverge(ctx, tx, n); err != nil {
			return err
		}
	}
	if err := w.readRows(ctx, tx); err != nil {
		return err
	}
	for _, n := range w.slots {
		if err := w.chain(ctx, tx, n); err != nil {
			return err
		}
	}
	return w.write(ctx, tx)
}

// readRows reads what the journal has of the transactions that the batch names.
func (w *applying) readRows(ctx context.Context, tx *sql.Tx) error {
	var gids []any
	seen := map[txn.Gid]bool{}
	for n, list := range w.events {
		for _, e := range list {
			if e.Head.Seq > w.marks[n].Head.Seq && (e.Kind == record.KindDecision || e.Kind == record.KindFinish) && !seen[e.Gid] {
				seen[e.Gid] = true
				gids = append(gids, []byte(e.Gid))
			}
		}
	}
	most := 500
	if w.a.j.d.single {
		most = 32 // the driver finds n parameters in n² steps
	}
	for part := range slices.Chunk(gids, most) {
		rows, err := tx.QueryContext(ctx, w.a.j.d.bind(selectRow+"WHERE gid IN (?"+strings.Repeat(", ?", len(part)-1)+")"), part...)
		if err != nil {
			return err
		}
		for rows.Next() {
			var s stored
			if err := s.scan(rows.Scan); err != nil {
				return errors.Join(err, rows.Close())
			}
			w.rows[s.row.Gid] = &known{row: s.row, trimmed: s.body == 0}
		}
		if err := errors.Join(rows.Err(), rows.Close()); err != nil {
			return err
		}
	}
	return nil
}

// chain goes on with one slot as far as it can.
func (w *applying) chain(ctx context.Context, tx *sql.Tx, n int) error {
	m := w.marks[n]
	list := misordered(m, w.events[n])
	var behind []*record.Event
	for i, e := range list {
		if m.Stopped != "" {
			w.res.Dropped += len(list) - i
			break
		}
		if m.repeats(e) {
			w.res.Duplicates++
			behind = append(behind, e)
			continue
		}
		if e.Head.Seq > m.Head.Seq+1 && inOrder() {
			w.res.Gaps = append(w.res.Gaps, Gap{n, m.Head.Seq, e.Head.Seq})
			break
		}
		wait, reason, err := w.next(ctx, tx, m, e)
		if err != nil {
			return err
		}
		if wait {
			w.res.Waiting = append(w.res.Waiting, n)
			break
		}
		if reason != "" {
			w.stop(m, e.Head.Seq, reason, encoded(e))
			continue
		}
		m.Head, m.Epoch, m.sealed = e.Head, e.Epoch, e.Kind == record.KindSeal
		w.res.Applied++
	}
	if err := w.repeats(ctx, tx, m, behind); err != nil {
		return err
	}
	if p, ok := w.poison[n]; ok && m.Stopped == "" && (p.Seq == 0 || p.Seq > m.Head.Seq) {
		w.stop(m, p.Seq, p.Reason, p.Bytes)
	}
	return nil
}

// repeats compares events that are applied already with what is here.
func (w *applying) repeats(ctx context.Context, tx *sql.Tx, m *Mark, list []*record.Event) error {
	if len(list) == 0 || m.Stopped != "" {
		return nil
	}
	have := map[uint64]record.Chain{m.Head.Seq: m.Head.Chain}
	if first := list[0].Head.Seq; first < m.Head.Seq {
		at := []any{m.Slot, int64(first - 1), int64(list[len(list)-1].Head.Seq), m.Origin}
		rows, err := tx.QueryContext(ctx, w.a.j.d.bind(selectChains), append(append(append([]any{}, at...), at...), at...)...)
		if err != nil {
			return err
		}
		for rows.Next() {
			var seq int64
			var chain []byte
			if err := rows.Scan(&seq, &chain); err != nil {
				return errors.Join(err, rows.Close())
			}
			have[uint64(seq)] = record.Chain(chain)
		}
		if err := errors.Join(rows.Err(), rows.Close()); err != nil {
			return err
		}
	}
	for _, e := range list {
		// What Trim has deleted cannot be compared.
		if chain, ok := have[e.Head.Seq]; ok && chain != e.Head.Chain {
			if w.held(m, e) {
				w.res.Again = append(w.res.Again, *e)
				continue
			}
			w.stop(m, e.Head.Seq, fmt.Sprintf("event %d came again with another chain: the origin's history was replaced, or altered here", e.Head.Seq), encoded(e))
			return nil
		}
	}
	return nil
}

const selectChains = `SELECT decision_seq, decision_chain FROM lockstep_journal WHERE slot = ? AND decision_seq > ? AND decision_seq <= ? AND decision_epoch % 100 = ?
	UNION ALL SELECT finish_seq, finish_chain FROM lockstep_journal WHERE slot = ? AND finish_seq > ? AND finish_seq <= ? AND finish_epoch % 100 = ?
	UNION ALL SELECT seq, chain FROM lockstep_event WHERE slot = ? AND seq > ? AND seq <= ? AND origin = ?`

func (w *applying) stop(m *Mark, seq uint64, reason string, event []byte) {
	reason = bounded(reason)
	m.Stopped = reason
	w.parked = append(w.parked, Divergence{Origin: m.Origin, Slot: m.Slot, Seq: seq, At: time.Now().UnixMilli(), Reason: reason, Event: nonNil(event)})
	w.res.Stopped = append(w.res.Stopped, Stop{m.Slot, seq, reason})
}

// write takes everything to the database.
func (w *applying) write(ctx context.Context, tx *sql.Tx) error {
	j := w.a.j
	if rows := w.rowsNow(); len(rows) > 0 {
		if err := j.d.insertIn(ctx, j, tx, rows); err != nil {
			return err
		}
	}
	if err := j.putEvents(ctx, tx, w.moved); err != nil {
		return err
	}
	now := time.Now().UnixMilli()
	var marks [][]any
	for _, n := range w.slots {
		m := w.marks[n]
		w.res.Marks = append(w.res.Marks, *m)
		marks = append(marks, m.values(now))
	}
	if w.res.Applied > 0 || len(w.parked) > 0 {
		if err := j.put(ctx, tx, markTable, "origin, slot",
			"epoch = new(epoch), seq = new(seq), chain = new(chain), stopped = new(stopped), updated_at = new(updated_at)", marks); err != nil {
			return err
		}
	}
	if err := j.park(ctx, tx, w.parked); err != nil {
		return err
	}
	if w.b.Offset < 0 {
		return nil
	}
	return j.put(ctx, tx, "lockstep_offset (origin, part, next_offset)", "origin, part", "next_offset = new(next_offset)",
		[][]any{{w.b.Origin, w.b.Part, w.b.Offset}})
}
