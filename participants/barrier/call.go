package barrier

import (
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/lockstep-tx/lockstep/region/slot"
)

// SlotCount is how many slots a deployment has, for ever.
const SlotCount = slot.Count

// SlotOf returns the slot of a gid: a hash of its tag, or of the whole gid where it has none (see package slot).
func SlotOf(gid string) int { return slot.Of(gid) }

// The operations of DTM's protocol that a barrier tells apart. Others (a participant's own) are stored as they are and
// have neither tombstones nor opposites.
const (
	OpTry        = "try"
	OpConfirm    = "confirm"
	OpCancel     = "cancel"
	OpAction     = "action"
	OpCompensate = "compensate"
	OpCommit     = "commit"
	OpRollback   = "rollback"
	OpMsg        = "msg"
)

// undoes returns the operation that op takes back, "" if none.
func undoes(op string) string {
	switch op {
	case OpCancel:
		return OpTry
	case OpCompensate, OpRollback:
		return OpAction
	}
	return ""
}

// rivalOf returns the operation on whose row op and its opposite take turns: for those that confirm; "" for others.
func rivalOf(op string) string {
	switch op {
	case OpConfirm:
		return OpTry
	case OpCommit:
		return OpAction
	}
	return ""
}

// opposites returns the operations that contradict op.
func opposites(op string) []string {
	switch {
	case undoes(op) != "":
		return []string{OpConfirm, OpCommit}
	case rivalOf(op) != "":
		return []string{OpCancel, OpRollback}
	}
	return nil
}

// coordinatorOnly says whether nobody but a coordinator makes such a call. DTM's clients make tries, a workflow's steps
// in both directions, and a message's local part themselves, and know no epoch.
func coordinatorOnly(transType, op string) bool {
	switch op {
	case OpConfirm, OpCancel:
		return true
	case OpAction, OpCompensate:
		return transType == "saga" || transType == "msg"
	}
	return false
}

// Fence is a slot with the epoch at which its owner speaks. Epoch 0 means that none was given.
type Fence struct {
	Slot  int
	Epoch int64
}

func (f Fence) given() bool { return f.Epoch != 0 }

// Given says whether the call carries the fence.
func (f Fence) Given() bool { return f.given() }

// Call identifies one branch call. It belongs to one handler run and is not safe for concurrent use: Do counts on it.
type Call struct {
	TransType string // tcc, saga, msg, xa, workflow
	Gid       string
	BranchID  string
	Op        string
	Fence     Fence // of the transaction; its slot is always SlotOf(Gid)
	Account   Fence // of the account the branch works on; zero if the transaction's own slot stands for it

	// Apply: the effect of a confirm that was decided elsewhere is posted to a copy, or confirmed at a home. It shares the
	// confirm's row; Op is OpConfirm, and it carries no epochs: the journal it comes from is the authority. Account.Slot must
	// be set. With OpTry it rebuilds at a copy what was held at a home that is lost (ADR 9): it shares the try's row, and no
	// Policy counts.
	Apply bool
	// Named: the call carries no epoch (a DTM client makes its tries itself) and Account.Slot is its account's all the same:
	// the participant has read it from the payload.
	Named bool
	// Global: the transaction's commit point is the arbiter (durability global), so that what this try did can be settled
	// after its region is lost. It is written beside the try.
	Global bool
	// Suspense: what the account's limits do not let Apply post goes through a suspense account. Only an apply can have it.
	Suspense bool

	calls  int    // the barrier_id last given out
	policy Policy // of the account's slot, as the fence row says it under this call's lock
}

// Policy is what the slot of the call's account is allowed after a forced failover. The fence row is locked for as long as
// the call's local transaction, so that a change of the policy is before it or after it. Zero outside a barrier's function.
func (c *Call) Policy() Policy { return c.policy }

// rule notes the policy that the call is under. What is rebuilt was judged at the home that is lost.
func (c *Call) rule(f *facts) {
	c.policy = Policy{}
	if !c.Apply || c.Op != OpTry {
		c.policy = f.fences[c.account()].policy
	}
}

// String names the call in errors.
func (c *Call) String() string {
	return fmt.Sprintf("%s %s branch %s %s", c.TransType, c.Gid, c.BranchID, c.Op)
}

// CheckID returns an error that wraps ErrInvalid and names the field unless value can be an id: 1 to max bytes of UTF-8,
// without control characters and without spaces at its ends. A database that cannot store a text, or compares it without
// its last spaces as MariaDB does, would take two ids for one.
func CheckID(field, value string, max int) error {
	if value == "" || len(value) > max {
		return fmt.Errorf("%w: %s has %d bytes; 1 to %d are possible", ErrInvalid, field, len(value), max)
	}
	if !utf8.ValidString(value) || strings.ContainsFunc(value, unicode.IsControl) || strings.TrimSpace(value) != value {
		return fmt.Errorf("%w: %s %q: UTF-8 without control characters and without spaces at its ends is possible", ErrInvalid, field, value)
	}
	return nil
}

