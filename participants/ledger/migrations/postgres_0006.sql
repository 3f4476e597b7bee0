-- What a forced failover needs (ADR 9). global_only: every debit of the account is of durability global, so that it is never
-- at risk. at_risk is what an account has debited since its slot was adopted without a release at that epoch, held and
-- posted; at_risk_debit is each hold's part of it, which goes with a void. suspense names what was posted through a suspense
-- account, and the account that should have been debited.
ALTER TABLE {p}account ADD COLUMN global_only int NOT NULL DEFAULT 0
-- next
CREATE TABLE {p}at_risk (
	account varchar(160) COLLATE "C" NOT NULL,
	epoch bigint NOT NULL,
	used bigint NOT NULL CHECK (used >= 0),
	PRIMARY KEY (account, epoch))
-- next
CREATE TABLE {p}at_risk_debit (
	id varchar(260) COLLATE "C" NOT NULL,
	account varchar(160) COLLATE "C" NOT NULL,
	epoch bigint NOT NULL,
	amount bigint NOT NULL CHECK (amount > 0),
	PRIMARY KEY (id, account))
-- next
CREATE TABLE {p}suspense (
	id varchar(260) COLLATE "C" NOT NULL,
	leg int NOT NULL,
	account varchar(160) COLLATE "C" NOT NULL,
	amount bigint NOT NULL CHECK (amount > 0),
	currency char(3) NOT NULL,
	created_us bigint NOT NULL,
	PRIMARY KEY (id, leg))
