package engine_test

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/lockstep-tx/lockstep/coordinator/engine"
	"github.com/lockstep-tx/lockstep/coordinator/record"
	"github.com/lockstep-tx/lockstep/coordinator/store/memstore"
	"github.com/lockstep-tx/lockstep/coordinator/txn"
	"github.com/lockstep-tx/lockstep/region/slot"
)

var (
	seeds    = flag.Int("seeds", seedsUsual, "how many seeds the simulation runs")
	oneSeed  = flag.Uint64("seed", 0, "run the simulation with this seed alone")
	simSteps = flag.Int("sim-steps", 1500, "steps of one simulation")
)

// rules that can be switched off, to see that each of them bites.
type rules struct {
	// resendDoubtful treats a lost answer as "nothing was written" and sends the next batch under the same term.
	resendDoubtful bool
	// unfenced lets every write through, whatever its term.
	unfenced bool
	// unsettled goes on with a slot whose last write is in doubt until its new term has come: two unanswered batches.
	unsettled bool
	// cancelAfterDoubt takes a decision whose write into the arbiter was not answered for not written, and lets an abort
	// pass by the arbiter.
	cancelAfterDoubt bool
}

// sim is two coordinators, one store that loses and delays, and participants with barriers, in one goroutine and from
// one seed. Either coordinator's clock may be wrong by ten minutes. It checks G1, G2, G3, G5, G8 and G10 for one region.
type sim struct {
	rng   *rand.Rand
	rules rules
	now   int64
	store *memstore.Store
	limbo []*engine.Batch // writes whose answer was lost and that may still land
	due   []claiming      // slots whose new term is on its way
	nodes [2]*node
	calls []flying // branch calls under way, also of processes that are dead
	parts map[string]*part
	txs   []*client
	rows  map[txn.Gid]engine.Row
	arb   simArbiter
	// fenced says that a call's participant has seen a newer epoch; nil: none has.
	fenced func(*engine.Call) bool
	err    error
}

type node struct {
	name  string
	core  *engine.Core
	known *engine.Known
	gen   int
	skew  int64 // how wrong its clock is, in milliseconds
}

// clockWrongMax is how wrong a coordinator's clock may be.
const clockWrongMax = 10 * 60_000

// at is the time that a node believes it is.
func (s *sim) at(n *node) int64 { return s.now + n.skew }

// claiming is a slot that a process is about to claim.
type claiming struct {
	n    *node
	gen  int
	slot int
}

// flying is a call on its way to a participant, or its answer on the way back.
type flying struct {
	n       *node
	gen     int
	call    *engine.Call
	done    bool // it was carried out; the answer is on the way
	outcome txn.Outcome
}

// part is one branch at its participant, with a barrier.
type part struct{ tried, confirmed, cancelled, tombstone int }

// client is what one client did and was told.
type client struct {
	gid        txn.Gid
	branches   int
	driven     bool
	global     bool // its decision is the arbiter's first
	registered int
	ended      bool
	acked      txn.Phase // decision that it was told, PhaseNone while it does not know
	asks       []*asked
}

type asked struct {
	c    *client
	kind string
	done func() (engine.Reply, error, bool)
}

func newSim(seed uint64, r rules) *sim {
	s := &sim{rng: rand.New(rand.NewPCG(seed, 7)), rules: r, now: 1_000_000, store: memstore.New(), parts: map[string]*part{}, rows: map[txn.Gid]engine.Row{}}
	for i := range s.nodes {
		s.nodes[i] = &node{name: fmt.Sprintf("n%d", i), skew: s.rng.Int64N(2*clockWrongMax+1) - clockWrongMax}
		s.boot(s.nodes[i])
	}
	for n := range simSlots {
		s.claim(s.nodes[n%2], n)
	}
	return s
}

// simSlots slots are in play.
const simSlots = 3

func gidOf(i int) txn.Gid {
	for k := 0; ; k++ {
		if g := fmt.Sprintf("{s%d}tx%d", k, i); slot.Of(g) == i%simSlots {
			return txn.Gid(g)
		}
	}
}

