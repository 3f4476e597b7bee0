// Package dtmimport reads the open transactions of a DTM v1.19.0 server that was stopped, from its store, as
// transactions that Lockstep drives on. The command import-dtm hands them to a coordinator.
//
// The laws it keeps: DTM's store is read and never written, so that DTM can be started again as long as nothing was
// adopted. What DTM decided stays decided. A call that DTM's store does not say was answered is made again, and a
// saga's step that may have run is compensated. What cannot be carried over to the letter is an error of that one
// transaction, never a guess. No text that leaves the package holds a password.
//
// It is tested by tables of rows without a server, and with the build tag servers by DTM servers on PostgreSQL, MariaDB
// and Redis that are killed in the middle and adopted with the real command line.
package dtmimport

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/lockstep-tx/lockstep/coordinator/record"
	"github.com/lockstep-tx/lockstep/coordinator/txn"
)

// Source says where DTM kept its transactions.
type Source struct {
	// URL is postgres://, mysql:// (MariaDB as well) or redis://. A database that is not named is DTM's default, dtm.
	// mysql:// takes loc (the time zone that DTM ran in; by default this machine's) and tls.
	URL string
	// RedisPrefix is DTM's Store.RedisPrefix; empty means {a}.
	RedisPrefix string
	// Schema is DTM's Store.Schema on PostgreSQL; empty means public.
	Schema string
	// Force reads also where somebody seems to be using the store.
	Force bool
}

// Transaction is one that DTM had not ended. Err says why it cannot be adopted; State is meaningless then.
type Transaction struct {
	Gid, Mode, Status string
	Err               error
	State             txn.State
}

// ErrInUse says that a DTM server seems to be running on the store.
var ErrInUse = errors.New("a DTM server seems to be running on this store: stop every one first")

// recordBytesMax is the largest record that is taken over: it must fit one write of the coordinator's store.
const recordBytesMax = 1 << 20

// Record gives what a coordinator adopts: the bytes of a record.Tx.
func (t *Transaction) Record() ([]byte, error) {
	if t.Err != nil {
		return nil, t.Err
	}
	raw, err := (&record.Tx{State: t.State}).Encode()
	if err != nil {
		return nil, fmt.Errorf("encode transaction %q: %w", t.Gid, err)
	}
	if len(raw) > recordBytesMax {
		return nil, fmt.Errorf("it has %d bytes; at most %d fit a write of the coordinator's store", len(raw), recordBytesMax)
	}
	return raw, nil
}

// Read gives DTM's open transactions in the order of their begin. It refuses with ErrInUse where it can tell that DTM
// is running; where it cannot, it reads what stands there now.
func Read(ctx context.Context, src Source) ([]Transaction, error) {
	u, err := url.Parse(src.URL)
	if err != nil {
		// The error of url.Parse quotes the address, password and all.
		return nil, errors.New("the store's address is no URL: write postgres://user:password@host:port/dtm, mysql://… or redis://…, with special characters percent-encoded")
	}
	var open func(context.Context, *url.URL, Source) (store, error)
	switch u.Scheme {
	case "postgres", "postgresql":
		open = openPostgres
	case "mysql":
		open = openMySQL
	case "redis", "rediss":
		open = openRedis
	default:
		return nil, fmt.Errorf("%q is no store that can be imported from: postgres, mysql and redis are", u.Scheme)
	}
	list, err := read(ctx, u, src, open)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", u.Redacted(), redact(err, u))
	}
	return list, nil
}

// redact keeps the password out of what a driver says.
func redact(err error, u *url.URL) error {
	pass, _ := u.User.Password()
	if pass == "" || !strings.Contains(err.Error(), pass) {
		return err
	}
	return errors.New(strings.ReplaceAll(err.Error(), pass, "xxxxx"))
}

// store is one of DTM's stores.
type store interface {
	// inUse says whether a DTM server is using it; an error means that it cannot be told.
	inUse(ctx context.Context) (bool, error)
	// open gives the open transactions with their branch rows.
	open(ctx context.Context) ([]found, error)
	// lossy: DTM may have lost the results of a saga's calls when it was stopped.
	lossy() bool
	close() error
}

// found is one transaction as it stands in DTM's store.
type found struct {
	global
	rows []row
	err  error // it could not be read
}

// quiet is longer than DTM leaves its store alone: it asks for what is due every three seconds.
const quiet = 5 * time.Second

// inUseWait is how long a store may look as if DTM were using it before it is believed: connections and traces of a
// server that was killed last a moment.
const inUseWait = 4 * quiet

func read(ctx context.Context, u *url.URL, src Source, open func(context.Context, *url.URL, Source) (store, error)) ([]Transaction, error) {
	st, err := open(ctx, u, src)
	if err != nil {
		return nil, err
	}
	defer st.close()
	if !src.Force {
		if err := idle(ctx, st); err != nil {
			return nil, err
		}
	}
	all, err := st.open(ctx)
	if err != nil {
		return nil, err
	}
	slices.SortStableFunc(all, func(a, b found) int {
		if c := a.Created.Compare(b.Created); c != 0 {
			return c
		}
		return strings.Compare(a.Gid, b.Gid)
	})
	now := time.Now()
	out := make([]Transaction, len(all))
	for i := range all {
		f := &all[i]
		out[i] = Transaction{Gid: f.Gid, Mode: f.TransType, Status: f.Status, Err: f.err}
		if f.err == nil {
			out[i].State, out[i].Err = convert(&f.global, f.rows, st.lossy(), now)
		}
	}
	return out, nil
}

// idle waits until nobody uses the store.
func idle(ctx context.Context, st store) error {
	tick := time.NewTicker(250 * time.Millisecond)
	defer tick.Stop()
	for until := time.Now().Add(inUseWait); ; {
		used, err := st.inUse(ctx)
		if err != nil || !used {
			return ctx.Err() // what cannot be told is the operator's to know
		}
		if time.Now().After(until) {
			return ErrInUse
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}
