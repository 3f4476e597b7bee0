-- Forced failover (ADR 9). frozen: no event of this epoch or an earlier one is applied before a seal of that epoch, or of a
-- later one, is known. bounded: the epoch of the latest forced seal at which the chain ends here, as far as that epoch goes.
ALTER TABLE lockstep_watermark ADD COLUMN frozen bigint NOT NULL DEFAULT 0;
ALTER TABLE lockstep_watermark ADD COLUMN bounded bigint NOT NULL DEFAULT 0;
-- seal: the epoch of the forced seal that the event is past; 0: it contradicts. settled says who settled it and how.
ALTER TABLE lockstep_divergence ADD COLUMN epoch bigint NOT NULL DEFAULT 0;
ALTER TABLE lockstep_divergence ADD COLUMN gid bytea NOT NULL DEFAULT '';
ALTER TABLE lockstep_divergence ADD COLUMN seal bigint NOT NULL DEFAULT 0;
ALTER TABLE lockstep_divergence ADD COLUMN settled text NOT NULL DEFAULT '';
ALTER TABLE lockstep_divergence ADD COLUMN settled_at bigint NOT NULL DEFAULT 0;
CREATE INDEX lockstep_divergence_chain ON lockstep_divergence (origin, slot, seq);
-- The forced seals to which this journal was cut, whatever there was to take.
CREATE TABLE lockstep_cut (
	origin bigint NOT NULL,
	slot bigint NOT NULL,
	epoch bigint NOT NULL,
	seq bigint NOT NULL,
	chain bytea NOT NULL,
	at bigint NOT NULL,
	PRIMARY KEY (origin, slot, epoch)
);
