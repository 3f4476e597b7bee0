package check

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/protobuf/encoding/protowire"
)

// Where a region's etcd has its slots and its transactions.
const (
	slotKeys = "/lockstep/1/slot/"
	txKeys   = "/lockstep/1/tx/"
)

// Member is one member of an etcd, with the hash of everything that it has at one revision.
type Member struct {
	Cluster  string `json:"cluster"`
	Endpoint string `json:"endpoint"`
	ID       uint64 `json:"id"`
	Leader   uint64 `json:"leader"` // the id of the member that it follows
	Term     uint64 `json:"term"`   // raft's; it grows with every election
	Revision int64  `json:"revision"`
	Hash     uint32 `json:"hash"`
	// Compacted is the revision up to which history was dropped when the hash was made.
	Compacted int64 `json:"compacted"`
}

// Held is a slot as etcd has it, or as a coordinator believes it to be.
type Held struct {
	Slot   int    `json:"slot"`
	Holder string `json:"holder,omitempty"`
	Term   int64  `json:"term"`
}

// View is what one coordinator believes.
type View struct {
	Coordinator string   `json:"coordinator"`
	Slots       []Held   `json:"slots"`
	Live        []string `json:"live"` // gids of transactions that have not ended
}

// Stores is a look at the etcds and at who keeps copies of them.
type Stores struct {
	Members []Member `json:"members,omitempty"`
	// Slots and Live are what the region's etcd has, Views what its coordinators say of it.
	Slots []Held   `json:"slots,omitempty"`
	Live  []string `json:"live,omitempty"`
	Views []View   `json:"views,omitempty"`
	// Elections counts changes of a leader, Relisted watches whose past was compacted under them, from the beginning to the end
	// of the run.
	Elections int `json:"elections"`
	Relisted  int `json:"relisted"`
}

const lookLimit = 5 * time.Second

func dial(endpoints ...string) (*clientv3.Client, error) {
	return clientv3.New(clientv3.Config{Endpoints: endpoints, DialTimeout: lookLimit})
}

// ReadMembers asks every member of a cluster who it follows, and for its hash at the lowest revision that all of them have.
func ReadMembers(ctx context.Context, cluster string, endpoints []string) (out []Member, err error) {
	ctx, cancel := context.WithTimeout(ctx, lookLimit)
	defer cancel()
	var clients []*clientv3.Client
	at := int64(0)
	for _, e := range endpoints {
		cli, err := dial(e)
		if err != nil {
			return nil, err
		}
		defer cli.Close()
		clients = append(clients, cli)
		st, err := cli.Status(ctx, e)
		if err != nil {
			return nil, fmt.Errorf("%s %s: %w", cluster, e, err)
		}
		out = append(out, Member{Cluster: cluster, Endpoint: e, ID: st.Header.MemberId, Leader: st.Leader, Term: st.RaftTerm, Revision: st.Header.Revision})
		if at == 0 || st.Header.Revision < at {
			at = st.Header.Revision
		}
	}
	for i, e := range endpoints {
		h, err := clients[i].HashKV(ctx, e, at)
		if err != nil {
			return nil, fmt.Errorf("%s %s: hash at %d: %w", cluster, e, at, err)
		}
		out[i].Hash, out[i].Compacted = h.Hash, h.CompactRevision
	}
	return out, nil
}

// ReadRegion reads what a region's etcd has of slots and of transactions that have not ended, at one revision.
func ReadRegion(ctx context.Context, endpoint string) (slots []Held, live []string, err error) {
	ctx, cancel := context.WithTimeout(ctx, lookLimit)
	defer cancel()
	cli, err := dial(endpoint)
	if err != nil {
		return nil, nil, err
	}
	defer cli.Close()
	got, err := cli.Txn(ctx).Then(clientv3.OpGet(slotKeys, clientv3.WithPrefix()), clientv3.OpGet(txKeys, clientv3.WithPrefix())).Commit()
	if err != nil {
		return nil, nil, err
	}
	for _, kv := range got.Responses[0].GetResponseRange().Kvs {
		n, err := strconv.Atoi(strings.TrimPrefix(string(kv.Key), slotKeys))
		if err != nil {
			return nil, nil, err
		}
		var v struct{ Holder string }
		if err := json.Unmarshal(kv.Value, &v); err != nil {
			return nil, nil, fmt.Errorf("slot %d: %w", n, err)
		}
		slots = append(slots, Held{n, v.Holder, kv.ModRevision})
	}
	for _, kv := range got.Responses[1].GetResponseRange().Kvs {
		_, gid, _ := strings.Cut(strings.TrimPrefix(string(kv.Key), txKeys), "/")
		ended, err := finished(kv.Value)
		if err != nil {
			return nil, nil, fmt.Errorf("%s: %w", gid, err)
		}
		if !ended {
			live = append(live, gid)
		}
	}
	slices.Sort(live)
	return slots, live, nil
}

