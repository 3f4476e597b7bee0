package peer

import (
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/lockstep-tx/lockstep/coordinator/engine"
	"github.com/lockstep-tx/lockstep/coordinator/peer/peerpb"
	"github.com/lockstep-tx/lockstep/coordinator/record"
	"github.com/lockstep-tx/lockstep/coordinator/record/recordpb"
	"github.com/lockstep-tx/lockstep/coordinator/txn"
)

func specToPB(s *txn.Spec) *peerpb.Spec {
	out := &peerpb.Spec{Mode: uint32(s.Mode), Options: record.OptionsToPB(&s.Opt), QueryUrl: s.QueryURL, Custom: s.Custom, Digest: []byte(s.Digest), Tenant: s.Tenant}
	for i := range s.Branches {
		out.Branches = append(out.Branches, record.BranchToPB(&s.Branches[i]))
	}
	return out
}

// specFromPB reads a spec. One that the core could not carry is an error that names its field.
func specFromPB(s *peerpb.Spec) (txn.Spec, error) {
	if err := errors.Join(checkMode(s.GetMode(), false), checkOptions(s.GetOptions()), checkBranches(s.GetBranches())); err != nil {
		return txn.Spec{}, err
	}
	out := txn.Spec{Mode: txn.Mode(s.GetMode()), Opt: record.OptionsFromPB(s.GetOptions()), QueryURL: s.GetQueryUrl(), Custom: s.GetCustom(), Digest: string(s.GetDigest()), Tenant: s.GetTenant()}
	for _, b := range s.GetBranches() {
		out.Branches = append(out.Branches, record.BranchFromPB(b))
	}
	if i := txn.Cycle(out.Branches); i >= 0 {
		return txn.Spec{}, fmt.Errorf("branches: branch %q waits for itself in a circle", string(out.Branches[i].ID))
	}
	return out, nil
}

// checkMode refuses a mode that this version does not know; none says that 0, no mode, will do.
func checkMode(mode uint32, none bool) error {
	if (mode == 0 && none) || (mode >= uint32(txn.ModeTCC) && mode <= uint32(txn.ModeWorkflow)) {
		return nil
	}
	return fmt.Errorf("mode: %d is unknown: the coordinators of a region must not be more than one version apart", mode)
}

// millisMax is the longest time in milliseconds that a time.Duration holds.
const millisMax = math.MaxInt64 / int64(time.Millisecond)

func checkOptions(o *recordpb.Options) error {
	if o.GetProtocol() > uint32(txn.ProtocolJSONRPC) {
		return fmt.Errorf("options.protocol: %d is unknown: the coordinators of a region must not be more than one version apart", o.GetProtocol())
	}
	if o.GetDurability() > uint32(txn.Global) {
		return fmt.Errorf("options.durability: %d is unknown: coordinators must not be more than one version apart", o.GetDurability())
	}
	for _, d := range []struct {
		field string
		ms    int64
	}{{"timeout_ms", o.GetTimeoutMs()}, {"request_timeout_ms", o.GetRequestTimeoutMs()}, {"retry_interval_ms", o.GetRetryIntervalMs()}, {"delay_ms", o.GetDelayMs()}, {"retry_limit", int64(o.GetRetryLimit())}} {
		if d.ms < 0 || d.ms > millisMax {
			return fmt.Errorf("options.%s: %d is out of range", d.field, d.ms)
		}
	}
	return nil
}

// checkBranches refuses branches at which the core would stop the process: what a peer sends is input.
func checkBranches(bs []*recordpb.Branch) error {
	seen := make(map[string]bool, len(bs))
	for i, b := range bs {
		if seen[b.GetId()] {
			return fmt.Errorf("branches: id %q stands twice", b.GetId())
		}
		seen[b.GetId()] = true
		for _, j := range b.GetAfter() {
			if int(j) >= len(bs) || int(j) == i {
				return fmt.Errorf("branches: branch %q waits for branch %d of %d", b.GetId(), j, len(bs))
			}
		}
	}
	return nil
}

// encode gives a request's wire form.
func encode(r engine.Request) (*peerpb.DoRequest, error) {
	out := &peerpb.DoRequest{Gid: string(r.Gid), Want: uint32(r.Want), Resent: r.Resent, Border: r.Border && r.Hops == 0}
	switch e := r.Event.(type) {
	case nil:
	case txn.Prepare:
		out.Event = &peerpb.DoRequest_Prepare{Prepare: specToPB(&e.Spec)}
	case txn.Register:
		out.Event = &peerpb.DoRequest_Register{Register: &peerpb.Register{Mode: uint32(e.Mode), Branch: record.BranchToPB(&e.Branch)}}
	case txn.RegisterStep:
		out.Event = &peerpb.DoRequest_RegisterStep{RegisterStep: record.StepToPB(&e.Step)}
	case txn.Submit:
		out.Event = &peerpb.DoRequest_Submit{Submit: specToPB(&e.Spec)}
	case txn.Execute:
		out.Event = &peerpb.DoRequest_Execute{Execute: specToPB(&e.Spec)}
	case txn.EndWorkflow:
		out.Event = &peerpb.DoRequest_EndWorkflow{EndWorkflow: &peerpb.EndWorkflow{Commit: e.Commit, Reason: e.Reason, Result: e.Result}}
	case txn.Abort:
		out.Event = &peerpb.DoRequest_Abort{Abort: &peerpb.Abort{Mode: uint32(e.Mode), Reason: e.Reason}}
	case txn.Stop:
		out.Event = &peerpb.DoRequest_Stop{Stop: &peerpb.Empty{}}
	case txn.Retry:
		out.Event = &peerpb.DoRequest_Retry{Retry: &peerpb.Empty{}}
	case txn.Resolve:
		out.Event = &peerpb.DoRequest_Resolve{Resolve: &peerpb.Resolve{Commit: e.Commit, Reason: e.Reason}}
	case engine.Adopt:
		raw, err := e.Tx.Encode()
		if err != nil {
			return nil, err
		}
		out.Event = &peerpb.DoRequest_Adopt{Adopt: raw}
	case engine.Returned:
		raw, err := e.Tx.Encode()
		if err != nil {
			return nil, err
		}
		out.Event = &peerpb.DoRequest_Returned{Returned: raw}
	default:
		return nil, fmt.Errorf("a %T cannot be forwarded", e)
	}
	return out, nil
}

