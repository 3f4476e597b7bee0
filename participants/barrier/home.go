package barrier

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
)

// This file is what happens to a slot's accounts when their home changes (DESIGN section 7, ADR 8): released here, adopted
// there, each in one local transaction under the slot's exclusive lock, so that every call is before it or after it.

// ErrMoved answers a call to an account whose home is not here, or not yet: nothing was done, and the coordinator makes it
// again at the home that it then knows. HTTP 421.
var ErrMoved = errors.New("the account's home is not here")

// RegionsFrom is the least epoch of a deployment with an arbiter: from there on a branch's account is written down.
const RegionsFrom = 100

// Row is one barrier row as it travels with its account.
type Row struct {
	TransType string `json:"t"`
	Gid       string `json:"g"`
	BranchID  string `json:"b"`
	Op        string `json:"o"`
	BarrierID string `json:"i"`
	Reason    string `json:"r"`
}

// Home is what one fence row says.
type Home struct {
	Slot  int   `json:"slot"`
	Epoch int64 `json:"epoch"`
	// Here: the slot's accounts have their home in this database; else it has copies of them.
	Here bool `json:"here"`
}

// snapshot is what a release gives and an adoption takes.
type snapshot struct {
	Slot  int             `json:"slot"`
	Epoch int64           `json:"epoch"` // of the release
	Rows  []Row           `json:"rows"`
	Data  json.RawMessage `json:"data,omitempty"`
	// LetGo: a demotion's, which is kept as evidence and never adopted.
	LetGo bool `json:"let_go,omitempty"`
	// Policy goes with the slot until it is lifted.
	Policy Policy `json:"policy,omitzero"`
}

func (b *Barrier) beside(name string) string {
	return strings.TrimSuffix(b.dialect.fence(), "fence") + name
}

// homeTables are beside the fence: which account's slot a branch has touched, and what releases gave.
func homeTables(d dialect, kind Dialect) []string {
	text, blob := "varchar(128)", "bytea"
	switch kind {
	case SQLite:
		text, blob = "TEXT", "BLOB"
	case MySQL:
		text, blob = "varchar(128) COLLATE utf8mb4_bin", "LONGBLOB"
	}
	prefix := strings.TrimSuffix(d.fence(), "fence")
	bySlot, index := "", fmt.Sprintf("CREATE INDEX IF NOT EXISTS %stouched_slot ON %stouched (slot)", strings.ReplaceAll(prefix, ".", "_"), prefix)
	if kind == MySQL {
		bySlot, index = ", KEY (slot)", "DO 0"
	}
	return []string{
		fmt.Sprintf("CREATE TABLE IF NOT EXISTS %stouched (slot int NOT NULL, gid %s NOT NULL, branch_id %s NOT NULL, PRIMARY KEY (gid, branch_id, slot)%s)", prefix, text, text, bySlot),
		index,
		fmt.Sprintf("CREATE TABLE IF NOT EXISTS %sreleased (slot int NOT NULL, epoch bigint NOT NULL, snapshot %s NOT NULL, PRIMARY KEY (slot, epoch))", prefix, blob),
	}
}

// touch writes down which accounts' slots the calls have touched, and the durability of each try. Those of a deployment
// without regions are left out.
func (b *Barrier) touch(ctx context.Context, tx *sql.Tx, f *facts, calls []*Call, outcome func(i int) Outcome) error {
	var values []string
	var args []any
	for i, c := range calls {
		o := outcome(i)
		n := c.account()
		if c.inRegions(f.fences[n].epoch) && (o == Empty || o == Done && (c.Apply || undoes(c.Op) == "" && rivalOf(c.Op) == "")) {
			k := len(args)
			values = append(values, "("+b.dialect.arg(k+1)+", "+b.dialect.arg(k+2)+", "+b.dialect.arg(k+3)+", "+b.dialect.arg(k+4)+")")
			args = append(args, n, c.Gid, c.BranchID, c.durability())
		}
	}
	if len(args) == 0 {
		return nil
	}
	if _, err := tx.ExecContext(ctx, b.insertNew("touched (slot, gid, branch_id, durability)", strings.Join(values, ", ")), args...); err != nil {
		return fmt.Errorf("write down the accounts' slots: %w", err)
	}
	return nil
}

// insertNew inserts rows that are not there.
func (b *Barrier) insertNew(into, values string) string {
	if b.kind == MySQL {
		return "INSERT IGNORE INTO " + b.beside(into) + " VALUES " + values
	}
	return "INSERT INTO " + b.beside(into) + " VALUES " + values + " ON CONFLICT DO NOTHING"
}

