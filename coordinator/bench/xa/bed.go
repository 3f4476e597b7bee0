// Package xa measures what two-phase commit does to payments, beside TCC: the same payments from buyers' to merchants'
// accounts, two participants on two databases of one server, both protocols with DTM's Go SDK through one coordinator.
//
//	xa   the SDK's XA local transactions: PREPARE TRANSACTION on PostgreSQL, XA PREPARE on MariaDB; the branch keeps its row
//	     locks from its first statement until the coordinator's commit
//	tcc  the SDK's barrier: try, confirm and cancel are local transactions of their own; between them a hold stands in a row
//	     and nothing is locked
//
// Its law: a participant that is slow or hangs is so outside its local transactions, alike in both protocols: after the
// try or the action is done and before it is answered, and before a confirm or a commit begins. What is locked meanwhile
// is locked by the protocol. Whatever happens, no prepared transaction of a bed outlives it.
package xa

import (
	"context"
	"crypto/rand"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/dtm-labs/dtm/client/dtmcli"
	"github.com/dtm-labs/dtm/client/dtmcli/dtmimp"
	"github.com/dtm-labs/logger"
	_ "github.com/go-sql-driver/mysql" // the driver that DTM's SDK opens MariaDB with

	"github.com/lockstep-tx/lockstep/coordinator/bench/rig"
)

// Protocol is how a payment's two legs are kept together.
type Protocol string

// The protocols.
const (
	TCC Protocol = "tcc"
	XA  Protocol = "xa"
)

const (
	paymentMinor = 7
	depositMinor = int64(1) << 40 // of every buyer
	idleConns    = 64             // kept by each participant's pool, so that TCC does not measure connecting
)

// Bed is two participants on a server: the buyers' and the merchants' accounts, each in a database of its own.
type Bed struct {
	driver    string // as DTM's SDK names it: postgres or mysql
	server    *sql.DB
	prefix    string // of this bed's gids, so that its prepared transactions can be told from others'
	lost      int    // on the server before this bed; see orphans
	buyers    *side
	merchants *side
	gids      atomic.Int64
	undo      []func(context.Context) error
}

// side is one participant.
type side struct {
	kind     string
	sign     int64 // -1 pays, 1 is paid
	n        int   // accounts
	conf     dtmcli.DBConf
	db       *sql.DB
	addr     string
	slow     atomic.Int64 // nanoseconds before every answer of phase one and before every start of phase two
	released chan struct{}
	calls    sync.WaitGroup // under way: a handler outlives its connection
}

// order is a leg's payload. XA's second phase has none.
type order struct {
	Account string        `json:"account"`
	Minor   int64         `json:"minor"`
	Hang    time.Duration `json:"hang"` // before the first phase is answered
}

// NewBed makes the databases on the server and serves the participants from this process. The caller calls Close, also
// after an error.
func NewBed(ctx context.Context, serverURL string, buyers, merchants int) (*Bed, error) {
	logger.InitLog2("fatal", "stderr", 0, "") // the SDK would print every error that it goes on to handle
	dtmimp.BarrierTableName = "barrier"       // in each participant's own database
	b := &Bed{prefix: "bx" + strings.ToLower(rand.Text()[:10]) + "x"}
	conf, err := confOf(serverURL)
	if err != nil {
		return b, err
	}
	b.driver = conf.Driver
	if b.server, err = dtmimp.StandaloneDB(conf); err != nil {
		return b, err
	}
	b.server.SetMaxIdleConns(4)
	b.defers(func(context.Context) error { return b.server.Close() })
	if b.lost, err = b.orphans(ctx); err != nil {
		return b, err
	}
	b.buyers = &side{kind: "buyer", sign: -1, n: buyers}
	b.merchants = &side{kind: "merchant", sign: 1, n: merchants}
	for _, s := range b.sides() {
		if err := b.open(ctx, s, serverURL); err != nil {
			return b, fmt.Errorf("the %ss' participant: %w", s.kind, err)
		}
	}
	return b, nil
}

func (b *Bed) sides() []*side { return []*side{b.buyers, b.merchants} }

func (b *Bed) defers(f func(context.Context) error) { b.undo = append(b.undo, f) }

// Close ends the participants, rolls back what is still prepared and drops the databases, whatever became of ctx.
func (b *Bed) Close(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 90*time.Second)
	defer cancel()
	var errs []error
	for i := len(b.undo) - 1; i >= 0; i-- {
		errs = append(errs, b.undo[i](ctx))
	}
	b.undo = nil
	return errors.Join(errs...)
}

func confOf(rawURL string) (dtmcli.DBConf, error) {
	u, err := url.Parse(rawURL)
	if err != nil || u.User == nil || u.Port() == "" || (u.Scheme != "postgres" && u.Scheme != "mysql") {
		return dtmcli.DBConf{}, errors.New("the server's URL is not postgres:// or mysql:// with a user, a password and a port")
	}
	port, err := strconv.ParseInt(u.Port(), 10, 64)
	password, _ := u.User.Password()
	return dtmcli.DBConf{
		Driver: u.Scheme, Host: u.Hostname(), Port: port, User: u.User.Username(), Password: password,
		Db: strings.TrimPrefix(u.Path, "/"), Schema: "public",
	}, err
}