// decode reads what encode gave. It counts as one hop. What encode cannot have given is an error.
func decode(in *peerpb.DoRequest) (r engine.Request, err error) {
	if in.GetGid() == "" || len(in.GetGid()) > txn.GidBytesMax {
		return r, fmt.Errorf("gid: it has %d bytes, not 1 to %d", len(in.GetGid()), txn.GidBytesMax)
	}
	if in.GetWant() < uint32(engine.WantAccepted) || in.GetWant() > uint32(engine.WantOption) {
		return r, fmt.Errorf("want: unknown milestone %d: the coordinators of a region must not be more than one version apart", in.GetWant())
	}
	r = engine.Request{Gid: txn.Gid(in.GetGid()), Want: engine.Want(in.GetWant()), Hops: 1, Resent: in.GetResent()}
	if in.GetBorder() {
		r.Hops, r.Border = 0, true
	}
	switch e := in.GetEvent().(type) {
	case nil:
	case *peerpb.DoRequest_Prepare:
		var sp txn.Spec
		sp, err = specFromPB(e.Prepare)
		r.Event = txn.Prepare{Spec: sp}
	case *peerpb.DoRequest_Register:
		err = errors.Join(checkMode(e.Register.GetMode(), true), checkAlone(e.Register.GetBranch()))
		r.Event = txn.Register{Mode: txn.Mode(e.Register.GetMode()), Branch: record.BranchFromPB(e.Register.GetBranch())}
	case *peerpb.DoRequest_RegisterStep:
		r.Event = txn.RegisterStep{Step: record.StepFromPB(e.RegisterStep)}
	case *peerpb.DoRequest_Submit:
		var sp txn.Spec
		sp, err = specFromPB(e.Submit)
		r.Event = txn.Submit{Spec: sp}
	case *peerpb.DoRequest_Execute:
		var sp txn.Spec
		sp, err = specFromPB(e.Execute)
		r.Event = txn.Execute{Spec: sp}
	case *peerpb.DoRequest_EndWorkflow:
		r.Event = txn.EndWorkflow{Commit: e.EndWorkflow.GetCommit(), Reason: e.EndWorkflow.GetReason(), Result: e.EndWorkflow.GetResult()}
	case *peerpb.DoRequest_Abort:
		err = checkMode(e.Abort.GetMode(), true)
		r.Event = txn.Abort{Mode: txn.Mode(e.Abort.GetMode()), Reason: e.Abort.GetReason()}
	case *peerpb.DoRequest_Stop:
		r.Event = txn.Stop{}
	case *peerpb.DoRequest_Retry:
		r.Event = txn.Retry{}
	case *peerpb.DoRequest_Resolve:
		r.Event = txn.Resolve{Commit: e.Resolve.GetCommit(), Reason: e.Resolve.GetReason()}
	case *peerpb.DoRequest_Adopt:
		tx, err := recordOf(r.Gid, "adopt", e.Adopt)
		if err != nil {
			return r, err
		}
		r.Event = engine.Adopt{Tx: *tx}
	case *peerpb.DoRequest_Returned:
		tx, err := recordOf(r.Gid, "returned", e.Returned)
		if err != nil {
			return r, err
		}
		r.Event = engine.Returned{Tx: *tx}
	default:
		return r, fmt.Errorf("unknown request %T: the coordinators of a region must not be more than one version apart", e)
	}
	return r, err
}

// recordOf reads the record that a request brings of its own transaction.
func recordOf(gid txn.Gid, field string, raw []byte) (*record.Tx, error) {
	tx, err := record.Decode(raw)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", field, err)
	}
	if tx.State.Gid != gid {
		return nil, fmt.Errorf("%s: it is the record of %q, not of %q", field, string(tx.State.Gid), string(gid))
	}
	return tx, nil
}

// checkAlone refuses a registered branch that waits for others: those who register make the forward calls themselves.
func checkAlone(b *recordpb.Branch) error {
	if len(b.GetAfter()) > 0 {
		return fmt.Errorf("branch: %q waits for others", b.GetId())
	}
	return nil
}
