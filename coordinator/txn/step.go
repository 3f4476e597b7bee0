package txn

import (
	"fmt"
	"slices"
)

// Step leads from a state and an event to the next state and the effects owed for it. s is not changed, nor what it
// points to. On an error the state that is returned is s itself, there are no effects, and the error is an *Error.
//
// Duplicates are answers: a request that was carried out before is answered again without effects. A decision that
// stands is never changed (G1). A reply to any attempt but the one in flight changes nothing.
func Step(s State, ev Event) (State, []Effect, error) {
	w := &work{s: s}
	var err error
	switch e := ev.(type) {
	case Prepare:
		w.at, w.epoch = e.At, e.Epoch
		err = w.prepare(e)
	case Register:
		w.at, w.epoch = e.At, e.Epoch
		err = w.register(e)
	case RegisterStep:
		w.at, w.epoch = e.At, e.Epoch
		err = w.registerStep(e)
	case Submit:
		w.at, w.epoch = e.At, e.Epoch
		err = w.submit(e)
	case Execute:
		w.at, w.epoch = e.At, e.Epoch
		err = w.execute(e)
	case EndWorkflow:
		w.at, w.epoch = e.At, e.Epoch
		err = w.endWorkflow(e)
	case Abort:
		w.at, w.epoch = e.At, e.Epoch
		err = w.abort(e)
	case Resolve:
		w.at, w.epoch = e.At, e.Epoch
		err = w.resolve(e)
	case Stop:
		w.at, w.epoch = e.At, e.Epoch
		err = w.stop()
	case Retry:
		w.at, w.epoch = e.At, e.Epoch
		err = w.retry()
	case Reply:
		w.at, w.epoch = e.At, e.Epoch
		w.reply(e)
	case Tick:
		w.at, w.epoch = e.At, e.Epoch
		w.tick()
	}
	if err != nil {
		return s, nil, err
	}
	return w.s, w.effects, nil
}

// work is one step under way.
type work struct {
	s       State
	at      int64
	epoch   uint64
	owned   bool // w.s.Branches is our own copy
	effects []Effect
}

func (w *work) emit(e ...Effect) { w.effects = append(w.effects, e...) }

// own makes the branches ours to change.
func (w *work) own() {
	if !w.owned {
		w.s.Branches = slices.Clone(w.s.Branches)
		w.owned = true
	}
}

func (w *work) touch() { w.s.UpdatedAt = w.at }

// begin makes the first state of a gid.
func (w *work) begin(sp Spec, phase Phase) {
	w.s = State{
		Gid: w.s.Gid, Mode: sp.Mode, Phase: phase, Epoch: w.epoch, BegunAt: w.at, UpdatedAt: w.at,
		Opt: sp.Opt, Branches: slices.Clone(sp.Branches), QueryURL: sp.QueryURL, Custom: sp.Custom,
		Digest: sp.Digest, Tenant: sp.Tenant,
	}
	w.owned = true
	for i := range w.s.Branches {
		b := &w.s.Branches[i]
		b.One, b.Two = OpState{}, OpState{}
		if b.Message || sp.Mode == ModeMsg {
			b.One.Status = OpSkipped
		}
	}
	switch {
	case sp.Mode == ModeMsg:
		w.s.Query.NextAt = w.s.Deadline()
	case sp.Mode == ModeWorkflow:
		w.s.Query.NextAt = w.at + w.s.retryInterval()
	default:
		w.s.Query.Status = OpSkipped
	}
}

