-- How far the chain of (origin, slot) was published to the region's Kafka. It may be old: publishing again is harmless.
CREATE TABLE lockstep_published (
	origin bigint NOT NULL,
	slot bigint NOT NULL,
	seq bigint NOT NULL,
	chain bytea NOT NULL,
	PRIMARY KEY (origin, slot)
);
-- How far each peer's journal has the chain of (origin, slot): bodies above it are not trimmed.
CREATE TABLE lockstep_ack (
	slot bigint NOT NULL,
	origin bigint NOT NULL,
	peer bigint NOT NULL,
	seq bigint NOT NULL,
	PRIMARY KEY (slot, origin, peer)
);
