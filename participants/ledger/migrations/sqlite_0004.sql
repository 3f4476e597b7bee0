-- Entries are changed by a repair alone, which names the transfer here first and takes the name away again in the same local
-- transaction: nobody else ever sees a row.
CREATE TABLE {p}mending (id TEXT PRIMARY KEY) WITHOUT ROWID
-- next
DROP TRIGGER {i}entry_update
-- next
DROP TRIGGER {i}entry_delete
-- next
CREATE TRIGGER {i}entry_update BEFORE UPDATE ON {p}entry WHEN NOT EXISTS (SELECT 1 FROM {p}mending WHERE id = OLD.transfer_id)
	BEGIN SELECT RAISE(ABORT, 'entries are immutable: make a reversal instead'); END
-- next
CREATE TRIGGER {i}entry_delete BEFORE DELETE ON {p}entry WHEN NOT EXISTS (SELECT 1 FROM {p}mending WHERE id = OLD.transfer_id)
	BEGIN SELECT RAISE(ABORT, 'entries are immutable: make a reversal instead'); END
