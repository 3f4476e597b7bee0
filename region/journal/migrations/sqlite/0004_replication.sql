-- How far the chain of (origin, slot) was published to the region's Kafka. It may be old: publishing again is harmless.
CREATE TABLE lockstep_published (
	origin INTEGER NOT NULL,
	slot INTEGER NOT NULL,
	seq INTEGER NOT NULL,
	chain BLOB NOT NULL,
	PRIMARY KEY (origin, slot)
) STRICT;
-- How far each peer's journal has the chain of (origin, slot): bodies above it are not trimmed.
CREATE TABLE lockstep_ack (
	slot INTEGER NOT NULL,
	origin INTEGER NOT NULL,
	peer INTEGER NOT NULL,
	seq INTEGER NOT NULL,
	PRIMARY KEY (slot, origin, peer)
) STRICT;
