-- See postgres_0001.sql for what the tables mean; the functions there are Go here. DDL commits by itself in MySQL, so that
-- each statement may find its own work done.
CREATE TABLE IF NOT EXISTS {p}account (
	id varchar(160) NOT NULL,
	shard int NOT NULL,
	currency char(3) NOT NULL CHECK (currency REGEXP '^[A-Z]{3}$'),
	mode varchar(16) NOT NULL CHECK (mode IN ('direct', 'serial', 'buffered', 'aggregated', 'split', 'clearing')),
	shards int NOT NULL,
	overdraft varchar(8) NOT NULL CHECK (overdraft IN ('none', 'any')),
	max_credit bigint CHECK (max_credit > 0),
	max_debit bigint CHECK (max_debit > 0),
	state varchar(8) NOT NULL CHECK (state IN ('open', 'frozen', 'closed')),
	debits_pending bigint NOT NULL DEFAULT 0 CHECK (debits_pending >= 0),
	debits_posted bigint NOT NULL DEFAULT 0 CHECK (debits_posted >= 0),
	credits_pending bigint NOT NULL DEFAULT 0 CHECK (credits_pending >= 0),
	credits_posted bigint NOT NULL DEFAULT 0 CHECK (credits_posted >= 0),
	PRIMARY KEY (id, shard),
	KEY account_mode (mode, shard, id),
	CONSTRAINT no_overdraft CHECK (overdraft = 'any' OR debits_pending + debits_posted <= credits_posted),
	CONSTRAINT credit_cap CHECK (credits_pending + credits_posted <= coalesce(max_credit, 9000000000000000000)),
	CONSTRAINT debit_cap CHECK (debits_pending + debits_posted <= coalesce(max_debit, 9000000000000000000)),
	CONSTRAINT caps_by_mode CHECK (mode IN ('direct', 'serial') OR (max_credit IS NULL AND max_debit IS NULL))
) ENGINE = InnoDB DEFAULT CHARSET = utf8mb4 COLLATE = utf8mb4_bin
-- next
CREATE TABLE IF NOT EXISTS {p}transfer (
	id varchar(260) NOT NULL,
	leg int NOT NULL,
	legs int NOT NULL,
	kind varchar(16) NOT NULL CHECK (kind IN ('hold', 'transfer', 'reversal', 'tombstone', 'cut')),
	state varchar(8) NOT NULL CHECK (state IN ('pending', 'posted', 'voided')),
	digest varchar(64) NOT NULL,
	gid varchar(128) NOT NULL,
	branch varchar(128) NOT NULL,
	of_id varchar(260) NOT NULL,
	debit varchar(160) NOT NULL,
	debit_shard int NOT NULL,
	credit varchar(160) NOT NULL,
	credit_shard int NOT NULL,
	amount bigint NOT NULL CHECK (amount >= 0),
	currency char(3) NOT NULL,
	total bigint NOT NULL CHECK (total >= 0),
	refunded bigint NOT NULL DEFAULT 0,
	created_us bigint NOT NULL,
	settled_us bigint,
	hot_debit varchar(160) AS (CASE WHEN state = 'pending' AND debit_shard = -1 THEN debit END) VIRTUAL,
	hot_credit varchar(160) AS (CASE WHEN state = 'pending' AND credit_shard = -1 THEN credit END) VIRTUAL,
	PRIMARY KEY (id, leg),
	KEY transfer_gid (gid),
	KEY transfer_hot_debit (hot_debit),
	KEY transfer_hot_credit (hot_credit),
	CONSTRAINT refunds_within_payment CHECK (refunded >= 0 AND refunded <= total)
) ENGINE = InnoDB DEFAULT CHARSET = utf8mb4 COLLATE = utf8mb4_bin
-- next
CREATE TABLE IF NOT EXISTS {p}entry (
	transfer_id varchar(260) NOT NULL,
	leg int NOT NULL,
	direction varchar(6) NOT NULL CHECK (direction IN ('debit', 'credit')),
	account varchar(160) NOT NULL,
	amount bigint NOT NULL CHECK (amount > 0),
	currency char(3) NOT NULL,
	gid varchar(128) NOT NULL,
	branch varchar(128) NOT NULL,
	posted_us bigint NOT NULL,
	balance_after bigint,
	PRIMARY KEY (transfer_id, leg, direction),
	KEY entry_account (account, posted_us)
) ENGINE = InnoDB DEFAULT CHARSET = utf8mb4 COLLATE = utf8mb4_bin
-- next
CREATE TRIGGER IF NOT EXISTS {p}entry_update BEFORE UPDATE ON {p}entry FOR EACH ROW
	SIGNAL SQLSTATE '45000' SET MESSAGE_TEXT = 'entries are immutable: make a reversal instead'
-- next
CREATE TRIGGER IF NOT EXISTS {p}entry_delete BEFORE DELETE ON {p}entry FOR EACH ROW
	SIGNAL SQLSTATE '45000' SET MESSAGE_TEXT = 'entries are immutable: make a reversal instead'
-- next
CREATE TABLE IF NOT EXISTS {p}buffer (
	id bigint PRIMARY KEY AUTO_INCREMENT,
	account varchar(160) NOT NULL,
	day int NOT NULL,
	debit bigint NOT NULL CHECK (debit >= 0),
	credit bigint NOT NULL CHECK (credit >= 0),
	KEY buffer_account (account, day)
) ENGINE = InnoDB DEFAULT CHARSET = utf8mb4 COLLATE = utf8mb4_bin
