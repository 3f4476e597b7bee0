-- See postgres_0006.sql.
SET @ledger_change = (SELECT IF(count(*) = 0, 'ALTER TABLE {p}account ADD COLUMN global_only int NOT NULL DEFAULT 0', 'DO 0') FROM information_schema.columns
	WHERE column_name = 'global_only' AND (concat(table_schema, '.', table_name) = '{p}account' OR (table_schema = DATABASE() AND table_name = '{p}account')))
-- next
PREPARE ledger_change FROM @ledger_change
-- next
EXECUTE ledger_change
-- next
DEALLOCATE PREPARE ledger_change
-- next
CREATE TABLE IF NOT EXISTS {p}at_risk (
	account varchar(160) NOT NULL,
	epoch bigint NOT NULL,
	used bigint NOT NULL CHECK (used >= 0),
	PRIMARY KEY (account, epoch)
) ENGINE = InnoDB DEFAULT CHARSET = utf8mb4 COLLATE = utf8mb4_bin
-- next
CREATE TABLE IF NOT EXISTS {p}at_risk_debit (
	id varchar(260) NOT NULL,
	account varchar(160) NOT NULL,
	epoch bigint NOT NULL,
	amount bigint NOT NULL CHECK (amount > 0),
	PRIMARY KEY (id, account)
) ENGINE = InnoDB DEFAULT CHARSET = utf8mb4 COLLATE = utf8mb4_bin
-- next
CREATE TABLE IF NOT EXISTS {p}suspense (
	id varchar(260) NOT NULL,
	leg int NOT NULL,
	account varchar(160) NOT NULL,
	amount bigint NOT NULL CHECK (amount > 0),
	currency char(3) NOT NULL,
	created_us bigint NOT NULL,
	PRIMARY KEY (id, leg)
) ENGINE = InnoDB DEFAULT CHARSET = utf8mb4 COLLATE = utf8mb4_bin
