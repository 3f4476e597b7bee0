-- For listings by phase and mode that few rows match. Each pair has its own run of ids, so that a page is read from its end,
-- and rows are appended at ten places at most.
CREATE INDEX lockstep_journal_kind ON lockstep_journal (phase, mode, id) WHERE finish_seq IS NOT NULL;