// barrierTable is DTM's own (client/dtmcli's sqls), in the participant's database.
var barrierTable = map[string]string{
	"postgres": `CREATE TABLE barrier (id bigserial PRIMARY KEY, trans_type varchar(45) DEFAULT '', gid varchar(128) DEFAULT '', branch_id varchar(128) DEFAULT '',
		op varchar(45) DEFAULT '', barrier_id varchar(45) DEFAULT '', reason varchar(45) DEFAULT '', create_time timestamptz DEFAULT now(), update_time timestamptz DEFAULT now(),
		CONSTRAINT uniq_barrier UNIQUE (gid, branch_id, op, barrier_id))`,
	"mysql": `CREATE TABLE barrier (id bigint PRIMARY KEY AUTO_INCREMENT, trans_type varchar(45) DEFAULT '', gid varchar(128) DEFAULT '', branch_id varchar(128) DEFAULT '',
		op varchar(45) DEFAULT '', barrier_id varchar(45) DEFAULT '', reason varchar(45) DEFAULT '', create_time datetime DEFAULT now(), update_time datetime DEFAULT now(),
		UNIQUE KEY uniq_barrier (gid, branch_id, op, barrier_id)) ENGINE=InnoDB`,
}

func (b *Bed) open(ctx context.Context, s *side, serverURL string) error {
	dbURL, drop, err := rig.CreateDatabase(ctx, serverURL)
	if err != nil {
		return err
	}
	b.defers(drop)
	if s.conf, err = confOf(dbURL); err != nil {
		return err
	}
	if s.db, err = dtmimp.PooledDB(s.conf); err != nil { // the pool that the SDK's second phase of XA uses too
		return err
	}
	s.db.SetMaxIdleConns(idleConns)
	b.defers(func(context.Context) error { return s.db.Close() })
	b.defers(b.rollBackAll) // after every participant has ended, which is as often as there are
	for _, stmt := range []string{
		barrierTable[b.driver],
		`CREATE TABLE account (id varchar(32) PRIMARY KEY, balance bigint NOT NULL, held bigint NOT NULL, CHECK (balance >= 0 AND held >= 0))`,
		`CREATE TABLE hold (gid varchar(64) PRIMARY KEY, account varchar(32) NOT NULL, amount bigint NOT NULL)`,
		`CREATE TABLE entry (gid varchar(64) PRIMARY KEY, account varchar(32) NOT NULL, amount bigint NOT NULL)`,
	} {
		if _, err := s.db.ExecContext(ctx, stmt); err != nil {
			return err
		}
	}
	deposit := depositMinor
	if s.sign > 0 {
		deposit = 0
	}
	for i := range s.n {
		if err := s.exec(s.db, `INSERT INTO account (id, balance, held) VALUES (?, ?, 0)`, s.account(i), deposit); err != nil {
			return err
		}
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	s.addr, s.released = l.Addr().String(), make(chan struct{})
	mux := http.NewServeMux()
	mux.HandleFunc("/tcc/{op}", s.serve(s.tcc))
	mux.HandleFunc("/xa", s.serve(s.xa))
	srv := &http.Server{Handler: mux}
	served := make(chan struct{})
	go func() { defer close(served); _ = srv.Serve(l) }() // ends with srv.Close
	b.defers(func(ctx context.Context) error {
		close(s.released)
		err := srv.Close()
		<-served
		// A call may wait for a lock that a prepared transaction holds, and prepare another when it has it.
		ended := make(chan struct{})
		go func() { s.calls.Wait(); close(ended) }()
		for {
			select {
			case <-ended:
				return err
			case <-ctx.Done():
				return errors.Join(err, fmt.Errorf("the %ss' participant has calls that do not end", s.kind))
			case <-time.After(every):
				_ = b.rollBackAll(ctx) // again at the end
			}
		}
	})
	return nil
}

func (s *side) account(n int) string { return fmt.Sprintf("%s-%02d", s.kind, n) }

// sleep is what makes the participant slow. It ends with the participant.
func (s *side) sleep(d time.Duration) {
	if d <= 0 {
		return
	}
	select {
	case <-time.After(d):
	case <-s.released:
	}
}

// serve answers as the SDK's examples do.
func (s *side) serve(f func(r *http.Request, o order) error) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		s.calls.Add(1)
		defer s.calls.Done()
		var o order
		if r.ContentLength != 0 {
			if err := json.NewDecoder(r.Body).Decode(&o); err != nil {
				http.Error(w, err.Error(), http.StatusBadRequest)
				return
			}
		}
		err := f(r, o)
		w.Header().Set("Content-Type", "application/json")
		switch {
		case errors.Is(err, dtmcli.ErrFailure):
			w.WriteHeader(http.StatusConflict)
			fmt.Fprint(w, `{"dtm_result":"FAILURE"}`)
		case err != nil:
			w.WriteHeader(http.StatusInternalServerError)
			fmt.Fprintf(w, "%q", err.Error())
		default:
			fmt.Fprint(w, `{"dtm_result":"SUCCESS"}`)
		}
	}
}

