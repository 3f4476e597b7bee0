-- See postgres_0001.sql for what the tables mean; the functions there are Go here.
CREATE TABLE {p}account (
	id TEXT NOT NULL,
	shard INTEGER NOT NULL,
	currency TEXT NOT NULL CHECK (currency GLOB '[A-Z][A-Z][A-Z]'),
	mode TEXT NOT NULL CHECK (mode IN ('direct', 'serial', 'buffered', 'aggregated', 'split', 'clearing')),
	shards INTEGER NOT NULL,
	overdraft TEXT NOT NULL CHECK (overdraft IN ('none', 'any')),
	max_credit INTEGER CHECK (max_credit > 0),
	max_debit INTEGER CHECK (max_debit > 0),
	state TEXT NOT NULL CHECK (state IN ('open', 'frozen', 'closed')),
	debits_pending INTEGER NOT NULL DEFAULT 0 CHECK (debits_pending >= 0),
	debits_posted INTEGER NOT NULL DEFAULT 0 CHECK (debits_posted >= 0),
	credits_pending INTEGER NOT NULL DEFAULT 0 CHECK (credits_pending >= 0),
	credits_posted INTEGER NOT NULL DEFAULT 0 CHECK (credits_posted >= 0),
	PRIMARY KEY (id, shard),
	CONSTRAINT no_overdraft CHECK (overdraft = 'any' OR debits_pending + debits_posted <= credits_posted),
	CONSTRAINT credit_cap CHECK (credits_pending + credits_posted <= coalesce(max_credit, 9000000000000000000)),
	CONSTRAINT debit_cap CHECK (debits_pending + debits_posted <= coalesce(max_debit, 9000000000000000000)),
	CONSTRAINT caps_by_mode CHECK (mode IN ('direct', 'serial') OR (max_credit IS NULL AND max_debit IS NULL))
) WITHOUT ROWID
-- next
CREATE INDEX {i}account_mode ON {p}account (mode, id) WHERE shard = 0 AND mode NOT IN ('direct', 'serial')
-- next
CREATE TABLE {p}transfer (
	id TEXT NOT NULL,
	leg INTEGER NOT NULL,
	legs INTEGER NOT NULL,
	kind TEXT NOT NULL CHECK (kind IN ('hold', 'transfer', 'reversal', 'tombstone', 'cut')),
	state TEXT NOT NULL CHECK (state IN ('pending', 'posted', 'voided')),
	digest TEXT NOT NULL,
	gid TEXT NOT NULL,
	branch TEXT NOT NULL,
	of_id TEXT NOT NULL,
	debit TEXT NOT NULL,
	debit_shard INTEGER NOT NULL,
	credit TEXT NOT NULL,
	credit_shard INTEGER NOT NULL,
	amount INTEGER NOT NULL CHECK (amount >= 0),
	currency TEXT NOT NULL,
	total INTEGER NOT NULL CHECK (total >= 0),
	refunded INTEGER NOT NULL DEFAULT 0,
	created_us INTEGER NOT NULL,
	settled_us INTEGER,
	PRIMARY KEY (id, leg),
	CONSTRAINT refunds_within_payment CHECK (refunded >= 0 AND refunded <= total)
) WITHOUT ROWID
-- next
CREATE INDEX {i}transfer_gid ON {p}transfer (gid) WHERE kind <> 'hold' AND gid <> ''
-- next
CREATE INDEX {i}transfer_hot_debit ON {p}transfer (debit) WHERE state = 'pending' AND debit_shard = -1
-- next
CREATE INDEX {i}transfer_hot_credit ON {p}transfer (credit) WHERE state = 'pending' AND credit_shard = -1
-- next
CREATE TABLE {p}entry (
	transfer_id TEXT NOT NULL,
	leg INTEGER NOT NULL,
	direction TEXT NOT NULL CHECK (direction IN ('debit', 'credit')),
	account TEXT NOT NULL,
	amount INTEGER NOT NULL CHECK (amount > 0),
	currency TEXT NOT NULL,
	gid TEXT NOT NULL,
	branch TEXT NOT NULL,
	posted_us INTEGER NOT NULL,
	balance_after INTEGER,
	PRIMARY KEY (transfer_id, leg, direction)
) WITHOUT ROWID
-- next
CREATE INDEX {i}entry_account ON {p}entry (account, posted_us)
-- next
CREATE TRIGGER {i}entry_update BEFORE UPDATE ON {p}entry BEGIN SELECT RAISE(ABORT, 'entries are immutable: make a reversal instead'); END
-- next
CREATE TRIGGER {i}entry_delete BEFORE DELETE ON {p}entry BEGIN SELECT RAISE(ABORT, 'entries are immutable: make a reversal instead'); END
-- next
CREATE TABLE {p}buffer (
	id INTEGER PRIMARY KEY AUTOINCREMENT,
	account TEXT NOT NULL,
	day INTEGER NOT NULL,
	debit INTEGER NOT NULL CHECK (debit >= 0),
	credit INTEGER NOT NULL CHECK (credit >= 0))
-- next
CREATE INDEX {i}buffer_account ON {p}buffer (account, day)
