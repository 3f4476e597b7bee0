package main

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/url"
	"strings"

	"github.com/dtm-labs/dtm/client/dtmcli"
	"github.com/dtm-labs/dtm/client/dtmcli/dtmimp"
	"github.com/go-sql-driver/mysql"
	_ "github.com/jackc/pgx/v5/stdlib" // driver
)

// connsMax are the connections to the database.
const connsMax = 16

const currency = "CNY"

// book is the accounts and what was moved.
type book struct {
	db      *sql.DB
	kind    string // DTM's name of the database's kind
	barrier string // the barrier's table
}

// tables: columns as the checkers read them. IDENTITY is the words for a number that counts up.
const tables = `
CREATE TABLE IF NOT EXISTS ledger_account (
  id varchar(128) PRIMARY KEY, debits_pending bigint NOT NULL DEFAULT 0, debits_posted bigint NOT NULL DEFAULT 0,
  credits_pending bigint NOT NULL DEFAULT 0, credits_posted bigint NOT NULL DEFAULT 0
);
CREATE TABLE IF NOT EXISTS ledger_transfer (
  id varchar(200) PRIMARY KEY, gid varchar(128) NOT NULL, branch varchar(64) NOT NULL, kind varchar(16) NOT NULL, state varchar(16) NOT NULL,
  debit varchar(128) NOT NULL, credit varchar(128) NOT NULL, amount bigint NOT NULL, currency varchar(8) NOT NULL, of_id varchar(200) NOT NULL DEFAULT ''
);
CREATE TABLE IF NOT EXISTS ledger_entry (
  number IDENTITY, gid varchar(128) NOT NULL, branch varchar(64) NOT NULL, direction varchar(8) NOT NULL,
  account varchar(128) NOT NULL, amount bigint NOT NULL, currency varchar(8) NOT NULL, transfer_id varchar(200) NOT NULL
);
CREATE SCHEMA IF NOT EXISTS BARRIER;
CREATE TABLE IF NOT EXISTS BARRIER.barrier (
  id IDENTITY, trans_type varchar(45) DEFAULT '', gid varchar(128) DEFAULT '', branch_id varchar(128) DEFAULT '', op varchar(45) DEFAULT '',
  barrier_id varchar(45) DEFAULT '', reason varchar(45) DEFAULT '', CONSTRAINT uniq_barrier UNIQUE (gid, branch_id, op, barrier_id)
)`

// openBook opens the database and makes what is missing in it.
func openBook(ctx context.Context, o options) (*book, error) {
	u, err := url.Parse(o.db)
	if err != nil { // its text may hold a password
		return nil, errors.New("--db: no address of a database")
	}
	b := &book{barrier: o.schema + ".barrier"}
	identity := "bigserial PRIMARY KEY"
	switch u.Scheme {
	case "postgres", "postgresql":
		b.kind = dtmcli.DBTypePostgres
		b.db, err = sql.Open("pgx", o.db)
	case "mysql", "mariadb":
		b.kind, identity = dtmcli.DBTypeMysql, "bigint AUTO_INCREMENT PRIMARY KEY"
		c := mysql.NewConfig()
		c.Net, c.Addr, c.User, c.DBName = "tcp", u.Host, u.User.Username(), strings.TrimPrefix(u.Path, "/")
		c.Passwd, _ = u.User.Password()
		b.db, err = sql.Open("mysql", c.FormatDSN())
	default:
		return nil, fmt.Errorf("--db %q: postgres or mysql", u.Scheme)
	}
	if err != nil {
		return nil, err
	}
	b.db.SetMaxOpenConns(connsMax)
	b.db.SetMaxIdleConns(connsMax)
	text := strings.NewReplacer("IDENTITY", identity, "BARRIER", o.schema).Replace(tables)
	for _, stmt := range strings.Split(text, ";") {
		if _, err := b.db.ExecContext(ctx, stmt); err != nil {
			return nil, errors.Join(fmt.Errorf("%.60s: %w", strings.TrimSpace(stmt), err), b.db.Close())
		}
	}
	if err := b.opened(o); err != nil {
		return nil, errors.Join(err, b.db.Close())
	}
	return b, nil
}

// opened opens the accounts that are not there, with what money passes over between the databases for each of them.
func (b *book) opened(o options) error {
	for _, id := range strings.Split(o.accounts, ",") {
		if id == "" {
			continue
		}
		err := b.within(func(tx *sql.Tx) error {
			n, err := b.exec(tx, b.ignoring("ledger_account (id, credits_posted) VALUES (?, ?)"), id, o.deposit)
			if err != nil || n == 0 {
				return err
			}
			if _, err := b.exec(tx, b.ignoring("ledger_account (id) VALUES (?)"), passage(id)); err != nil {
				return err
			}
			return b.entries(tx, "opening-"+id, "opening", "", "house:equity", id, o.deposit)
		})
		if err != nil {
			return fmt.Errorf("open %s: %w", id, err)
		}
	}
	return nil
}

// passage is what money passes over between an account's database and the other.
func passage(account string) string { return "house:passage:" + account + ":" + currency }