func (s *sim) boot(n *node) {
	n.gen++
	n.known = engine.NewKnownForTest(1000)
	n.core = engine.NewCore(fmt.Sprintf("%s.%d", n.name, n.gen), engine.Limits{}, n.known)
}

// claim is what a Runner does to take a slot: a new term, then what the store holds.
func (s *sim) claim(n *node, sl int) {
	n.core.Expect([]int{sl})
	claims, err := s.store.Claim(context.Background(), n.name, []int{sl}, nil)
	s.check(err)
	var txs []*record.Tx
	s.check(s.store.Load(context.Background(), sl, func(_ txn.Gid, v []byte) error {
		tx, err := record.Decode(v)
		if err == nil {
			txs = append(txs, tx)
		}
		return err
	}))
	n.core.Hold(s.at(n), claims[0], txs)
	s.drain(n)
}

func (s *sim) check(err error) {
	if err != nil && s.err == nil {
		s.err = err
	}
}

func (s *sim) fail(format string, args ...any) { s.check(fmt.Errorf(format, args...)) }

// drain takes what a core wants done.
func (s *sim) drain(n *node) {
	for {
		out := n.core.Drain()
		for _, c := range out.Calls {
			s.calls = append(s.calls, flying{n: n, gen: n.gen, call: c})
		}
		for _, row := range out.Rows {
			if old, ok := s.rows[row.Gid]; ok && old.Decision.Seq == row.Decision.Seq && old.Decision.Chain != row.Decision.Chain {
				s.fail("%s: decision %d was numbered twice with different content", row.Gid, row.Decision.Seq)
			}
			if old, ok := s.rows[row.Gid]; ok && old.Phase.Commit() != row.Phase.Commit() {
				s.fail("%s was decided %s and then %s (G1)", row.Gid, old.Phase, row.Phase)
			}
			if s.rows[row.Gid].Finish.Seq == 0 {
				s.rows[row.Gid] = row
			}
			if row.Finish.Seq != 0 && s.rng.IntN(2) == 0 {
				n.known.Add(row.Gid)
				n.core.Journaled(s.at(n), []txn.Gid{row.Gid}) // its record may leave the store
			}
		}
		for _, d := range out.Decisions {
			s.arb.asked = append(s.arb.asked, arbAsk{n, n.gen, d})
		}
		for _, p := range out.Lookups {
			n.core.Found(s.at(n), p, s.journaled(engine.GidForTest(p)))
		}
		if len(out.Lookups) == 0 {
			return
		}
	}
}

// journaled reads the journal, which here is s.rows.
func (s *sim) journaled(gid txn.Gid) *record.Tx {
	row, ok := s.rows[gid]
	if !ok {
		return nil
	}
	tx, err := record.FromParts(row.Closed, row.Progress, row.Decision, row.Finish, row.DecisionEpoch, row.FinishEpoch)
	s.check(err)
	return tx
}

// Gids is what Known asks of a journal. Time passes between its reading and its end: slots change hands meanwhile.
func (j reading) Gids(_ context.Context, each func(txn.Gid)) error {
	for gid := range j.rows {
		each(gid)
	}
	if j.rng.IntN(3) == 0 {
		j.claim(j.nodes[j.rng.IntN(2)], j.rng.IntN(simSlots))
	}
	return nil
}

// reading is the simulation as a journal that is read for its gids alone.
type reading struct {
	engine.Journal
	*sim
}

// commit applies a batch at the store: fenced, unless the rule is switched off.
func (s *sim) commit(b *engine.Batch) error {
	if s.rules.unfenced {
		for i := range b.Guards {
			for term := engine.Term(0); ; term++ { // find the term that stands
				probe := *b
				probe.Guards = append([]engine.Guard(nil), b.Guards...)
				probe.Guards[i].Term = term
				var fe *engine.FencedError
				err := s.store.Commit(context.Background(), &engine.Batch{Guards: []engine.Guard{{Slot: b.Guards[i].Slot, Term: term}}})
				if !errors.As(err, &fe) {
					b.Guards[i].Term = term
					break
				}
			}
		}
	}
	return s.store.Commit(context.Background(), b)
}

