-- One row per decided transaction. id is the listing order. finish_* and finished_at are NULL while the finish is not
-- known. body is 1 while closed and progress are kept, 0 once they were trimmed. Times are unix milliseconds. gid is
-- VARBINARY: text collations ignore case or trailing spaces.
-- DDL ends its own transaction here, so that every statement can be repeated.
CREATE TABLE IF NOT EXISTS lockstep_journal (
	id BIGINT NOT NULL AUTO_INCREMENT PRIMARY KEY,
	gid VARBINARY(128) NOT NULL,
	slot INT NOT NULL,
	mode SMALLINT NOT NULL,
	phase SMALLINT NOT NULL,
	body SMALLINT NOT NULL DEFAULT 1,
	begun_at BIGINT NOT NULL,
	decided_at BIGINT NOT NULL,
	finished_at BIGINT NULL,
	decision_seq BIGINT NOT NULL,
	decision_epoch BIGINT NOT NULL,
	decision_chain VARBINARY(32) NULL,
	finish_seq BIGINT NULL,
	finish_epoch BIGINT NULL,
	finish_chain VARBINARY(32) NULL,
	closed LONGBLOB NULL,
	progress LONGBLOB NULL,
	UNIQUE KEY lockstep_journal_gid (gid),
	KEY lockstep_journal_finished (body, finished_at)
) ENGINE=InnoDB ROW_FORMAT=DYNAMIC;
