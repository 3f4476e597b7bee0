package peer

import (
	"fmt"

	"github.com/lockstep-tx/lockstep/coordinator/engine"
	"github.com/lockstep-tx/lockstep/coordinator/peer/peerpb"
	"github.com/lockstep-tx/lockstep/coordinator/record"
	"github.com/lockstep-tx/lockstep/coordinator/txn"
)

func specToPB(s *txn.Spec) *peerpb.Spec {
	out := &peerpb.Spec{Mode: uint32(s.Mode), Options: record.OptionsToPB(&s.Opt), QueryUrl: s.QueryURL, Custom: s.Custom, Digest: []byte(s.Digest), Tenant: s.Tenant}
	for i := range s.Branches {
		out.Branches = append(out.Branches, record.BranchToPB(&s.Branches[i]))
	}
	return out
}

func specFromPB(s *peerpb.Spec) txn.Spec {
	out := txn.Spec{Mode: txn.Mode(s.GetMode()), Opt: record.OptionsFromPB(s.GetOptions()), QueryURL: s.GetQueryUrl(), Custom: s.GetCustom(), Digest: string(s.GetDigest()), Tenant: s.GetTenant()}
	for _, b := range s.GetBranches() {
		out.Branches = append(out.Branches, record.BranchFromPB(b))
	}
	return out
}

// encode gives a request's wire form.
func encode(r engine.Request) (*peerpb.DoRequest, error) {
	out := &peerpb.DoRequest{Gid: string(r.Gid), Want: uint32(r.Want), Resent: r.Resent}
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
	case engine.Adopt:
		raw, err := e.Tx.Encode()
		if err != nil {
			return nil, err
		}
		out.Event = &peerpb.DoRequest_Adopt{Adopt: raw}
	default:
		return nil, fmt.Errorf("a %T cannot be forwarded", e)
	}
	return out, nil
}

// decode reads what encode gave. It counts as one hop.
func decode(in *peerpb.DoRequest) (engine.Request, error) {
	r := engine.Request{Gid: txn.Gid(in.GetGid()), Want: engine.Want(in.GetWant()), Hops: 1, Resent: in.GetResent()}
	switch e := in.GetEvent().(type) {
	case nil:
	case *peerpb.DoRequest_Prepare:
		r.Event = txn.Prepare{Spec: specFromPB(e.Prepare)}
	case *peerpb.DoRequest_Register:
		r.Event = txn.Register{Mode: txn.Mode(e.Register.GetMode()), Branch: record.BranchFromPB(e.Register.GetBranch())}
	case *peerpb.DoRequest_RegisterStep:
		r.Event = txn.RegisterStep{Step: record.StepFromPB(e.RegisterStep)}
	case *peerpb.DoRequest_Submit:
		r.Event = txn.Submit{Spec: specFromPB(e.Submit)}
	case *peerpb.DoRequest_Execute:
		r.Event = txn.Execute{Spec: specFromPB(e.Execute)}
	case *peerpb.DoRequest_EndWorkflow:
		r.Event = txn.EndWorkflow{Commit: e.EndWorkflow.GetCommit(), Reason: e.EndWorkflow.GetReason(), Result: e.EndWorkflow.GetResult()}
	case *peerpb.DoRequest_Abort:
		r.Event = txn.Abort{Mode: txn.Mode(e.Abort.GetMode()), Reason: e.Abort.GetReason()}
	case *peerpb.DoRequest_Stop:
		r.Event = txn.Stop{}
	case *peerpb.DoRequest_Retry:
		r.Event = txn.Retry{}
	case *peerpb.DoRequest_Adopt:
		tx, err := record.Decode(e.Adopt)
		if err != nil {
			return r, err
		}
		r.Event = engine.Adopt{Tx: *tx}
	default:
		return r, fmt.Errorf("unknown request %T: the coordinators of a region must not be more than one version apart", e)
	}
	if r.Want < engine.WantAccepted || r.Want > engine.WantOption {
		return r, fmt.Errorf("unknown milestone %d", r.Want)
	}
	return r, nil
}
