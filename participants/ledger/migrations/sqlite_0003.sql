-- See postgres_0006.sql.
ALTER TABLE {p}account ADD COLUMN global_only INTEGER NOT NULL DEFAULT 0
-- next
CREATE TABLE {p}at_risk (
	account TEXT NOT NULL,
	epoch INTEGER NOT NULL,
	used INTEGER NOT NULL CHECK (used >= 0),
	PRIMARY KEY (account, epoch)
) WITHOUT ROWID
-- next
CREATE TABLE {p}at_risk_debit (
	id TEXT NOT NULL,
	account TEXT NOT NULL,
	epoch INTEGER NOT NULL,
	amount INTEGER NOT NULL CHECK (amount > 0),
	PRIMARY KEY (id, account)
) WITHOUT ROWID
-- next
CREATE TABLE {p}suspense (
	id TEXT NOT NULL,
	leg INTEGER NOT NULL,
	account TEXT NOT NULL,
	amount INTEGER NOT NULL CHECK (amount > 0),
	currency TEXT NOT NULL,
	created_us INTEGER NOT NULL,
	PRIMARY KEY (id, leg)
) WITHOUT ROWID