func (c *Call) validate() error {
	for _, f := range []struct {
		name, value string
		max         int // DTM's column widths, so that every dialect holds what one of them holds
	}{{"gid", c.Gid, 128}, {"trans_type", c.TransType, 45}, {"branch_id", c.BranchID, 128}, {"op", c.Op, 45}} {
		if err := CheckID(f.name, f.value, f.max); err != nil {
			return err
		}
	}
	if c.calls > 99 {
		return fmt.Errorf("%w: more than 99 barrier calls in one handler", ErrInvalid)
	}
	if own := SlotOf(c.Gid); c.Fence.given() && c.Fence.Slot != own {
		return fmt.Errorf("%w: gid %s is in slot %d, the call names slot %d", ErrInvalid, c.Gid, own, c.Fence.Slot)
	}
	for _, f := range []Fence{c.Fence, c.Account} {
		if f.Slot < 0 || f.Slot >= SlotCount || f.Epoch < 0 {
			return fmt.Errorf("%w: slot %d at epoch %d", ErrInvalid, f.Slot, f.Epoch)
		}
	}
	return nil
}

// The names under which a call's fences travel, as HTTP headers and (in lower case) as gRPC metadata.
const (
	HeaderSlot         = "Lockstep-Slot"
	HeaderEpoch        = "Lockstep-Epoch"
	HeaderAccountSlot  = "Lockstep-Account-Slot"
	HeaderAccountEpoch = "Lockstep-Account-Epoch"
	// HeaderDurability is regional (which none stands for) or global.
	HeaderDurability = "Lockstep-Durability"
	// HeaderSuspense is true on an apply that may post past a limit.
	HeaderSuspense = "Lockstep-Suspense"
)

// The durabilities of a transaction, as they travel and as they are stored.
const (
	DurabilityRegional = "regional"
	DurabilityGlobal   = "global"
)

// ReadDurability sets Global from the text of HeaderDurability; ErrInvalid names the header.
func (c *Call) ReadDurability(text string) error {
	switch text {
	case "", DurabilityRegional, DurabilityGlobal:
		c.Global = text == DurabilityGlobal
		return nil
	}
	return fmt.Errorf("%w: %s %q: regional and global are possible", ErrInvalid, HeaderDurability, text)
}

// opApply is the op of an apply on its way, before it becomes a confirm (package branch).
const opApply = "apply"

// ReadSuspense sets Suspense from the text of HeaderSuspense; ErrInvalid names the header.
func (c *Call) ReadSuspense(text string) error {
	switch {
	case text != "" && text != "true" && text != "false":
		return fmt.Errorf("%w: %s %q: true and false are possible", ErrInvalid, HeaderSuspense, text)
	case text == "true" && c.Op != opApply:
		return fmt.Errorf("%w: %s: only an apply may post past a limit, not a %s", ErrInvalid, HeaderSuspense, c.Op)
	}
	c.Suspense = text == "true"
	return nil
}

// FromHTTP reads a call from a DTM-style HTTP request: identity in the query, fences in the headers. Errors wrap
// ErrInvalid. The body is not touched.
func FromHTTP(r *http.Request) (*Call, error) {
	q, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return nil, fmt.Errorf("%w: query: %w", ErrInvalid, err)
	}
	return parse(q.Get, "", r.Header.Get)
}

// FromMetadata reads a call from the incoming metadata of a DTM-style gRPC call (metadata.MD is such a map). Errors wrap
// ErrInvalid.
func FromMetadata(md map[string][]string) (*Call, error) {
	get := func(name string) string {
		if v := md[strings.ToLower(name)]; len(v) > 0 {
			return v[0]
		}
		return ""
	}
	return parse(get, "dtm-", get)
}

func parse(identity func(string) string, prefix string, header func(string) string) (*Call, error) {
	fence, err := parseFence(header, HeaderSlot, HeaderEpoch)
	if err != nil {
		return nil, err
	}
	account, err := parseFence(header, HeaderAccountSlot, HeaderAccountEpoch)
	if err != nil {
		return nil, err
	}
	c := &Call{
		TransType: identity(prefix + "trans_type"),
		Gid:       identity(prefix + "gid"),
		BranchID:  identity(prefix + "branch_id"),
		Op:        identity(prefix + "op"),
		Fence:     fence,
		Account:   account,
	}
	if err := c.ReadDurability(header(HeaderDurability)); err != nil {
		return c, err
	}
	if err := c.ReadSuspense(header(HeaderSuspense)); err != nil {
		return c, err
	}
	return c, c.validate()
}

func parseFence(header func(string) string, slotName, epochName string) (Fence, error) {
	number, epoch := header(slotName), header(epochName)
	if number == "" && epoch == "" {
		return Fence{}, nil
	}
	s, serr := strconv.Atoi(number)
	e, eerr := strconv.ParseInt(epoch, 10, 64)
	if serr != nil || eerr != nil || s < 0 || s >= SlotCount || e < 1 {
		return Fence{}, fmt.Errorf("%w: %s %q and %s %q; a slot from 0 to %d and an epoch from 1 up go together", ErrInvalid, slotName, number, epochName, epoch, SlotCount-1)
	}
	return Fence{s, e}, nil
}
