-- One row per decided transaction. id is the listing order. finish_* and finished_at are NULL while the finish is not
-- known. body is 1 while closed and progress are kept, 0 once they were trimmed. Times are unix milliseconds.
CREATE TABLE lockstep_journal (
	id INTEGER PRIMARY KEY,
	gid BLOB NOT NULL UNIQUE,
	slot INTEGER NOT NULL,
	mode INTEGER NOT NULL,
	phase INTEGER NOT NULL,
	body INTEGER NOT NULL DEFAULT 1,
	begun_at INTEGER NOT NULL,
	decided_at INTEGER NOT NULL,
	finished_at INTEGER,
	decision_seq INTEGER NOT NULL,
	decision_epoch INTEGER NOT NULL,
	decision_chain BLOB,
	finish_seq INTEGER,
	finish_epoch INTEGER,
	finish_chain BLOB,
	closed BLOB,
	progress BLOB
) STRICT;

-- For trimming and for listings that hide the old. Rows are inserted with body 1, at the end of the index.
CREATE INDEX lockstep_journal_finished ON lockstep_journal (body, finished_at) WHERE finished_at IS NOT NULL;
