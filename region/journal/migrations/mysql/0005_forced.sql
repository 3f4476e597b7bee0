-- Forced failover (ADR 9). frozen: no event of this epoch or an earlier one is applied before a seal of that epoch, or of a
-- later one, is known. bounded: the epoch of the latest forced seal at which the chain ends here, as far as that epoch goes.
ALTER TABLE lockstep_watermark ADD COLUMN frozen BIGINT NOT NULL DEFAULT 0;
ALTER TABLE lockstep_watermark ADD COLUMN bounded BIGINT NOT NULL DEFAULT 0;
-- seal: the epoch of the forced seal that the event is past; 0: it contradicts. settled says who settled it and how.
ALTER TABLE lockstep_divergence ADD COLUMN epoch BIGINT NOT NULL DEFAULT 0;
ALTER TABLE lockstep_divergence ADD COLUMN gid VARBINARY(128) NOT NULL DEFAULT '';
ALTER TABLE lockstep_divergence ADD COLUMN seal BIGINT NOT NULL DEFAULT 0;
ALTER TABLE lockstep_divergence ADD COLUMN settled VARCHAR(1000) NOT NULL DEFAULT '';
ALTER TABLE lockstep_divergence ADD COLUMN settled_at BIGINT NOT NULL DEFAULT 0;
CREATE INDEX lockstep_divergence_chain ON lockstep_divergence (origin, slot, seq);
-- The forced seals to which this journal was cut, whatever there was to take.
CREATE TABLE IF NOT EXISTS lockstep_cut (
	origin BIGINT NOT NULL,
	slot BIGINT NOT NULL,
	epoch BIGINT NOT NULL,
	seq BIGINT NOT NULL,
	chain VARBINARY(32) NOT NULL,
	at BIGINT NOT NULL,
	PRIMARY KEY (origin, slot, epoch)
) ENGINE=InnoDB ROW_FORMAT=DYNAMIC;
