-- A connection keeps the plans of a function's statements. Those made while a table is known to be empty or small scan it
-- whole, also when it has grown since, until autovacuum's next ANALYZE; an ANALYZE here would be the surest way to such
-- plans. All these statements go by the beginning of an index, which costs nothing where the table is small. book is called
-- by enter and settle alone. Whoever replaces one of these functions sets it again.
ALTER FUNCTION {p}enter SET enable_seqscan = off
-- next
ALTER FUNCTION {p}settle SET enable_seqscan = off
-- next
ALTER FUNCTION {p}fold SET enable_seqscan = off
