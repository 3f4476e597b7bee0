package record

import (
	"fmt"
	"time"

	"github.com/lockstep-tx/lockstep/coordinator/record/recordpb"
	"github.com/lockstep-tx/lockstep/coordinator/txn"
)

// OptionsToPB gives the options' wire form.
func OptionsToPB(o *txn.Options) *recordpb.Options {
	return &recordpb.Options{
		Protocol: uint32(o.Protocol), WaitResult: o.WaitResult, Concurrent: o.Concurrent,
		TimeoutMs: o.Timeout.Milliseconds(), RequestTimeoutMs: o.RequestTimeout.Milliseconds(),
		RetryIntervalMs: o.RetryInterval.Milliseconds(), RetryLimit: int32(o.RetryLimit),
		DelayMs: o.Delay.Milliseconds(), Headers: o.Headers, Durability: uint32(o.Durability),
	}
}

// OptionsFromPB reads what OptionsToPB gave.
func OptionsFromPB(o *recordpb.Options) txn.Options {
	ms := func(n int64) time.Duration { return time.Duration(n) * time.Millisecond }
	return txn.Options{
		Protocol: txn.Protocol(o.GetProtocol()), WaitResult: o.GetWaitResult(), Concurrent: o.GetConcurrent(),
		Timeout: ms(o.GetTimeoutMs()), RequestTimeout: ms(o.GetRequestTimeoutMs()),
		RetryInterval: ms(o.GetRetryIntervalMs()), RetryLimit: int(o.GetRetryLimit()), Delay: ms(o.GetDelayMs()),
		Headers: o.GetHeaders(), Durability: txn.Durability(o.GetDurability()),
	}
}

func branchToPB(b *txn.Branch, out *recordpb.Branch) {
	out.Id, out.Try, out.Confirm, out.Cancel = string(b.ID), b.Try, b.Confirm, b.Cancel
	out.Payload, out.Message, out.UseResults, out.Account = b.Payload, b.Message, b.UseResults, b.Account
	for _, j := range b.After {
		out.After = append(out.After, uint32(j))
	}
}

// BranchToPB gives a branch's wire form; its call states and result are not part of it.
func BranchToPB(b *txn.Branch) *recordpb.Branch {
	out := &recordpb.Branch{}
	branchToPB(b, out)
	return out
}

// BranchFromPB reads what BranchToPB gave.
func BranchFromPB(b *recordpb.Branch) txn.Branch {
	out := txn.Branch{
		ID: txn.BranchID(b.GetId()), Try: b.GetTry(), Confirm: b.GetConfirm(), Cancel: b.GetCancel(),
		Payload: b.GetPayload(), Message: b.GetMessage(), UseResults: b.GetUseResults(), Account: b.GetAccount(),
	}
	for _, j := range b.GetAfter() {
		out.After = append(out.After, int(j))
	}
	return out
}

// StepToPB gives a workflow step's wire form.
func StepToPB(s *txn.WorkflowStep) *recordpb.WorkflowStep {
	return &recordpb.WorkflowStep{Branch: string(s.Branch), Op: s.Op, Failed: s.Failed, Data: s.Data, At: s.At}
}

// StepFromPB reads what StepToPB gave.
func StepFromPB(s *recordpb.WorkflowStep) txn.WorkflowStep {
	return txn.WorkflowStep{Branch: txn.BranchID(s.GetBranch()), Op: s.GetOp(), Failed: s.GetFailed(), Data: s.GetData(), At: s.GetAt()}
}

func opFromPB(o *recordpb.OpState) (txn.OpState, error) {
	if o.GetStatus() > uint32(txn.OpSkipped) {
		return txn.OpState{}, fmt.Errorf("%w: unknown call status %d", ErrCorrupt, o.GetStatus())
	}
	return txn.OpState{
		Status: txn.OpStatus(o.GetStatus()), Attempts: int(o.GetAttempts()), Fails: int(o.GetFails()),
		DoneAt: o.GetDoneAt(), LastError: o.GetLastError(),
	}, nil
}

func timelineOf(p *recordpb.Progress) Timeline {
	tl := Timeline{Dropped: int(p.AttemptsDropped)}
	for _, a := range p.Attempts {
		tl.Attempts = append(tl.Attempts, Attempt{
			Branch: txn.BranchID(a.Branch), Op: txn.Op(a.Op), Number: int(a.Number), StartedAt: a.StartedAt,
			Took: time.Duration(a.TookMicros) * time.Microsecond, Outcome: txn.Outcome(a.Outcome), Text: a.Text,
		})
	}
	for _, t := range p.Takeovers {
		tl.Takeovers = append(tl.Takeovers, Takeover{At: t.At, Holder: t.Holder})
	}
	return tl
}

func decodeState(c *recordpb.Closed, p *recordpb.Progress, s *txn.State) error {
	mode, phase := txn.Mode(c.Mode), txn.Phase(c.Phase)
	if p.Phase != 0 {
		phase = txn.Phase(p.Phase)
	}
	switch {
	case c.Gid == "":
		return fmt.Errorf("%w: no gid", ErrCorrupt)
	case mode < txn.ModeTCC || mode > txn.ModeWorkflow || c.Mode > 255:
		return fmt.Errorf("%w: unknown mode %d", ErrCorrupt, c.Mode)
	case phase < txn.PhasePrepared || phase > txn.PhaseAborted || c.Phase > 255 || p.Phase > 255:
		return fmt.Errorf("%w: unknown phase %d", ErrCorrupt, phase)
	case p.Branches != nil && len(p.Branches) != len(c.Branches):
		return fmt.Errorf("%w: %d branches, progress of %d", ErrCorrupt, len(c.Branches), len(p.Branches))
	}
	*s = txn.State{
		Gid: txn.Gid(c.Gid), Mode: mode, Phase: phase, Stopped: p.Stopped, InDoubt: p.InDoubt, Epoch: c.Epoch, BegunAt: c.BegunAt,
		UpdatedAt: p.UpdatedAt, DecidedAt: c.DecidedAt, FinishedAt: p.FinishedAt, Opt: OptionsFromPB(c.Options),
		QueryURL: c.QueryUrl, Custom: c.Custom, Reason: c.Reason, Result: c.Result, Digest: string(c.Digest),
		Tenant: c.Tenant, Retries: int(p.Retries),
	}
	var err error
	if s.Query, err = opFromPB(p.Query); err != nil {
		return err
	}
	if len(c.Branches) > 0 {
		s.Branches = make([]txn.Branch, len(c.Branches))
	}
	for i, b := range c.Branches {
		s.Branches[i] = BranchFromPB(b)
		if p.Branches == nil {
			continue
		}
		bp := p.Branches[i]
		s.Branches[i].Result = bp.GetResult()
		if s.Branches[i].One, err = opFromPB(bp.GetOne()); err != nil {
			return err
		}
		if s.Branches[i].Two, err = opFromPB(bp.GetTwo()); err != nil {
			return err
		}
	}
	for _, st := range c.Steps {
		s.Steps = append(s.Steps, StepFromPB(st))
	}
	return nil
}
