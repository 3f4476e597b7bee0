-- What was carried in a slot, and its seals, whichever region's: a forced failover asks for many slots at once.
CREATE INDEX lockstep_event_kind ON lockstep_event (slot, kind, epoch);
