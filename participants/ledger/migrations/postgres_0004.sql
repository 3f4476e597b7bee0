-- Holds whose id is the caller's own are found by their gid here; the others by their id, which begins with it. Hardly any
-- hold is in it, so that payments do not pay for it.
CREATE INDEX {i}transfer_own_id ON {p}transfer (gid) WHERE kind = 'hold' AND gid <> '' AND id <> gid || ':' || branch