// write takes a core's next batch to the store, through the weather.
func (s *sim) write(n *node, weather bool) {
	w := n.core.NextBatch()
	if w == nil {
		return
	}
	fate := 0
	if weather {
		fate = s.rng.IntN(10)
	}
	switch {
	case fate == 1: // lost before the store, lands later or never
		s.limbo = append(s.limbo, &w.Batch)
		s.doubt(n, w)
		return
	case fate == 2: // written, the answer is lost
		_ = s.commit(&w.Batch) // fenced or not: the writer does not learn it
		s.doubt(n, w)
		return
	case fate == 3:
		n.core.Written(s.at(n), w, engine.NotWritten, nil)
		s.drain(n)
		return
	}
	err := s.commit(&w.Batch)
	var fe *engine.FencedError
	switch {
	case err == nil:
		n.core.Written(s.at(n), w, engine.Durable, nil)
	case errors.As(err, &fe):
		n.core.Written(s.at(n), w, engine.NotWritten, fe.Slots)
	default:
		s.check(err)
	}
	s.drain(n)
}

// doubt settles an ambiguous write as the Runner does: new terms, then a reload.
func (s *sim) doubt(n *node, w *engine.Writing) {
	if s.rules.resendDoubtful {
		n.core.Written(s.at(n), w, engine.NotWritten, nil)
		s.drain(n)
		return
	}
	slots := w.Slots()
	if s.rules.unsettled {
		n.core.UnsettledForTest(w)
	} else {
		n.core.Written(s.at(n), w, engine.Doubtful, nil)
	}
	s.drain(n)
	for _, sl := range slots {
		if s.rng.IntN(2) == 0 {
			s.claim(n, sl)
		} else { // the claim takes its time, and requests, answers and other slots' writes go on
			s.due = append(s.due, claiming{n, n.gen, sl})
		}
	}
}

// claimDue carries out the claim that has waited longest.
func (s *sim) claimDue() {
	c := s.due[0]
	if s.due = s.due[1:]; c.n.gen == c.gen { // else its process is dead
		s.claim(c.n, c.slot)
	}
}

// holder finds a node that believes to hold the slot, or to be about to.
func (s *sim) holder(sl int) *node {
	first := s.rng.IntN(2)
	for i := range s.nodes {
		if n := s.nodes[(first+i)%2]; slices.Contains(n.core.Held(), sl) {
			return n
		}
	}
	return nil
}

// client does the next thing of one client.
func (s *sim) client(c *client) {
	n := s.holder(slot.Of(string(c.gid)))
	if n == nil || c.ended && !c.driven {
		return
	}
	send := func(kind string, ev txn.Event, want engine.Want) {
		a := &asked{c: c, kind: kind}
		a.done = n.core.ApplyForTest(s.at(n), engine.Request{Gid: c.gid, Event: ev, Want: want})
		c.asks = append(c.asks, a)
		s.drain(n)
	}
	var opt txn.Options
	if c.global {
		opt.Durability = txn.Global
	}
	spec := txn.Spec{Mode: txn.ModeTCC, Digest: "d", Opt: opt}
	switch {
	case c.driven: // also after its end: a late repeat gets the same answer
		for i := range c.branches {
			spec.Branches = append(spec.Branches, branch(i, true))
		}
		send("execute", txn.Execute{Spec: spec}, engine.WantDecided)
	case c.registered == 0 && s.rng.IntN(2) == 0:
		send("prepare", txn.Prepare{Spec: txn.Spec{Mode: txn.ModeTCC, Opt: opt}}, engine.WantAccepted)
	case c.registered < c.branches:
		send(fmt.Sprintf("register %d", c.registered), txn.Register{Mode: txn.ModeTCC, Branch: branch(c.registered, false)}, engine.WantAccepted)
	case s.rng.IntN(4) == 0:
		send("abort", txn.Abort{Mode: txn.ModeTCC}, engine.WantDecided)
	default:
		send("submit", txn.Submit{Spec: txn.Spec{Mode: txn.ModeTCC}}, engine.WantDecided)
	}
}

