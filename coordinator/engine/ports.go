package engine

import (
	"context"
	"errors"
	"time"

	"github.com/lockstep-tx/lockstep/coordinator/record"
	"github.com/lockstep-tx/lockstep/coordinator/txn"
	"github.com/lockstep-tx/lockstep/region/slot"
)

// Term is the revision at which a holder took a slot. It is opaque: compare it for equality only.
type Term int64

// Errors of a Store. After ErrFenced, ErrBusy and ErrTooLarge nothing was written. After any other error, those of
// the context included, the outcome is unknown.
var (
	// ErrFenced: the term of a slot in the batch has moved. FencedError says which.
	ErrFenced = errors.New("fenced: another holder has taken the slot")
	// ErrBusy: the store refuses work for now.
	ErrBusy = errors.New("store is busy")
	// ErrTooLarge: the batch is larger than the store takes.
	ErrTooLarge = errors.New("batch is too large for the store")
)

// FencedError carries the slots whose term has moved. It is ErrFenced.
type FencedError struct{ Slots []int }

func (e *FencedError) Error() string { return ErrFenced.Error() }

// Unwrap makes it ErrFenced.
func (e *FencedError) Unwrap() error { return ErrFenced }

// Batch is written as a whole or not at all. Every slot that it touches has exactly one guard. A gid stands in it at
// most once. The store keeps no reference to it after Commit returns.
type Batch struct {
	Guards  []Guard
	Puts    []Put
	Deletes []Delete
	Events  []record.Event
}

// Guard compares a slot's term; where Head is not nil the slot's outbox head is written with the batch.
type Guard struct {
	Slot int
	Term Term
	Head *record.Head
	// Close ends the slot's epoch with the batch: the term ends too, and nobody takes the slot at this epoch again.
	Close bool
	// Imported, where it is not 0, says with the batch that all that came with the seal of that epoch is in the store.
	Imported uint64
}

// Put writes a record.
type Put struct {
	Slot  int
	Gid   txn.Gid
	Value []byte
}

// Delete removes a record.
type Delete struct {
	Slot int
	Gid  txn.Gid
}

// Claim is a slot as its new holder found it.
type Claim struct {
	Slot  int
	Term  Term
	Epoch uint64
	Head  record.Head
	// Prev is the term that this one follows: whoever held that was the last to write.
	Prev Term
	// Imported is the epoch whose seal the slot's last import came with; 0 where there was none.
	Imported uint64
	// Generation of the slot's global decisions, read after it was taken and before its records; the runner fills it in.
	Generation int64
	// Closed: the slot's epoch is closed at Head, and the epoch that was asked for is not above it. It was not taken; Term
	// is 0.
	Closed bool
}

// Member is one live coordinator process of the region. Addresses are host:port, empty where it does not listen.
type Member struct {
	ID    string `json:"id"`
	GRPC  string `json:"grpc"`
	HTTP  string `json:"http"`
	Admin string `json:"admin"`
}

// View is what is known of the region's coordinators. It may be old: it prompts, it never proves.
type View struct {
	Members []Member
	Holders [slot.Count]string // member id by slot; "" where nobody holds it
	Terms   [slot.Count]Term   // by slot; a later view's term of a slot is never smaller
	Closed  [slot.Count]uint64 // by slot: the epoch for which it is closed; 0 while it is not
}

// Usage is how full the store is. QuotaBytes 0 means unbounded.
type Usage struct {
	UsedBytes, QuotaBytes int64
}

// Store keeps the live transactions of one region. The conformance suite is storetest. Safe for concurrent use.
type Store interface {
	// Commit writes b if every guard's term still stands: atomically, durable on nil (etcdstore: on disk at a
	// quorum). ErrFenced (a *FencedError), ErrBusy and ErrTooLarge mean that nothing was written; after any other
	// error the outcome is unknown, and the caller takes new terms for all of the batch's slots before anything else. A
	// batch of guards alone writes nothing and is compared all the same, in the store's order with all writes: nil says
	// that nobody had taken the slots when it was (ADR 2 reads by it).
	Commit(ctx context.Context, b *Batch) error
	// Claim takes the slots for holder whoever holds them, and gives each one's new term. epoch gives the epoch at which a
	// slot is taken; nil, or 0, leaves it as it stands (1 at first). A slot whose record moved while it was claimed is left
	// out, and so is one that stands at a higher epoch; one that is closed is given as Closed. On an error some may have
	// been taken.
	Claim(ctx context.Context, holder string, slots []int, epoch func(n int) uint64) ([]Claim, error)
	// Release gives up the slot if the term still stands; ErrFenced when it does not.
	Release(ctx context.Context, slot int, term Term) error
	// Load reads every record of a slot, in the order of their gids. It sees at least all that was written under a
	// term before the last Claim returned. The value belongs to the callee.
	Load(ctx context.Context, slot int, each func(gid txn.Gid, value []byte) error) error
	// Get reads one record; nil when there is none.
	Get(ctx context.Context, gid txn.Gid) ([]byte, error)
	// Events reads the slot's own events (carries and seals) that were not forgotten, in the order of their numbers.
	Events(ctx context.Context, slot int) ([]record.Event, error)
	// ForgetEvents removes the slot's own events up to a number: the journal has them. It needs no term, for a number is
	// given out once.
	ForgetEvents(ctx context.Context, slot int, upTo uint64) error
	// Purge removes every record of a slot that is closed for the epoch given; ErrFenced when it is not. The next owner has
	// them.
	Purge(ctx context.Context, slot int, epoch uint64) error
	// Join announces m until ctx ends or the announcement is lost, and then returns why. ttl bounds how long the
	// announcement of a dead process stays.
	Join(ctx context.Context, m Member, ttl time.Duration) error
	// Watch gives the view now and after every change until ctx ends, and then closes the channel. Views may be
	// skipped, the latest never is.
	Watch(ctx context.Context) (<-chan View, error)
	// Usage tells how full the store is.
	Usage(ctx context.Context) (Usage, error)
	// KV gives the region's small shared table (topics). Reads are linearizable.
	KV() KV
}

