-- What a journal keeps beyond its own region's transactions (ADR 8). origin is a region's index: an epoch modulo 100.
-- The chain of (origin, slot) is in the rows of lockstep_journal, two events each, and here: carries (3) and seals (4).
CREATE TABLE IF NOT EXISTS lockstep_event (
	origin BIGINT NOT NULL,
	slot BIGINT NOT NULL,
	seq BIGINT NOT NULL,
	kind BIGINT NOT NULL,
	epoch BIGINT NOT NULL,
	chain VARBINARY(32) NOT NULL,
	gid VARBINARY(128) NOT NULL,
	body LONGBLOB NOT NULL,
	PRIMARY KEY (origin, slot, seq)
) ENGINE=InnoDB ROW_FORMAT=DYNAMIC;
-- How far the chain of (origin, slot) is applied. stopped is why it goes no further, empty while it does.
CREATE TABLE IF NOT EXISTS lockstep_watermark (
	origin BIGINT NOT NULL,
	slot BIGINT NOT NULL,
	epoch BIGINT NOT NULL,
	seq BIGINT NOT NULL,
	chain VARBINARY(32) NOT NULL,
	stopped VARCHAR(1000) NOT NULL,
	updated_at BIGINT NOT NULL,
	PRIMARY KEY (origin, slot)
) ENGINE=InnoDB ROW_FORMAT=DYNAMIC;
-- Where to go on reading in the origin's Kafka: a hint, the watermark is the truth.
CREATE TABLE IF NOT EXISTS lockstep_offset (
	origin BIGINT NOT NULL,
	part BIGINT NOT NULL,
	next_offset BIGINT NOT NULL,
	PRIMARY KEY (origin, part)
) ENGINE=InnoDB ROW_FORMAT=DYNAMIC;
-- How far the participants' copies have what the chain of (origin, slot) says.
CREATE TABLE IF NOT EXISTS lockstep_applied (
	origin BIGINT NOT NULL,
	slot BIGINT NOT NULL,
	seq BIGINT NOT NULL,
	PRIMARY KEY (origin, slot)
) ENGINE=InnoDB ROW_FORMAT=DYNAMIC;
-- Events that may not be applied: they contradict the chain, or come after a seal. Never dropped in silence.
CREATE TABLE IF NOT EXISTS lockstep_divergence (
	id BIGINT NOT NULL AUTO_INCREMENT PRIMARY KEY,
	origin BIGINT NOT NULL,
	slot BIGINT NOT NULL,
	seq BIGINT NOT NULL,
	at BIGINT NOT NULL,
	reason VARCHAR(1000) NOT NULL,
	event LONGBLOB NOT NULL
) ENGINE=InnoDB ROW_FORMAT=DYNAMIC;
CREATE INDEX lockstep_journal_decision ON lockstep_journal (slot, decision_seq);
CREATE INDEX lockstep_journal_finish ON lockstep_journal (slot, finish_seq);
