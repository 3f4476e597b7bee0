-- For listings by phase and mode that few rows match. Each pair has its own run of ids (the primary key ends every entry),
-- so that a page is read from its end. Repeated after an interruption it is there already, which is no error then.
CREATE INDEX lockstep_journal_kind ON lockstep_journal (phase, mode);
