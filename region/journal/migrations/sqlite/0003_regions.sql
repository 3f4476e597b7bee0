-- What a journal keeps beyond its own region's transactions (ADR 8). origin is a region's index: an epoch modulo 100.
-- The chain of (origin, slot) is in the rows of lockstep_journal, two events each, and here: carries (3) and seals (4).
CREATE TABLE lockstep_event (
	origin INTEGER NOT NULL,
	slot INTEGER NOT NULL,
	seq INTEGER NOT NULL,
	kind INTEGER NOT NULL,
	epoch INTEGER NOT NULL,
	chain BLOB NOT NULL,
	gid BLOB NOT NULL,
	body BLOB NOT NULL,
	PRIMARY KEY (origin, slot, seq)
) STRICT;
-- How far the chain of (origin, slot) is applied. stopped is why it goes no further, empty while it does.
CREATE TABLE lockstep_watermark (
	origin INTEGER NOT NULL,
	slot INTEGER NOT NULL,
	epoch INTEGER NOT NULL,
	seq INTEGER NOT NULL,
	chain BLOB NOT NULL,
	stopped TEXT NOT NULL,
	updated_at INTEGER NOT NULL,
	PRIMARY KEY (origin, slot)
) STRICT;
-- Where to go on reading in the origin's Kafka: a hint, the watermark is the truth.
CREATE TABLE lockstep_offset (
	origin INTEGER NOT NULL,
	part INTEGER NOT NULL,
	next_offset INTEGER NOT NULL,
	PRIMARY KEY (origin, part)
) STRICT;
-- How far the participants' copies have what the chain of (origin, slot) says.
CREATE TABLE lockstep_applied (
	origin INTEGER NOT NULL,
	slot INTEGER NOT NULL,
	seq INTEGER NOT NULL,
	PRIMARY KEY (origin, slot)
) STRICT;
-- Events that may not be applied: they contradict the chain, or come after a seal. Never dropped in silence.
CREATE TABLE lockstep_divergence (
	id INTEGER PRIMARY KEY,
	origin INTEGER NOT NULL,
	slot INTEGER NOT NULL,
	seq INTEGER NOT NULL,
	at INTEGER NOT NULL,
	reason TEXT NOT NULL,
	event BLOB NOT NULL
) STRICT;
CREATE INDEX lockstep_journal_decision ON lockstep_journal (slot, decision_seq);
CREATE INDEX lockstep_journal_finish ON lockstep_journal (slot, finish_seq);