func (w *work) prepare(e Prepare) error {
	switch {
	case w.s.Phase == PhaseNone:
		w.begin(e.Spec, PhasePrepared)
		// A TCC or XA prepare without branches is not yet a fact: no try can have run before a branch is
		// registered, and that is durable. A message's check-back and a workflow's progress need the record.
		if held := (e.Spec.Mode == ModeTCC || e.Spec.Mode == ModeXA) && len(e.Spec.Branches) == 0; !held {
			w.emit(Save{})
		}
		w.emit(Answer{Accepted})
		w.wake()
		return nil
	case w.s.Mode != e.Spec.Mode:
		return w.s.refuse(CodeMismatch, "it was begun as %s, not as %s: use another gid", w.s.Mode, e.Spec.Mode)
	case e.Spec.Digest != w.s.Digest:
		return w.s.refuse(CodeMismatch, "its idempotency key was used with another body: use another key")
	case w.s.Mode == ModeWorkflow && !w.s.InDoubt:
		// prepareWorkflow returns the existing one in whatever status.
		w.emit(Answer{Accepted})
		return nil
	case w.s.InDoubt:
		return w.s.refuseDoubt("prepared again")
	case w.s.Phase == PhasePrepared && !w.s.Stopped:
		w.emit(Answer{Accepted})
		return nil
	case w.s.Digest != "" && !w.s.Stopped:
		w.emit(Answer{Accepted})
		return nil
	}
	return w.s.refuse(CodePhase, "it is %s and cannot be prepared again: use another gid", w.s.Phase)
}

func (w *work) register(e Register) error {
	switch {
	case w.s.Phase == PhaseNone:
		return w.s.refuse(CodeNotFound, "it was never prepared: call prepare first")
	case w.s.Mode != e.Mode && e.Mode != 0:
		return w.s.refuse(CodeMismatch, "it was begun as %s, not as %s", w.s.Mode, e.Mode)
	case w.s.InDoubt:
		return w.s.refuseDoubt("given branches")
	case w.s.Mode != ModeTCC && w.s.Mode != ModeXA:
		return w.s.refuse(CodeInvalid, "a %s transaction takes no branches after its begin", w.s.Mode)
	case w.s.Phase != PhasePrepared || w.s.Stopped:
		return w.s.refuse(CodePhase, "it is %s: branches are registered while it is prepared", w.s.Phase)
	}
	if i := w.s.branch(e.Branch.ID); i >= 0 {
		if field := sameBranch(&w.s.Branches[i], &e.Branch); field != "" {
			return w.s.refuse(CodeMismatch, "branch %q is registered with another %s", string(e.Branch.ID), field)
		}
		w.emit(Answer{Accepted})
		return nil
	}
	if err := w.hasRoom(len(e.Branch.ID) + len(e.Branch.Confirm) + len(e.Branch.Cancel) + len(e.Branch.Payload)); err != nil {
		return err
	}
	if UncallableByRPC(w.s.Opt.Protocol, []Branch{e.Branch}) >= 0 {
		return w.s.refuse(CodeInvalid, "branch %q: data: %s", string(e.Branch.ID), noObject)
	}
	w.own()
	b := e.Branch
	b.One, b.Two = OpState{}, OpState{}
	w.s.Branches = append(w.s.Branches, b)
	w.touch()
	w.emit(Save{}, Answer{Accepted})
	w.wake()
	return nil
}

// noObject is why a payload is refused.
const noObject = "the payload of a JSON-RPC call is a JSON object, for its fields become the call's params; send {…} or nothing"

// hasRoom refuses what would make the record outgrow what a store takes: it could never be saved again.
func (w *work) hasRoom(more int) error {
	if len(w.s.Branches) >= RegisteredMax || len(w.s.Steps) >= RegisteredMax {
		return w.s.refuse(CodeInvalid, "it has %d branches, no more are taken", RegisteredMax)
	}
	for i := range w.s.Branches {
		b := &w.s.Branches[i]
		more += len(b.ID) + len(b.Confirm) + len(b.Cancel) + len(b.Payload)
	}
	for i := range w.s.Steps {
		more += len(w.s.Steps[i].Branch) + len(w.s.Steps[i].Data)
	}
	if w.s.Opt.Durability == Global && more > GlobalBytesMax {
		return w.s.refuse(CodeInvalid, "its branches have %d bytes together, at most %d are taken where the durability is global", more, GlobalBytesMax)
	}
	if more > RegisteredBytesMax {
		return w.s.refuse(CodeInvalid, "its branches have %d bytes together, at most %d are taken", more, RegisteredBytesMax)
	}
	return nil
}