func branch(i int, driven bool) txn.Branch {
	b := txn.Branch{ID: txn.BranchID(fmt.Sprint(i)), Confirm: "http://p/c", Cancel: "http://p/x"}
	if driven {
		b.Try = "http://p/t"
	}
	return b
}

// answers looks at what the clients were told.
func (s *sim) answers(c *client) {
	kept := c.asks[:0]
	for _, a := range c.asks {
		rep, err, ok := a.done()
		if !ok {
			kept = append(kept, a)
			continue
		}
		var te *txn.Error
		var i int
		switch {
		case err == nil && rep.State.Phase.Decided():
			s.told(c, rep.State.Phase)
		case err == nil && a.kind != "prepare":
			if n, _ := fmt.Sscanf(a.kind, "register %d", &i); n == 1 && i == c.registered {
				c.registered++
				s.try(c, i)
			}
		case errors.As(err, &te) && te.Phase.Decided():
			s.told(c, te.Phase)
		}
	}
	c.asks = kept
}

func (s *sim) told(c *client, p txn.Phase) {
	if c.acked != txn.PhaseNone && c.acked.Commit() != p.Commit() {
		s.fail("%s: the client was told %s and then %s (G1)", c.gid, c.acked, p)
	}
	c.acked, c.ended = p, true
}

func (s *sim) part(gid txn.Gid, id txn.BranchID) *part {
	key := string(gid) + "/" + string(id)
	if s.parts[key] == nil {
		s.parts[key] = &part{}
	}
	return s.parts[key]
}

// try is the client's own try at the participant.
func (s *sim) try(c *client, i int) {
	p := s.part(c.gid, txn.BranchID(fmt.Sprint(i)))
	if p.tombstone == 0 && p.tried == 0 {
		p.tried++
	}
}

// carry carries a call out at its participant's barrier.
func (s *sim) carry(c *engine.Call) txn.Outcome {
	if s.fenced != nil && s.fenced(c) {
		return txn.Stale
	}
	p := s.part(c.Gid, c.Branch)
	switch c.Op {
	case txn.OpTry:
		if p.tombstone > 0 {
			return txn.Refused
		}
		if p.tried == 0 {
			if s.rng.IntN(12) == 0 {
				return txn.Refused
			}
			p.tried++
		}
	case txn.OpConfirm:
		if p.cancelled > 0 || p.tombstone > 0 {
			s.fail("%s/%s: a confirm after its cancel (G5)", c.Gid, c.Branch)
		}
		if p.confirmed == 0 {
			p.confirmed++
		}
	case txn.OpCancel:
		if p.confirmed > 0 {
			s.fail("%s/%s: a cancel after its confirm (G5)", c.Gid, c.Branch)
		}
		if p.tried == 0 {
			p.tombstone++
		} else if p.cancelled == 0 {
			p.cancelled++
		}
	default:
		s.fail("unexpected call %s", c.Op)
	}
	return txn.Done
}

// fly moves one call: out to the participant, or its answer back, or loses it.
func (s *sim) fly(i int, weather bool) {
	f := &s.calls[i]
	if !f.done {
		if weather && s.rng.IntN(8) == 0 {
			f.outcome = txn.Unknown // never arrived
		} else {
			f.outcome = s.carry(f.call)
			if weather && s.rng.IntN(8) == 0 {
				f.outcome = txn.Unknown // the answer is lost
			}
		}
		f.done = true
		return
	}
	res := engine.CallResult{Call: f.call, Outcome: f.outcome, Text: "x"}
	n, gen := f.n, f.gen
	s.calls = append(s.calls[:i], s.calls[i+1:]...)
	if n.gen == gen { // else its process is dead
		n.core.Replied(s.at(n), res)
		s.drain(n)
	}
}