// inRegions says whether the call is of a deployment with several regions: by its epochs, or, where a DTM client has made it
// and it carries none, by what the fence row of its account's slot has seen. Durability global exists nowhere else.
func (c *Call) inRegions(epoch int64) bool {
	switch {
	case c.Apply, c.Global, c.Account.Epoch >= RegionsFrom:
		return true
	case c.Account.given():
		return false
	case c.Fence.given() && !c.Named:
		return c.Fence.Epoch >= RegionsFrom
	}
	return epoch >= RegionsFrom
}

func (c *Call) durability() string {
	if c.Global && c.Op == OpTry {
		return DurabilityGlobal
	}
	return ""
}

// account is the slot of the account that the call works on.
func (c *Call) account() int {
	if c.Account.given() || c.Apply || c.Named {
		return c.Account.Slot
	}
	return SlotOf(c.Gid)
}

func slotsOf(homes []Home) []int {
	out := make([]int, len(homes))
	for i, h := range homes {
		out[i] = h.Slot
	}
	return out
}

// State reads all fence rows.
func (b *Barrier) State(ctx context.Context) ([]Home, error) {
	rows, err := b.db.QueryContext(ctx, "SELECT slot, epoch, copied FROM "+b.dialect.fence()+" ORDER BY slot")
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var out []Home
	for rows.Next() {
		var h Home
		var copied bool
		if err := rows.Scan(&h.Slot, &h.Epoch, &copied); err != nil {
			return nil, err
		}
		h.Here = !copied
		out = append(out, h)
	}
	return out, rows.Err()
}

// Release ends the home of a slot here: the fence row goes to epoch, which refuses every call of before, and says copy.
// take writes down what the slot's accounts have; rows are the barrier rows of the branches that touched them. What it
// gave is kept, so that a repeat answers the same. Durable on nil. ErrStale when the slot has been at a higher epoch.
func (b *Barrier) Release(ctx context.Context, slot int, epoch int64, take func(tx *sql.Tx, rows []Row) (json.RawMessage, error)) error {
	return b.change(ctx, []int{slot}, func(tx *sql.Tx, f *facts) error {
		row := f.fences[slot]
		if row.copied || row.epoch >= epoch {
			if has, err := b.hasReleased(ctx, tx, slot, epoch); err != nil || has {
				return err
			}
			return fmt.Errorf("%w: slot %d is at epoch %d, copy %v, and has no release at %d", ErrStale, slot, row.epoch, row.copied, epoch)
		}
		if _, err := tx.ExecContext(ctx, "DELETE FROM "+b.beside("released")+" WHERE slot = "+b.dialect.arg(1)+" AND let_go = 0", slot); err != nil {
			return err
		}
		if err := b.keep(ctx, tx, Home{Slot: slot, Epoch: epoch}, false, take); err != nil {
			return err
		}
		if err := b.setPolicy(ctx, tx, slot, Policy{}); err != nil {
			return err
		}
		return b.setFence(ctx, tx, Home{Slot: slot, Epoch: epoch})
	})
}

func (b *Barrier) hasReleased(ctx context.Context, q interface {
	QueryRowContext(context.Context, string, ...any) *sql.Row
}, slot int, epoch int64) (bool, error) {
	n := 0
	err := q.QueryRowContext(ctx, "SELECT count(*) FROM "+b.beside("released")+" WHERE slot = "+b.dialect.arg(1)+" AND epoch = "+b.dialect.arg(2)+" AND let_go = 0", slot, epoch).Scan(&n)
	return n > 0, err
}

// Released reads what a release gave, or what a demotion let go; nil when there was none at that epoch.
func (b *Barrier) Released(ctx context.Context, slot int, epoch int64) ([]byte, error) {
	var raw []byte
	err := b.db.QueryRowContext(ctx, "SELECT snapshot FROM "+b.beside("released")+" WHERE slot = "+b.dialect.arg(1)+" AND epoch = "+b.dialect.arg(2), slot, epoch).Scan(&raw)
	if errors.Is(err, sql.ErrNoRows) {
		return nil, nil
	}
	return raw, err
}

// LastReleased reads what the last release of a slot below an epoch gave; nil when there was none. What a demotion let go is
// no release: its holds live elsewhere.
func (b *Barrier) LastReleased(ctx context.Context, slot int, below int64) ([]byte, error) {
	var raw []byte
	a := b.dialect.arg
	err := b.db.QueryRowContext(ctx, "SELECT snapshot FROM "+b.beside("released")+" WHERE slot = "+a(1)+" AND epoch < "+a(2)+" AND let_go = 0 ORDER BY epoch DESC LIMIT 1", slot, below).Scan(&raw)
	if errors.Is(err, sql.ErrNoRows) {
		return nil, nil
	}
	return raw, err
}