// FitsGlobal says why a transaction is too large for global durability; nil when it is not, or is regional.
func FitsGlobal(sp *Spec) error {
	if sp.Opt.Durability != Global {
		return nil
	}
	n := len(sp.Custom) + len(sp.QueryURL)
	for k, v := range sp.Opt.Headers {
		n += len(k) + len(v)
	}
	for i := range sp.Branches {
		b := &sp.Branches[i]
		n += len(b.ID) + len(b.Try) + len(b.Confirm) + len(b.Cancel) + len(b.Payload) + len(b.Account)
	}
	if n > GlobalBytesMax {
		return fmt.Errorf("they have %d bytes together, at most %d are taken where the durability is global; ask for regional, or send a reference instead of the data", n, GlobalBytesMax)
	}
	return nil
}

// sameBranch names the first field in which two registrations differ; empty when they are the same.
func sameBranch(a, b *Branch) string {
	switch {
	case a.Try != b.Try:
		return "try"
	case a.Confirm != b.Confirm:
		return "confirm"
	case a.Cancel != b.Cancel:
		return "cancel"
	case a.Account != b.Account:
		return "account"
	case string(a.Payload) != string(b.Payload):
		return "payload"
	}
	return ""
}

func (w *work) registerStep(e RegisterStep) error {
	switch {
	case w.s.Phase == PhaseNone:
		return w.s.refuse(CodeNotFound, "it was never prepared: call prepareWorkflow first")
	case w.s.Mode != ModeWorkflow:
		return w.s.refuse(CodeMismatch, "it was begun as %s, not as workflow", w.s.Mode)
	case w.s.InDoubt:
		return w.s.refuseDoubt("given steps")
	case w.s.Phase != PhasePrepared || w.s.Stopped:
		return w.s.refuse(CodePhase, "it is %s: steps are registered while it is prepared", w.s.Phase)
	}
	for _, st := range w.s.Steps {
		if st.Branch == e.Step.Branch && st.Op == e.Step.Op {
			return w.s.refuse(CodeDuplicateStep, "step %q %s is registered already", string(st.Branch), st.Op)
		}
	}
	if err := w.hasRoom(len(e.Step.Branch) + len(e.Step.Data)); err != nil {
		return err
	}
	w.s.Steps = append(slices.Clone(w.s.Steps), e.Step)
	// The client is alive: its callback may wait another interval.
	w.s.Query.NextAt = max(w.s.Query.NextAt, w.at+w.s.retryInterval())
	w.touch()
	w.emit(Save{}, Answer{Accepted})
	w.wake()
	return nil
}

func (w *work) submit(e Submit) error {
	if w.s.Phase == PhaseNone {
		switch e.Spec.Mode {
		case ModeSaga:
			w.begin(e.Spec, PhaseRunning)
			w.emit(Save{}, Answer{Accepted})
			w.advance()
			return nil
		case ModeMsg:
			w.begin(e.Spec, PhasePrepared)
			w.decide(true, "")
			return nil
		case ModeTCC, ModeXA, ModeWorkflow:
			return w.s.refuse(CodeNotFound, "it was never prepared: a submit would commit nothing")
		}
	}
	switch {
	case w.s.Mode != e.Spec.Mode:
		return w.s.refuse(CodeMismatch, "it was begun as %s, not as %s", w.s.Mode, e.Spec.Mode)
	case w.s.InDoubt:
		return w.s.refuseDoubt("submitted")
	case w.s.Stopped:
		return w.s.refuse(CodePhase, "an operator stopped it; it cannot be submitted")
	case w.s.Mode == ModeWorkflow:
		return w.s.refuse(CodeInvalid, "a workflow is ended with its status")
	}
	switch w.s.Phase {
	case PhasePrepared:
		if err := w.mayCommit(); err != nil {
			return err
		}
		opt := w.s.Opt.Merge(e.Spec.Opt)
		if i := UncallableByRPC(opt.Protocol, w.s.Branches); i >= 0 {
			return w.s.refuse(CodeInvalid, "protocol: branch %q was registered for another, its data cannot go by %s: %s", string(w.s.Branches[i].ID), opt.Protocol, noObject)
		}
		w.s.Opt = opt
		if w.s.Mode == ModeSaga {
			w.s.Phase = PhaseRunning
			w.touch()
			w.emit(Save{}, Answer{Accepted})
			w.advance()
			return nil
		}
		w.decide(true, "")
		return nil
	case PhaseRunning, PhaseCommitting:
		// A repeat: what is owed becomes due now, what is finished is not done again (D1).
		if w.s.Phase == PhaseRunning && w.s.Mode != ModeSaga {
			return w.s.refuse(CodePhase, "the coordinator drives its tries and decides; it cannot be submitted")
		}
		w.dueNow()
		w.emit(Answer{Accepted})
		if w.s.Phase == PhaseCommitting {
			w.emit(Answer{Decided})
		}
		w.advance()
		return nil
	case PhaseNone, PhaseAborting, PhaseCommitted, PhaseAborted:
	}
	return w.s.refuse(CodePhase, "it is %s and cannot be submitted", w.s.Phase)
}