func (s *sim) step() {
	n := s.nodes[s.rng.IntN(2)]
	switch k := s.rng.IntN(100); {
	case k < 8:
		s.txs = append(s.txs, &client{gid: gidOf(len(s.txs)), branches: 1 + s.rng.IntN(3), driven: s.rng.IntN(3) == 0, global: s.rng.IntN(3) == 0})
	case k < 35 && len(s.txs) > 0:
		c := s.txs[max(0, len(s.txs)-1-s.rng.IntN(min(len(s.txs), 8)))]
		s.client(c)
	case k < 60:
		s.write(n, true)
	case k < 80 && len(s.calls) > 0:
		s.fly(s.rng.IntN(len(s.calls)), true)
	case k < 82 && len(s.arb.asked)+len(s.arb.limbo) > 0:
		s.arbitrate(true)
	case k < 84 && len(s.limbo) > 0: // an old write lands late
		i := s.rng.IntN(len(s.limbo))
		_ = s.commit(s.limbo[i]) // fenced, as it should be, unless its slots were not taken anew
		s.limbo = append(s.limbo[:i], s.limbo[i+1:]...)
	case k < 86: // somebody else takes a slot; the holder does not know
		s.claim(n, s.rng.IntN(simSlots))
	case k < 87: // a process dies and its slots are taken again
		held := n.core.Held()
		s.boot(n)
		for _, sl := range held {
			s.claim(s.nodes[s.rng.IntN(2)], sl)
		}
	case k < 90 && len(s.due) > 0:
		s.claimDue()
	case k < 92:
		s.check(n.known.Build(context.Background(), reading{sim: s}))
	default:
		s.now += s.rng.Int64N(3000)
		n.core.Expire(s.at(n))
		n.core.Flush(s.at(n))
		s.drain(n)
	}
	for _, c := range s.txs {
		if len(c.asks) > 0 {
			s.answers(c)
		}
	}
}

// heal is the second mode: good weather, until everything ends.
func (s *sim) heal() {
	for range s.limbo {
		_ = s.commit(s.limbo[0])
		s.limbo = s.limbo[1:]
	}
	for _, d := range s.arb.limbo {
		s.arb.write(d)
	}
	s.due = nil // every slot is claimed below
	for sl := range simSlots {
		s.nodes[1].core.Drop(sl)
		s.claim(s.nodes[0], sl)
	}
	n := s.nodes[0]
	for range 2_000 {
		for range 50 {
			s.write(n, false)
			for len(s.arb.asked) > 0 {
				s.arbitrate(false)
			}
			for len(s.calls) > 0 {
				s.fly(len(s.calls)-1, false)
			}
			for _, c := range s.txs {
				if len(c.asks) > 0 {
					s.answers(c)
				}
			}
			if s.err != nil {
				return
			}
		}
		s.now += 70_000
		n.core.Expire(s.at(n))
		n.core.Flush(s.at(n))
		s.drain(n)
		open := 0
		n.core.Each(func(r engine.Reply) {
			if !r.State.Phase.Finished() {
				open++
			}
		})
		if open == 0 && n.core.Unsaved() == 0 {
			return
		}
	}
	n.core.Each(func(r engine.Reply) {
		if !r.State.Phase.Finished() {
			s.fail("not everything ended (G8): %+v", r.State)
		}
	})
	s.fail("not everything was saved: %d wait", n.core.Unsaved())
}