// KVPair is one row of the shared table.
type KVPair struct {
	Cat, Key, Value string
	Version         int64 // 1 on creation, grows by one with each change
	Rev             int64 // opaque; for Set
	CreatedAt       int64 // unix milliseconds
	UpdatedAt       int64
}

// ErrConflict: the row changed since it was read. Nothing was written.
var ErrConflict = errors.New("the row was changed by somebody else")

// KV is a small shared table by category and key.
type KV interface {
	// Find reads a row; false when there is none.
	Find(ctx context.Context, cat, key string) (KVPair, bool, error)
	// Scan lists at most limit rows of a category whose keys follow after, in the order of keys.
	Scan(ctx context.Context, cat, after string, limit int) ([]KVPair, error)
	// Set writes a row if its stored Rev is still p.Rev; 0 means that it must not exist. It counts Version itself.
	Set(ctx context.Context, p KVPair) error
	// Delete removes a row if its stored Rev is still rev.
	Delete(ctx context.Context, cat, key string, rev int64) error
}

// Call is one branch call to be made. Its slices and maps are not changed by either side.
type Call struct {
	Gid      txn.Gid
	Slot     int
	Term     Term
	Epoch    uint64
	Mode     txn.Mode
	Branch   txn.BranchID
	Op       txn.Op
	OpWord   string // the word in the call: DTM's, or a workflow's name for a callback
	Attempt  int
	URL      string
	Protocol txn.Protocol
	Payload  []byte
	Headers  map[string]string
	Timeout  time.Duration
	// Account that the branch names, "" for none. AccountSlot and AccountEpoch are its slot and that slot's epoch; whoever
	// resolves the call's address fills them in, until then they are the transaction's own.
	Account      string
	AccountSlot  int
	AccountEpoch uint64
	// Global: the transaction's commit point is the arbiter.
	Global bool
	// Results of earlier branches that this one asked for, by branch id.
	Results []BranchResult
	// WantResult: the answer's body is kept for later branches.
	WantResult bool
}

// BranchResult is what the forward call of a branch answered.
type BranchResult struct {
	Branch txn.BranchID
	Body   []byte
}

// CallResult is what is known after a call.
type CallResult struct {
	Call       *Call
	Outcome    txn.Outcome
	Text       string
	Result     []byte
	StartedAt  time.Time
	Took       time.Duration
	RetryAfter time.Duration // of a Deferred call
}

// Invoker calls branches. Start returns at once; done is called exactly once per call, from any goroutine, also when
// ctx of Run ends (with Unknown). Safe for concurrent use.
type Invoker interface {
	Start(c *Call, done func(CallResult))
}

// Row is what the journal keeps of a decided transaction. Progress is nil while its finish is not known.
type Row struct {
	Gid                        txn.Gid
	Slot                       int
	Mode                       txn.Mode
	Phase                      txn.Phase
	BegunAt, DecidedAt         int64
	FinishedAt                 int64
	Closed, Progress           []byte
	Decision, Finish           record.Head
	DecisionEpoch, FinishEpoch uint64
}

// Filter of a listing. Zero fields do not filter.
type Filter struct {
	Phases    []txn.Phase
	Mode      txn.Mode
	Slot      int // -1 means any
	GidPrefix string
	// BegunAfter and BegunBefore are unix milliseconds.
	BegunAfter, BegunBefore int64
	// StuckFails: only transactions one of whose owed calls failed at least so often in a row.
	StuckFails int
	// Stopped: only those that an operator stopped.
	Stopped bool
	// InDoubt: only those of a lost region that nobody knows the decision of.
	InDoubt bool
}

// Journal is the region's SQL record of every decided and finished transaction. Safe for concurrent use.
type Journal interface {
	// Append stores rows, idempotent by gid: a row with a finish completes one without, and never the other way
	// round. Durable on nil. On an error all of it may be repeated.
	Append(ctx context.Context, rows []Row) error
	// AppendEvents stores carries and seals of this region, idempotent by slot and number. Durable on nil.
	AppendEvents(ctx context.Context, events []record.Event) error
	// Get reads one transaction; nil when the journal has none with that gid. Where only the outcome is still kept,
	// the state has no branches and Trimmed is set.
	Get(ctx context.Context, gid txn.Gid) (*record.Tx, error)
	// Gids calls each for every gid kept, in no order.
	Gids(ctx context.Context, each func(txn.Gid)) error
	// List gives at most limit transactions that match, newest first, and the cursor for the next page, "" at the
	// end. The first page's cursor is "". Transactions finished before visibleSince (unix ms) are left out.
	List(ctx context.Context, f Filter, cursor string, limit int, visibleSince int64) ([]*record.Tx, string, error)
	// Trim drops the bodies of transactions finished before bodies, and whole rows finished before rows (unix ms), at
	// most limit of each; it says how many it touched.
	Trim(ctx context.Context, bodies, rows int64, limit int) (int, error)
}

// Forwarder hands a request to another coordinator of the region. It makes one hop: the other one never forwards it
// again, but answers ErrNotHolder.
type Forwarder interface {
	Forward(ctx context.Context, to Member, req Request) (Reply, error)
}

// Clock tells the coordinator's time. It serves timers and time stamps, never safety.
type Clock interface {
	// NowMillis is the time in unix milliseconds; it never goes back.
	NowMillis() int64
}