func (b *book) ignoring(what string) string {
	if b.kind == dtmcli.DBTypeMysql {
		return "INSERT IGNORE INTO " + what
	}
	return "INSERT INTO " + what + " ON CONFLICT DO NOTHING"
}

// exec runs a statement with ? for its values, and gives the rows that it has changed.
func (b *book) exec(tx *sql.Tx, stmt string, args ...any) (int64, error) {
	res, err := tx.Exec(dtmimp.GetDBSpecial(b.kind).GetPlaceHoldSQL(stmt), args...)
	if err != nil {
		return 0, err
	}
	return res.RowsAffected()
}

func (b *book) within(f func(tx *sql.Tx) error) error {
	tx, err := b.db.Begin()
	if err != nil {
		return err
	}
	if err := f(tx); err != nil {
		return errors.Join(err, tx.Rollback())
	}
	return tx.Commit()
}

// entries writes the two sides of what was moved.
func (b *book) entries(tx *sql.Tx, gid, branch, transfer, debit, credit string, amount int64) error {
	for _, e := range []struct{ direction, account string }{{"debit", debit}, {"credit", credit}} {
		if _, err := b.exec(tx, "INSERT INTO ledger_entry (gid, branch, direction, account, amount, currency, transfer_id) VALUES (?, ?, ?, ?, ?, ?, ?)",
			gid, branch, e.direction, e.account, amount, currency, transfer); err != nil {
			return err
		}
	}
	return nil
}

// side is which way money goes.
type side int

const (
	pay     side = iota // from the account
	receive             // to it
)

// move is one branch's part.
type move struct {
	book        *book
	side        side
	gid, branch string
	order       order
}

// effect is what an operation does; nil for one that is unknown.
func (s side) effect(op string) func(*move, *sql.Tx) error {
	return map[string]func(*move, *sql.Tx) error{"try": (*move).try, "confirm": (*move).confirm, "cancel": (*move).cancel}[op]
}

func (m *move) id() string { return m.gid + "/" + m.branch }

// ends are the accounts that are debited and credited.
func (m *move) ends() (debit, credit string) {
	if m.side == pay {
		return m.order.Account, passage(m.order.Account)
	}
	return passage(m.order.Account), m.order.Account
}

// counters changes the counters of both accounts; always the customer's first, so that two moves wait in one order.
func (m *move) counters(tx *sql.Tx, debits, credits, guard string) error {
	debit, credit := m.ends()
	changes := []struct{ set, account string }{{debits, debit}, {credits, credit}}
	if m.side == receive {
		changes[0], changes[1] = changes[1], changes[0]
	}
	for _, c := range changes {
		stmt := "UPDATE ledger_account SET " + strings.ReplaceAll(c.set, "AMOUNT", fmt.Sprint(m.order.Amount)) + " WHERE id = ?"
		if m.side == pay && c.account == debit && guard != "" {
			stmt += " AND " + strings.ReplaceAll(guard, "AMOUNT", fmt.Sprint(m.order.Amount))
		}
		n, err := m.book.exec(tx, stmt, c.account)
		if err == nil && n == 0 {
			err = fmt.Errorf("%s does not exist or has too little: %w", c.account, dtmcli.ErrFailure)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// try holds the amount, where the payer has it.
func (m *move) try(tx *sql.Tx) error {
	if err := m.counters(tx, "debits_pending = debits_pending + AMOUNT", "credits_pending = credits_pending + AMOUNT",
		"credits_posted - debits_posted - debits_pending >= AMOUNT"); err != nil {
		return err
	}
	debit, credit := m.ends()
	_, err := m.book.exec(tx, "INSERT INTO ledger_transfer (id, gid, branch, kind, state, debit, credit, amount, currency) VALUES (?, ?, ?, 'transfer', 'pending', ?, ?, ?, ?)",
		m.id(), m.gid, m.branch, debit, credit, m.order.Amount, currency)
	return err
}

// confirm turns the hold into entries.
func (m *move) confirm(tx *sql.Tx) error {
	if err := m.counters(tx, "debits_pending = debits_pending - AMOUNT, debits_posted = debits_posted + AMOUNT",
		"credits_pending = credits_pending - AMOUNT, credits_posted = credits_posted + AMOUNT", ""); err != nil {
		return err
	}
	if _, err := m.book.exec(tx, "UPDATE ledger_transfer SET state = 'posted' WHERE id = ?", m.id()); err != nil {
		return err
	}
	debit, credit := m.ends()
	return m.book.entries(tx, m.gid, m.branch, m.id(), debit, credit, m.order.Amount)
}

// cancel lets the hold go.
func (m *move) cancel(tx *sql.Tx) error {
	if err := m.counters(tx, "debits_pending = debits_pending - AMOUNT", "credits_pending = credits_pending - AMOUNT", ""); err != nil {
		return err
	}
	_, err := m.book.exec(tx, "UPDATE ledger_transfer SET state = 'voided' WHERE id = ?", m.id())
	return err
}