func (w *work) execute(e Execute) error {
	if w.s.InDoubt {
		return w.s.refuseDoubt("executed")
	}
	if w.s.Phase != PhaseNone {
		if w.s.Mode != e.Spec.Mode || w.s.Digest != e.Spec.Digest || w.s.Digest == "" {
			return w.s.refuse(CodeMismatch, "the gid or idempotency key was used with another body: use another")
		}
		w.emit(Answer{Accepted})
		w.answerStanding()
		return nil
	}
	w.begin(e.Spec, PhaseRunning)
	w.emit(Save{}, Answer{Accepted})
	w.advance()
	return nil
}

// answerStanding repeats the milestones that the state has reached, for a client that asks again.
func (w *work) answerStanding() {
	if w.s.Phase.Decided() {
		w.emit(Answer{Decided})
	}
	if w.s.Phase.Finished() {
		w.emit(Answer{Settled}, Answer{FinishedAll})
	} else if w.s.Phase.Decided() && w.settled() {
		w.emit(Answer{Settled})
	}
}

func (w *work) endWorkflow(e EndWorkflow) error {
	switch {
	case w.s.Phase == PhaseNone:
		return w.s.refuse(CodeNotFound, "it was never prepared: call prepareWorkflow first")
	case w.s.Mode != ModeWorkflow:
		return w.s.refuse(CodeMismatch, "it was begun as %s, not as workflow", w.s.Mode)
	case w.s.InDoubt:
		return w.s.refuseDoubt("ended")
	case w.s.Phase.Finished() && !w.s.Stopped && w.s.Phase.Commit() == e.Commit:
		w.emit(Answer{Accepted}, Answer{Decided}, Answer{Settled}, Answer{FinishedAll})
		return nil
	case w.s.Phase != PhasePrepared || w.s.Stopped:
		return w.s.refuse(CodePhase, "it is %s and cannot be ended otherwise", w.s.Phase)
	}
	if e.Commit {
		if err := w.mayCommit(); err != nil {
			return err
		}
	}
	w.s.Result = e.Result
	w.decide(e.Commit, e.Reason)
	return nil
}

func (w *work) abort(e Abort) error {
	switch {
	case w.s.Phase == PhaseNone:
		return w.s.refuse(CodeNotFound, "no such transaction")
	case e.Mode != 0 && e.Mode != w.s.Mode:
		return w.s.refuse(CodePhase, "it was begun as %s; an abort as %s is refused", w.s.Mode, e.Mode)
	case w.s.Mode == ModeSaga || w.s.Mode == ModeWorkflow:
		return w.s.refuse(CodePhase, "a %s is not aborted from outside", w.s.Mode)
	case w.s.InDoubt:
		return w.s.refuseDoubt("aborted")
	case w.s.Stopped:
		return w.s.refuse(CodePhase, "an operator stopped it; it cannot be aborted")
	}
	switch w.s.Phase {
	case PhasePrepared:
		w.decide(false, e.Reason)
		return nil
	case PhaseRunning:
		if w.s.Mode != ModeTCC {
			break
		}
		w.decide(false, e.Reason)
		return nil
	case PhaseAborting:
		if w.s.Mode == ModeMsg {
			break
		}
		w.dueNow()
		w.emit(Answer{Accepted}, Answer{Decided})
		w.advance()
		return nil
	case PhaseNone, PhaseCommitting, PhaseCommitted, PhaseAborted:
	}
	return w.s.refuse(CodePhase, "it is %s and cannot be aborted", w.s.Phase)
}