// audit compares what stands in the end with what was promised and what the participants did.
func (s *sim) audit() {
	final := map[txn.Gid]txn.Phase{}
	for sl := range simSlots {
		heads := map[uint64]record.Chain{}
		s.check(s.store.Load(context.Background(), sl, func(gid txn.Gid, v []byte) error {
			tx, err := record.Decode(v)
			if err != nil {
				return err
			}
			final[gid] = tx.State.Phase
			if !tx.State.Phase.Finished() || tx.Decision.Seq == 0 || tx.Finish.Seq == 0 {
				s.fail("%s stands as %s in the store, events %d and %d (G8)", gid, tx.State.Phase, tx.Decision.Seq, tx.Finish.Seq)
			}
			for _, h := range []record.Head{tx.Decision, tx.Finish} {
				if _, twice := heads[h.Seq]; twice {
					s.fail("slot %d: event %d stands twice (G6)", sl, h.Seq)
				}
				heads[h.Seq] = h.Chain
			}
			for i := range tx.State.Branches {
				p := s.part(gid, tx.State.Branches[i].ID)
				if tx.State.Phase.Commit() && p.confirmed != 1 {
					s.fail("%s/%s: the decision is commit, and it was confirmed %d times", gid, tx.State.Branches[i].ID, p.confirmed)
				}
				if !tx.State.Phase.Commit() && p.confirmed > 0 {
					s.fail("%s/%s: the decision is abort, and it was confirmed", gid, tx.State.Branches[i].ID)
				}
			}
			return nil
		}))
		for gid, row := range s.rows {
			if slot.Of(string(gid)) == sl {
				heads[row.Decision.Seq] = row.Decision.Chain
				if row.Finish.Seq != 0 {
					heads[row.Finish.Seq] = row.Finish.Chain
				}
			}
		}
		for seq := uint64(1); seq <= uint64(len(heads)); seq++ {
			if _, ok := heads[seq]; !ok {
				s.fail("slot %d: event %d of %d is missing (G6)", sl, seq, len(heads))
			}
		}
	}
	for gid, row := range s.rows {
		if _, ok := final[gid]; !ok && row.Finish.Seq != 0 {
			final[gid] = row.Phase
		}
	}
	s.auditArbiter(final)
	for _, c := range s.txs {
		if c.acked != txn.PhaseNone {
			if p, ok := final[c.gid]; !ok || p.Commit() != c.acked.Commit() {
				s.fail("%s: the client was told %s, and it ended as %s (G1, G10)", c.gid, c.acked, p)
			}
		}
	}
}

func (s *sim) run() error {
	for range *simSteps {
		if s.step(); s.err != nil {
			return s.err
		}
	}
	if s.heal(); s.err == nil {
		s.audit()
	}
	return s.err
}

func seedsToRun() []uint64 {
	if *oneSeed != 0 {
		return []uint64{*oneSeed}
	}
	var out []uint64
	for i := range *seeds {
		out = append(out, uint64(i+1))
	}
	return out
}

// TestNothingIsDecidedTwiceOrLost runs the simulation: lost and late answers, zombies, crashes, takeovers, and clocks
// that are wrong by ten minutes (D12: DTM compares wall clocks, and bears three seconds).
func TestNothingIsDecidedTwiceOrLost(t *testing.T) {
	total, committed := 0, 0
	for _, seed := range seedsToRun() {
		s := newSim(seed, rules{})
		if err := s.run(); err != nil {
			t.Fatalf("seed %d: %v\nagain: go test ./coordinator/engine -run TestNothingIsDecidedTwiceOrLost -seed %d", seed, err, seed)
		}
		for _, c := range s.txs {
			total++
			if c.acked.Commit() {
				committed++
			}
		}
	}
	if total < 3**seeds && *oneSeed == 0 || committed == 0 {
		t.Fatalf("the simulation examined nothing: %d transactions, %d committed", total, committed)
	}
	t.Logf("%d transactions, %d acknowledged as committed", total, committed)
}

// TestEachRuleBites switches one rule off at a time: the simulation must find that something breaks. A checker that
// cannot fail proves nothing.
func TestEachRuleBites(t *testing.T) {
	for name, r := range map[string]rules{
		"a doubtful write is sent again under its old term": {resendDoubtful: true, unfenced: false},
		"writes are not fenced":                             {unfenced: true},
		"a slot in doubt goes on before its new term":       {unsettled: true},
		"a cancel after a doubtful decision":                {cancelAfterDoubt: true},
	} {
		t.Run(name, func(t *testing.T) {
			for seed := uint64(1); seed <= 400; seed++ {
				if err := newSim(seed, r).run(); err != nil {
					t.Logf("seed %d: %v", seed, err)
					return
				}
			}
			t.Fatal("400 seeds without the rule found nothing: the rule or the checker is idle")
		})
	}
}
