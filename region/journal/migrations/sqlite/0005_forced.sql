-- Forced failover (ADR 9). frozen: no event of this epoch or an earlier one is applied before a seal of that epoch, or of a
-- later one, is known. bounded: the epoch of the latest forced seal at which the chain ends here, as far as that epoch goes.
ALTER TABLE lockstep_watermark ADD COLUMN frozen INTEGER NOT NULL DEFAULT 0;
ALTER TABLE lockstep_watermark ADD COLUMN bounded INTEGER NOT NULL DEFAULT 0;
-- seal: the epoch of the forced seal that the event is past; 0: it contradicts. settled says who settled it and how.
ALTER TABLE lockstep_divergence ADD COLUMN epoch INTEGER NOT NULL DEFAULT 0;
ALTER TABLE lockstep_divergence ADD COLUMN gid BLOB NOT NULL DEFAULT x'';
ALTER TABLE lockstep_divergence ADD COLUMN seal INTEGER NOT NULL DEFAULT 0;
ALTER TABLE lockstep_divergence ADD COLUMN settled TEXT NOT NULL DEFAULT '';
ALTER TABLE lockstep_divergence ADD COLUMN settled_at INTEGER NOT NULL DEFAULT 0;
CREATE INDEX lockstep_divergence_chain ON lockstep_divergence (origin, slot, seq);
-- The forced seals to which this journal was cut, whatever there was to take.
CREATE TABLE lockstep_cut (
	origin INTEGER NOT NULL,
	slot INTEGER NOT NULL,
	epoch INTEGER NOT NULL,
	seq INTEGER NOT NULL,
	chain BLOB NOT NULL,
	at INTEGER NOT NULL,
	PRIMARY KEY (origin, slot, epoch)
) STRICT;