// Adopt makes this database the home of a slot at epoch. raw is what a release gave, nil where nothing was released. give
// takes over what the accounts have; fresh are the barrier rows that were not here: what they stand for has not happened
// here. Durable on nil; a slot that has its home here at that epoch is left as it is. ErrStale when it has been at a higher
// epoch.
func (b *Barrier) Adopt(ctx context.Context, slot int, epoch int64, raw []byte, give func(tx *sql.Tx, data json.RawMessage, all, fresh []Row) error) error {
	var s snapshot
	if raw != nil {
		if err := json.Unmarshal(raw, &s); err != nil || s.Slot != slot || s.Epoch >= epoch {
			return fmt.Errorf("%w: what was released of slot %d at epoch %d is not for slot %d at epoch %d (%v)", ErrInvalid, s.Slot, s.Epoch, slot, epoch, err)
		}
		if s.LetGo {
			return fmt.Errorf("%w: slot %d was not released at epoch %d: its home was taken, and what it held is kept as evidence", ErrInvalid, slot, s.Epoch)
		}
	}
	return b.change(ctx, []int{slot}, func(tx *sql.Tx, f *facts) error {
		row := f.fences[slot]
		switch {
		case row.epoch > epoch:
			return fmt.Errorf("%w: slot %d is at epoch %d, not %d", ErrStale, slot, row.epoch, epoch)
		case row.copied && raw == nil && row.epoch >= RegionsFrom:
			return fmt.Errorf("%w: slot %d is a copy here, and nothing that was released came with its adoption", ErrInvalid, slot)
		}
		if row.copied && raw != nil {
			fresh, err := b.insertRows(ctx, tx, slot, s.Rows)
			if err != nil {
				return err
			}
			if err := give(tx, s.Data, s.Rows, fresh); err != nil {
				return err
			}
			if err := b.setPolicy(ctx, tx, slot, s.Policy); err != nil {
				return err
			}
		}
		return b.setFence(ctx, tx, Home{Slot: slot, Epoch: epoch, Here: true})
	})
}

// Refuse makes every later call of the transaction refused that carries an epoch below the one given, and writes a
// tombstone for each branch that has not been here, so that a late try is refused too. It tells of each branch what had
// been here: none, tried, confirmed, cancelled. Durable on nil; ErrStale when the slot has been at a higher epoch.
func (b *Barrier) Refuse(ctx context.Context, gid string, epoch int64, branches []string) (map[string]string, error) {
	out := map[string]string{}
	n := SlotOf(gid)
	err := b.change(ctx, []int{n}, func(tx *sql.Tx, f *facts) error {
		row := f.fences[n]
		if row.epoch > epoch {
			return fmt.Errorf("%w: slot %d is at epoch %d, not %d", ErrStale, n, row.epoch, epoch)
		}
		for _, br := range branches {
			was, err := b.been(ctx, tx, gid, br)
			if err != nil {
				return err
			}
			out[br] = was
			if was == "none" {
				if _, err := b.insertRows(ctx, tx, -1, []Row{{TransType: "tcc", Gid: gid, BranchID: br, Op: OpTry, BarrierID: "01", Reason: OpFence}}); err != nil {
					return err
				}
			}
		}
		a := b.dialect.arg // home or copy stays, and since when
		_, err := tx.ExecContext(ctx, "UPDATE "+b.dialect.fence()+" SET epoch = "+a(1)+" WHERE slot = "+a(2), epoch, n)
		return err
	})
	return out, err
}

// OpFence is the reason of a tombstone that Refuse wrote.
const OpFence = "fence"

func (b *Barrier) been(ctx context.Context, tx *sql.Tx, gid, branch string) (string, error) {
	rows, err := tx.QueryContext(ctx, "SELECT op, reason FROM "+b.dialect.table()+" WHERE gid = "+b.dialect.arg(1)+" AND branch_id = "+b.dialect.arg(2), gid, branch)
	if err != nil {
		return "", err
	}
	defer rows.Close()
	was := "none"
	for rows.Next() {
		var op, reason string
		if err := rows.Scan(&op, &reason); err != nil {
			return "", err
		}
		switch {
		case op == OpConfirm:
			was = "confirmed"
		case op == OpCancel:
			was = "cancelled"
		case op == OpTry && reason == OpTry && was == "none":
			was = "tried"
		}
	}
	return was, rows.Err()
}

// BranchKey names a branch.
type BranchKey struct {
	Gid    string `json:"gid"`
	Branch string `json:"branch"`
}

// opsAtOnce bounds the gids of one statement: SQLite's driver finds n parameters in n² steps.
const opsAtOnce = 50

