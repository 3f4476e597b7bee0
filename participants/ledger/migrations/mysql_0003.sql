-- See sqlite_0004.sql.
CREATE TABLE IF NOT EXISTS {p}mending (id varchar(260) PRIMARY KEY) ENGINE = InnoDB DEFAULT CHARSET = utf8mb4 COLLATE = utf8mb4_bin
-- next
DROP TRIGGER IF EXISTS {p}entry_update
-- next
DROP TRIGGER IF EXISTS {p}entry_delete
-- next
CREATE TRIGGER IF NOT EXISTS {p}entry_update BEFORE UPDATE ON {p}entry FOR EACH ROW
	IF NOT EXISTS (SELECT 1 FROM {p}mending WHERE id = OLD.transfer_id) THEN
		SIGNAL SQLSTATE '45000' SET MESSAGE_TEXT = 'entries are immutable: make a reversal instead';
	END IF
-- next
CREATE TRIGGER IF NOT EXISTS {p}entry_delete BEFORE DELETE ON {p}entry FOR EACH ROW
	IF NOT EXISTS (SELECT 1 FROM {p}mending WHERE id = OLD.transfer_id) THEN
		SIGNAL SQLSTATE '45000' SET MESSAGE_TEXT = 'entries are immutable: make a reversal instead';
	END IF
