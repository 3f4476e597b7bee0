package admin

import (
	"context"
	"errors"
	"net/http"
	"strings"

	"github.com/lockstep-tx/lockstep/coordinator/engine"
	"github.com/lockstep-tx/lockstep/coordinator/record"
	"github.com/lockstep-tx/lockstep/coordinator/txn"
)

// Late knows the records of transactions that a lost region had and that were not taken over (ADR 9). Safe for concurrent use.
type Late interface {
	// Record gives one as this region has it; nil where it has none.
	Record(ctx context.Context, gid txn.Gid) (*record.Tx, error)
	// Post posts the effects of a committed transaction's branches to all copies that do not have them. nil: all have.
	Post(ctx context.Context, tx *record.Tx) error
}

// reasonBytesMax bounds a reason.
const reasonBytesMax = 500

// resolve ends a transaction in doubt on an operator's word, or takes over one that a lost region had committed.
func (s *Server) resolve(w http.ResponseWriter, r *http.Request) {
	gid, ok := s.gidOf(w, r)
	if !ok {
		return
	}
	q := r.URL.Query()
	reason, word := strings.TrimSpace(q.Get("reason")), q.Get("decision")
	bad := func(field, text string) {
		writeError(w, http.StatusBadRequest, &Error{Code: "invalid", Text: field + ": " + text, Next: "lockstep tx resolve --help"})
	}
	switch {
	case reason == "" || len(reason) > reasonBytesMax:
		bad("reason", "say in 1 to 500 bytes on whose word it is resolved")
		return
	case word != "commit" && word != "abort":
		bad("decision", "it is neither commit nor abort")
		return
	}
	rep, err := s.resolved(r.Context(), txn.Gid(gid), word == "commit", "operator: "+reason)
	AuditOf(r.Context(), s.Log, "resolve", err, "gid", gid, "decision", word, "reason", reason)
	if err != nil {
		refused(w, gid, err)
		return
	}
	write(w, http.StatusOK, ViewOf(&rep, true))
}

func (s *Server) resolved(ctx context.Context, gid txn.Gid, commit bool, reason string) (engine.Reply, error) {
	if commit && s.Late != nil {
		if err := s.contradicted(ctx, gid); err != nil {
			return engine.Reply{}, err
		}
	}
	rep, err := s.Engine.Do(ctx, engine.Request{Gid: gid, Event: txn.Resolve{Commit: commit, Reason: reason}, Want: engine.WantAccepted})
	var refused *txn.Error
	unknown := errors.As(err, &refused) && refused.Code == txn.CodeNotFound
	if !commit || s.Late == nil || err != nil && !unknown {
		return rep, err
	}
	late, lerr := s.Late.Record(ctx, gid)
	switch {
	case lerr != nil:
		return rep, lerr
	case late == nil:
		return rep, err
	case unknown && !late.State.Phase.Commit():
		return rep, err // nobody has committed it: there is nothing to take over
	case unknown:
		if rep, err = s.Engine.Do(ctx, engine.Request{Gid: gid, Event: engine.Adopt{Tx: *late}, Want: engine.WantAccepted}); err != nil {
			return rep, err
		}
	}
	// The lost region's record may have branches that nobody here knew of, and an account of it may have no money any more.
	return rep, s.Late.Post(ctx, late)
}

// contradicted is why a transaction is not to be committed: a record of it is here, the lost region's as a rule, that is aborted. Its
// participants have cancelled, and its client was told so; effects posted from that record would be a commit and a cancel of one
// transaction.
func (s *Server) contradicted(ctx context.Context, gid txn.Gid) error {
	late, err := s.Late.Record(ctx, gid)
	if err != nil || late == nil || !late.State.Phase.Decided() || late.State.Phase.Commit() {
		return err
	}
	return &txn.Error{Code: txn.CodePhase, Gid: gid, Phase: late.State.Phase, Text: "this region has a record of it that says it was aborted: its participants were told to cancel, and nothing is posted"}
}