func (s *side) tcc(r *http.Request, o order) error {
	barrier, err := dtmcli.BarrierFromQuery(r.URL.Query())
	if err != nil {
		return err
	}
	barrier.DBType = s.conf.Driver
	slow := time.Duration(s.slow.Load())
	if barrier.Op != dtmimp.OpTry {
		s.sleep(slow)
	}
	err = barrier.CallWithDB(s.db, func(tx *sql.Tx) error {
		switch barrier.Op {
		case dtmimp.OpTry:
			return s.try(tx, barrier.Gid, o)
		case dtmimp.OpConfirm:
			return s.confirm(tx, barrier.Gid, o)
		default:
			return s.cancel(tx, barrier.Gid, o)
		}
	})
	if barrier.Op == dtmimp.OpTry {
		s.sleep(slow + o.Hang)
	}
	return err
}

// xa is the SDK's local transaction; its second phase comes to the same address.
func (s *side) xa(r *http.Request, o order) error {
	first := r.URL.Query().Get("op") == dtmimp.OpAction
	slow := time.Duration(s.slow.Load())
	if !first {
		s.sleep(slow)
	}
	session := 0
	err := dtmcli.XaLocalTransaction(r.URL.Query(), s.conf, func(db *sql.DB, x *dtmcli.Xa) error {
		if s.conf.Driver == "mysql" {
			if err := db.QueryRow(`SELECT connection_id()`).Scan(&session); err != nil {
				return err
			}
		}
		return errors.Join(
			s.touch(db, `UPDATE account SET balance = balance + ? WHERE id = ? AND balance + ? >= 0`, s.sign*o.Minor, o.Account, s.sign*o.Minor),
			s.exec(db, `INSERT INTO entry (gid, account, amount) VALUES (?, ?, ?)`, x.Gid, o.Account, s.sign*o.Minor))
	})
	if session != 0 {
		err = errors.Join(err, s.left(r.Context(), session))
	}
	if first {
		s.sleep(slow + o.Hang)
	}
	return err
}

// left waits until a session has ended at the server. The SDK closes the connection of a prepared XA transaction and does
// not wait; MariaDB answers XAER_NOTA to a commit that comes before it has noticed, the SDK takes that for a repeat and
// answers success, and the branch stays prepared for ever, its rows locked (some are then in no XA RECOVER either, until
// the server starts again). That is the SDK's and not what is to be measured.
func (s *side) left(ctx context.Context, session int) error {
	for {
		n := 0
		if err := s.db.QueryRowContext(ctx, `SELECT count(*) FROM information_schema.processlist WHERE id = ?`, session).Scan(&n); err != nil || n == 0 {
			return err
		}
		time.Sleep(time.Millisecond)
	}
}

// A buyer's hold takes the money off the balance, a merchant's announces it.
func (s *side) try(tx *sql.Tx, gid string, o order) error {
	return errors.Join(
		s.touch(tx, `UPDATE account SET balance = balance - ?, held = held + ? WHERE id = ? AND balance >= ?`, s.taken(o), o.Minor, o.Account, s.taken(o)),
		s.exec(tx, `INSERT INTO hold (gid, account, amount) VALUES (?, ?, ?)`, gid, o.Account, o.Minor))
}

func (s *side) confirm(tx *sql.Tx, gid string, o order) error {
	given := o.Minor - s.taken(o)
	return errors.Join(
		s.touch(tx, `UPDATE account SET balance = balance + ?, held = held - ? WHERE id = ?`, given, o.Minor, o.Account),
		s.touch(tx, `DELETE FROM hold WHERE gid = ?`, gid),
		s.exec(tx, `INSERT INTO entry (gid, account, amount) VALUES (?, ?, ?)`, gid, o.Account, s.sign*o.Minor))
}

func (s *side) cancel(tx *sql.Tx, gid string, o order) error {
	return errors.Join(
		s.touch(tx, `UPDATE account SET balance = balance + ?, held = held - ? WHERE id = ?`, s.taken(o), o.Minor, o.Account),
		s.touch(tx, `DELETE FROM hold WHERE gid = ?`, gid))
}

func (s *side) taken(o order) int64 {
	if s.sign < 0 {
		return o.Minor
	}
	return 0
}

func (s *side) exec(db dtmcli.DB, stmt string, args ...any) error {
	_, err := dtmimp.DBExec(s.conf.Driver, db, stmt, args...)
	return err
}

// touch is exec of a statement that must change one row.
func (s *side) touch(db dtmcli.DB, stmt string, args ...any) error {
	n, err := dtmimp.DBExec(s.conf.Driver, db, stmt, args...)
	if err == nil && n != 1 {
		return fmt.Errorf("%q changed %d rows: %w", stmt, n, dtmcli.ErrFailure)
	}
	return err
}