// Ops reads the barrier rows of branches: for each that has any, its ops with the op that wrote the row, of the first barrier
// call alone.
func (b *Barrier) Ops(ctx context.Context, branches []BranchKey) (map[BranchKey]map[string]string, error) {
	out := map[BranchKey]map[string]string{}
	var gids []any
	for _, k := range branches {
		if out[k] == nil {
			gids, out[k] = append(gids, k.Gid), map[string]string{}
		}
	}
	for part := range slices.Chunk(gids, opsAtOnce) {
		in := make([]string, len(part))
		for i := range part {
			in[i] = b.dialect.arg(i + 1)
		}
		if err := b.ops(ctx, "SELECT gid, branch_id, op, reason FROM "+b.dialect.table()+" WHERE gid IN ("+strings.Join(in, ", ")+") AND barrier_id = '01'", part, out); err != nil {
			return nil, err
		}
	}
	return out, nil
}

func (b *Barrier) ops(ctx context.Context, query string, gids []any, into map[BranchKey]map[string]string) error {
	rows, err := b.db.QueryContext(ctx, query, gids...)
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		var k BranchKey
		var op, reason string
		if err := rows.Scan(&k.Gid, &k.Branch, &op, &reason); err != nil {
			return err
		}
		if ops := into[k]; ops != nil { // of a branch that was asked for
			ops[op] = reason
		}
	}
	return rows.Err()
}

// change runs work under the exclusive locks of slots, a few times if it falls to a deadlock.
func (b *Barrier) change(ctx context.Context, slots []int, work func(tx *sql.Tx, f *facts) error) error {
	locks := make([]lock, 0, len(slots))
	for _, n := range slots {
		if n < 0 || n >= SlotCount {
			return fmt.Errorf("%w: slot %d", ErrInvalid, n)
		}
		locks = append(locks, lock{slot: n, exclusive: true})
	}
	sortLocks(locks)
	c := &cleaning{b: b}
	return c.inTx(ctx, func(tx *sql.Tx) error {
		f, err := b.dialect.enter(ctx, tx, locks, nil)
		if err != nil {
			return err
		}
		return work(tx, f)
	})
}

func (b *Barrier) setFence(ctx context.Context, tx *sql.Tx, h Home) error {
	a := b.dialect.arg
	if h.Here {
		_, err := tx.ExecContext(ctx, "UPDATE "+b.dialect.fence()+" SET epoch = "+a(1)+", home_epoch = "+a(2)+", copied = "+a(3)+" WHERE slot = "+a(4), h.Epoch, h.Epoch, false, h.Slot)
		return err
	}
	_, err := tx.ExecContext(ctx, "UPDATE "+b.dialect.fence()+" SET epoch = "+a(1)+", copied = "+a(2)+" WHERE slot = "+a(3), h.Epoch, !h.Here, h.Slot)
	return err
}

func (b *Barrier) rowsOf(ctx context.Context, tx *sql.Tx, slot int) ([]Row, error) {
	rows, err := tx.QueryContext(ctx, "SELECT r.trans_type, r.gid, r.branch_id, r.op, r.barrier_id, r.reason FROM "+b.beside("touched")+" t JOIN "+b.dialect.table()+
		" r ON r.gid = t.gid AND r.branch_id = t.branch_id WHERE t.slot = "+b.dialect.arg(1)+" ORDER BY r.id", slot)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var out []Row
	for rows.Next() {
		var r Row
		if err := rows.Scan(&r.TransType, &r.Gid, &r.BranchID, &r.Op, &r.BarrierID, &r.Reason); err != nil {
			return nil, err
		}
		out = append(out, r)
	}
	return out, rows.Err()
}

// insertRows inserts barrier rows that are not here and gives those; a slot of -1 touches no account.
func (b *Barrier) insertRows(ctx context.Context, tx *sql.Tx, slot int, rows []Row) ([]Row, error) {
	a := b.dialect.arg
	insert := "INSERT INTO " + b.dialect.table() + " (trans_type, gid, branch_id, op, barrier_id, reason) VALUES (" + a(1) + ", " + a(2) + ", " + a(3) + ", " + a(4) + ", " + a(5) + ", " + a(6) + ")"
	if b.kind == MySQL {
		insert = strings.Replace(insert, "INSERT", "INSERT IGNORE", 1)
	} else {
		insert += " ON CONFLICT (gid, branch_id, op, barrier_id) DO NOTHING"
	}
	var fresh []Row
	for _, r := range rows {
		res, err := tx.ExecContext(ctx, insert, r.TransType, r.Gid, r.BranchID, r.Op, r.BarrierID, r.Reason)
		if err != nil {
			return nil, err
		}
		n, err := res.RowsAffected()
		if err != nil {
			return nil, err
		}
		if n > 0 {
			fresh = append(fresh, r)
		}
		if slot >= 0 {
			if _, err := tx.ExecContext(ctx, b.insertNew("touched (slot, gid, branch_id)", "("+a(1)+", "+a(2)+", "+a(3)+")"), slot, r.Gid, r.BranchID); err != nil {
				return nil, err
			}
		}
	}
	return fresh, nil
}

func sortLocks(locks []lock) {
	slices.SortFunc(locks, func(x, y lock) int { return x.slot - y.slot })
}
