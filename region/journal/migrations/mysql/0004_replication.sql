-- How far the chain of (origin, slot) was published to the region's Kafka. It may be old: publishing again is harmless.
CREATE TABLE IF NOT EXISTS lockstep_published (
	origin BIGINT NOT NULL,
	slot BIGINT NOT NULL,
	seq BIGINT NOT NULL,
	chain VARBINARY(32) NOT NULL,
	PRIMARY KEY (origin, slot)
) ENGINE=InnoDB ROW_FORMAT=DYNAMIC;
-- How far each peer's journal has the chain of (origin, slot): bodies above it are not trimmed.
CREATE TABLE IF NOT EXISTS lockstep_ack (
	slot BIGINT NOT NULL,
	origin BIGINT NOT NULL,
	peer BIGINT NOT NULL,
	seq BIGINT NOT NULL,
	PRIMARY KEY (slot, origin, peer)
) ENGINE=InnoDB ROW_FORMAT=DYNAMIC;
