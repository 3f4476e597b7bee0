-- See sqlite_0004.sql. The trigger is a statement's, so that any name opens it, to its own transaction alone.
CREATE TABLE {p}mending (id text COLLATE "C" PRIMARY KEY)
-- next
CREATE OR REPLACE FUNCTION {p}entry_is_immutable() RETURNS trigger LANGUAGE plpgsql AS $body$
BEGIN
	IF NOT EXISTS (SELECT 1 FROM {p}mending) THEN
		RAISE EXCEPTION 'entries are immutable: make a reversal instead';
	END IF;
	RETURN NULL;
END $body$