// finished says whether a record has the number of its finish's event: field 4 of the message.
func finished(b []byte) (bool, error) {
	for len(b) > 0 {
		field, kind, n := protowire.ConsumeTag(b)
		if n < 0 {
			return false, protowire.ParseError(n)
		}
		if field == 4 {
			return true, nil
		}
		b = b[n:]
		if n = protowire.ConsumeFieldValue(field, kind, b); n < 0 {
			return false, protowire.ParseError(n)
		}
		b = b[n:]
	}
	return false, nil
}

// ReadView asks a coordinator at its admin address.
func ReadView(ctx context.Context, name, admin string) (View, error) {
	v := View{Coordinator: name}
	var slots struct{ Slots []Held }
	err := get(ctx, "http://"+admin+"/v1/slots", &slots)
	var list struct {
		Transactions []struct{ Gid string }
	}
	err = errors.Join(err, get(ctx, "http://"+admin+"/v1/transactions?limit=10000&status=prepared&status=running&status=committing&status=aborting", &list))
	v.Slots = slots.Slots
	for _, t := range list.Transactions {
		v.Live = append(v.Live, t.Gid)
	}
	slices.Sort(v.Live)
	return v, err
}

func get(ctx context.Context, url string, into any) error {
	ctx, cancel := context.WithTimeout(ctx, lookLimit)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	raw, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s: %s", url, resp.Status, raw)
	}
	if err != nil {
		return err
	}
	return json.Unmarshal(raw, into)
}

// Differences are what the stores do not agree in; it examined so many pairs.
func (s *Stores) Differences() (out []string, examined int) {
	first := map[string]Member{}
	for _, m := range s.Members {
		f, ok := first[m.Cluster]
		if !ok {
			first[m.Cluster] = m
			continue
		}
		examined++
		if m.Hash != f.Hash || m.Compacted != f.Compacted {
			out = append(out, fmt.Sprintf("%s: %s has the hash %x (compacted at %d), %s has %x (compacted at %d)", m.Cluster, f.Endpoint, f.Hash, f.Compacted, m.Endpoint, m.Hash, m.Compacted))
		}
	}
	shown := map[string]bool{}
	for _, v := range s.Views {
		believed := map[int]Held{}
		for _, h := range v.Slots {
			believed[h.Slot] = h
		}
		for _, h := range s.Slots {
			examined++
			if believed[h.Slot] != h {
				out = append(out, fmt.Sprintf("%s believes slot %d held by %q at revision %d: etcd has %q at %d", v.Coordinator, h.Slot, believed[h.Slot].Holder, believed[h.Slot].Term, h.Holder, h.Term))
			}
		}
		for _, gid := range v.Live {
			examined++
			shown[gid] = true
			if _, ok := slices.BinarySearch(s.Live, gid); !ok {
				out = append(out, fmt.Sprintf("%s shows %s as live: etcd has no such transaction, or it has ended", v.Coordinator, gid))
			}
		}
	}
	for _, gid := range s.Live {
		examined++
		if !shown[gid] && len(s.Views) > 0 {
			out = append(out, fmt.Sprintf("%s is live in etcd, and no coordinator shows it", gid))
		}
	}
	return out, examined
}

// equal (I12): all members of one etcd have the same at one revision, and what coordinators believe is what etcd has.
func equal(v *view, r *Result) {
	bad, n := v.Stores.Differences()
	r.Examined = n
	for _, b := range bad {
		r.bad("%s", b)
	}
	r.arm(v.Stores.Elections+v.Stores.Relisted, 1, fmt.Sprintf("elections (%d) and watches whose past was compacted (%d)", v.Stores.Elections, v.Stores.Relisted))
}