// resolve takes the decision of a transaction in doubt. A repeat of what stands is answered.
func (w *work) resolve(e Resolve) error {
	switch {
	case w.s.Phase == PhaseNone:
		return w.s.refuse(CodeNotFound, "no such transaction")
	case e.Reason == "":
		return w.s.refuse(CodeInvalid, "reason: it is empty; say on whose word it is resolved")
	case !w.s.InDoubt && w.s.Phase.Decided() && w.s.Phase.Commit() == e.Commit:
		w.emit(Answer{Accepted})
		w.answerStanding()
		return nil
	case !w.s.InDoubt:
		return w.s.refuse(CodePhase, "it is %s and not in doubt: there is nothing to resolve", w.s.Phase)
	}
	for i := range w.s.Branches {
		if e.Commit && w.s.Branches[i].One.Status == OpRefused {
			return w.s.refuse(CodePhase, "branch %q refused its part: it cannot be committed; abort it", string(w.s.Branches[i].ID))
		}
	}
	w.decide(e.Commit, e.Reason) // what may have run is not known: nothing is skipped
	return nil
}

// refuseDoubt refuses what a client asks of a transaction in doubt.
func (s *State) refuseDoubt(what string) error {
	return s.refuse(CodePhase, "it is in doubt since its region was lost, and cannot be %s; it ends when the region returns or an operator resolves it: lockstep tx resolve", what)
}

func (w *work) stop() error {
	switch {
	case w.s.Phase == PhaseNone:
		return w.s.refuse(CodeNotFound, "no such transaction")
	case w.s.InDoubt:
		return w.s.refuseDoubt("stopped")
	case w.s.Phase.Finished() || w.s.Stopped:
		return w.s.refuse(CodePhase, "it has ended or is stopped already")
	}
	w.s.Stopped = true
	w.touch()
	w.emit(Save{}, Answer{Accepted}, Answer{PassOver})
	return nil
}

func (w *work) retry() error {
	switch {
	case w.s.Phase == PhaseNone:
		return w.s.refuse(CodeNotFound, "no such transaction")
	case w.s.Phase.Finished():
		return w.s.refuse(CodePhase, "it has ended; there is nothing to retry")
	case w.s.InDoubt:
		return w.s.refuseDoubt("retried")
	}
	if w.s.Stopped {
		w.s.Stopped = false
		w.touch()
		w.emit(Save{})
	}
	w.emit(Answer{Accepted})
	w.dueNow()
	w.advance()
	return nil
}

// dueNow makes every owed call that is waiting due at once. A prepared message keeps its check-back's time: its
// sender may still be at work.
func (w *work) dueNow() {
	if w.s.Mode == ModeWorkflow {
		w.s.Query.NextAt = w.at
	}
	w.own()
	for i := range w.s.Branches {
		b := &w.s.Branches[i]
		for _, op := range []*OpState{&b.One, &b.Two} {
			if op.Status == OpPending && !op.InFlight && op.NextAt > w.at {
				op.NextAt = w.at
			}
		}
	}
}

// mayCommit keeps G4: only the epoch that began a transaction decides commit.
func (w *work) mayCommit() error {
	if w.epoch != w.s.Epoch {
		return w.s.refuse(CodeStaleEpoch, "it was begun in epoch %d and cannot be committed in epoch %d", w.s.Epoch, w.epoch)
	}
	return nil
}
