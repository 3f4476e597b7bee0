-- Counters are rows by (account, shard). Shard 0 is the definition and, of direct and serial accounts, the counters too;
-- the other modes have theirs in shards 1 and up, so that traffic never writes the row that it reads. No foreign keys:
-- their checks would lock the rows of hot accounts.
CREATE TABLE {p}account (
	id text COLLATE "C" NOT NULL,
	shard int NOT NULL,
	currency text NOT NULL CHECK (currency ~ '^[A-Z]{3}$'),
	mode text NOT NULL CHECK (mode IN ('direct', 'serial', 'buffered', 'aggregated', 'split', 'clearing')),
	shards int NOT NULL,
	overdraft text NOT NULL CHECK (overdraft IN ('none', 'any')),
	max_credit bigint CHECK (max_credit > 0),
	max_debit bigint CHECK (max_debit > 0),
	state text NOT NULL CHECK (state IN ('open', 'frozen', 'closed')),
	debits_pending bigint NOT NULL DEFAULT 0 CHECK (debits_pending >= 0),
	debits_posted bigint NOT NULL DEFAULT 0 CHECK (debits_posted >= 0),
	credits_pending bigint NOT NULL DEFAULT 0 CHECK (credits_pending >= 0),
	credits_posted bigint NOT NULL DEFAULT 0 CHECK (credits_posted >= 0),
	PRIMARY KEY (id, shard),
	CONSTRAINT no_overdraft CHECK (overdraft = 'any' OR debits_pending + debits_posted <= credits_posted),
	CONSTRAINT credit_cap CHECK (credits_pending + credits_posted <= coalesce(max_credit, 9000000000000000000)),
	CONSTRAINT debit_cap CHECK (debits_pending + debits_posted <= coalesce(max_debit, 9000000000000000000)),
	CONSTRAINT caps_by_mode CHECK (mode IN ('direct', 'serial') OR (max_credit IS NULL AND max_debit IS NULL))
) WITH (fillfactor = 50)
-- next
CREATE INDEX {i}account_mode ON {p}account (mode, id) WHERE shard = 0 AND mode NOT IN ('direct', 'serial')
-- next
-- One row per leg; leg 0 speaks for the whole. Shard -1 is a side that is insert only: its pending is this row.
CREATE TABLE {p}transfer (
	id text COLLATE "C" NOT NULL,
	leg int NOT NULL,
	legs int NOT NULL,
	kind text NOT NULL CHECK (kind IN ('hold', 'transfer', 'reversal', 'tombstone', 'cut')),
	state text NOT NULL CHECK (state IN ('pending', 'posted', 'voided')),
	digest text NOT NULL,
	gid text COLLATE "C" NOT NULL,
	branch text COLLATE "C" NOT NULL,
	of_id text COLLATE "C" NOT NULL,
	debit text COLLATE "C" NOT NULL,
	debit_shard int NOT NULL,
	credit text COLLATE "C" NOT NULL,
	credit_shard int NOT NULL,
	amount bigint NOT NULL CHECK (amount >= 0),
	currency text NOT NULL,
	total bigint NOT NULL CHECK (total >= 0),
	refunded bigint NOT NULL DEFAULT 0,
	created_us bigint NOT NULL,
	settled_us bigint,
	PRIMARY KEY (id, leg),
	CONSTRAINT refunds_within_payment CHECK (refunded >= 0 AND refunded <= total)
) WITH (fillfactor = 80)
-- next
CREATE INDEX {i}transfer_gid ON {p}transfer (gid) WHERE kind <> 'hold' AND gid <> ''
-- next
CREATE INDEX {i}transfer_hot_debit ON {p}transfer (debit) WHERE state = 'pending' AND debit_shard = -1
-- next
CREATE INDEX {i}transfer_hot_credit ON {p}transfer (credit) WHERE state = 'pending' AND credit_shard = -1
-- next
CREATE TABLE {p}entry (
	transfer_id text COLLATE "C" NOT NULL,
	leg int NOT NULL,
	direction text NOT NULL CHECK (direction IN ('debit', 'credit')),
	account text COLLATE "C" NOT NULL,
	amount bigint NOT NULL CHECK (amount > 0),
	currency text NOT NULL,
	gid text COLLATE "C" NOT NULL,
	branch text COLLATE "C" NOT NULL,
	posted_us bigint NOT NULL,
	balance_after bigint,
	PRIMARY KEY (transfer_id, leg, direction)
)
-- next
CREATE INDEX {i}entry_account ON {p}entry (account, posted_us)
-- next
CREATE FUNCTION {p}entry_is_immutable() RETURNS trigger LANGUAGE plpgsql AS $body$
BEGIN
	RAISE EXCEPTION 'entries are immutable: make a reversal instead';
END $body$
-- next
CREATE TRIGGER entry_is_immutable BEFORE UPDATE OR DELETE ON {p}entry FOR EACH STATEMENT EXECUTE FUNCTION {p}entry_is_immutable()
-- next
-- What insert-only sides have posted and their account's counters do not show yet. day is 0, or yyyymmdd where a day cut posts it.
CREATE TABLE {p}buffer (
	id bigint GENERATED ALWAYS AS IDENTITY,
	account text COLLATE "C" NOT NULL,
	day int NOT NULL,
	debit bigint NOT NULL CHECK (debit >= 0),
	credit bigint NOT NULL CHECK (credit >= 0),
	PRIMARY KEY (account, id)
)
-- next
-- The entries of a posted transfer, and what its insert-only sides owe their counters.
CREATE FUNCTION {p}book(p_id text, p_now bigint, p_day int) RETURNS void LANGUAGE plpgsql VOLATILE AS $body$
BEGIN
	INSERT INTO {p}entry (transfer_id, leg, direction, account, amount, currency, gid, branch, posted_us, balance_after)
		SELECT t.id, t.leg, s.direction, s.account, t.amount, t.currency, t.gid, t.branch, p_now,
			CASE WHEN s.shard = 0 THEN (SELECT a.credits_posted - a.debits_posted FROM {p}account a WHERE a.id = s.account AND a.shard = 0) END
		FROM {p}transfer t CROSS JOIN LATERAL (VALUES ('debit', t.debit, t.debit_shard), ('credit', t.credit, t.credit_shard)) AS s (direction, account, shard)
		WHERE t.id = p_id AND t.amount > 0;
	INSERT INTO {p}buffer (account, day, debit, credit)
		SELECT s.account, CASE WHEN right(s.account, 9) = ':clearing' THEN p_day ELSE 0 END, s.debit, s.credit
		FROM {p}transfer t CROSS JOIN LATERAL (VALUES (t.debit, t.debit_shard, t.amount, 0::bigint), (t.credit, t.credit_shard, 0::bigint, t.amount)) AS s (account, shard, debit, credit)
		WHERE t.id = p_id AND t.amount > 0 AND s.shard = -1;
END $body$
-- next
-- Writes a transfer whole. 0: done. 1: the id is there. 2: more than the payment is refunded. 1000 + k: account k of the
-- insert-only sides does not take it; 2000 + k: limits or state of move k. After any but 0 the caller rolls back, or has
-- seen 1, which wrote nothing.
CREATE FUNCTION {p}enter(p_id text, p_kind text, p_post boolean, p_gid text, p_branch text, p_digest text, p_of text, p_total bigint, p_now bigint, p_day int,
	l_leg int[], l_debit text[], l_dshard int[], l_credit text[], l_cshard int[], l_amount bigint[], l_currency text[],
	g_account text[], g_mode text[],
	m_account text[], m_shard int[], m_mode text[], m_currency text[], m_debit bigint[], m_credit bigint[])
RETURNS int LANGUAGE plpgsql VOLATILE AS $body$
DECLARE
	i int;
	n int := cardinality(l_leg);
BEGIN
	FOR i IN 1 .. n LOOP
		INSERT INTO {p}transfer (id, leg, legs, kind, state, digest, gid, branch, of_id, debit, debit_shard, credit, credit_shard, amount, currency, total, created_us, settled_us)
			VALUES (p_id, l_leg[i], n, p_kind, CASE WHEN p_post THEN 'posted' ELSE 'pending' END, p_digest, p_gid, p_branch, p_of,
				l_debit[i], l_dshard[i], l_credit[i], l_cshard[i], l_amount[i], l_currency[i], p_total, p_now, CASE WHEN p_post THEN p_now END)
			ON CONFLICT (id, leg) DO NOTHING;
		IF NOT FOUND THEN
			RETURN 1;
		END IF;
	END LOOP;
	IF p_of <> '' AND p_kind IN ('hold', 'transfer') THEN
		UPDATE {p}transfer SET refunded = refunded + p_total WHERE id = p_of AND leg = 0 AND kind IN ('hold', 'transfer') AND of_id = ''
			AND state = 'posted' AND currency = l_currency[1] AND refunded + p_total <= total;
		IF NOT FOUND THEN
			RETURN 2;
		END IF;
	END IF;
	FOR i IN 1 .. cardinality(g_account) LOOP
		PERFORM pg_advisory_xact_lock_shared({lock}, hashtext(g_account[i]));
	END LOOP;
	FOR i IN 1 .. cardinality(g_account) LOOP
		PERFORM 1 FROM {p}account WHERE id = g_account[i] AND shard = 0 AND mode = g_mode[i] AND state = 'open';
		IF NOT FOUND THEN
			RETURN 1000 + i - 1;
		END IF;
	END LOOP;
	FOR i IN 1 .. cardinality(m_account) LOOP
		IF p_post THEN
			UPDATE {p}account SET debits_posted = debits_posted + m_debit[i], credits_posted = credits_posted + m_credit[i]
				WHERE id = m_account[i] AND shard = m_shard[i] AND mode = m_mode[i] AND currency = m_currency[i] AND state = 'open'
				AND (overdraft = 'any' OR debits_pending + debits_posted + m_debit[i] <= credits_posted + m_credit[i])
				AND debits_pending + debits_posted + m_debit[i] <= coalesce(max_debit, 9000000000000000000)
				AND credits_pending + credits_posted + m_credit[i] <= coalesce(max_credit, 9000000000000000000);
		ELSE
			UPDATE {p}account SET debits_pending = debits_pending + m_debit[i], credits_pending = credits_pending + m_credit[i]
				WHERE id = m_account[i] AND shard = m_shard[i] AND mode = m_mode[i] AND currency = m_currency[i] AND state = 'open'
				AND (overdraft = 'any' OR debits_pending + debits_posted + m_debit[i] <= credits_posted)
				AND debits_pending + debits_posted + m_debit[i] <= coalesce(max_debit, 9000000000000000000)
				AND credits_pending + credits_posted + m_credit[i] <= coalesce(max_credit, 9000000000000000000);
		END IF;
		IF NOT FOUND THEN
			RETURN 2000 + i - 1;
		END IF;
	END LOOP;
	IF p_post THEN
		PERFORM {p}book(p_id, p_now, p_day);
	END IF;
	RETURN 0;
END $body$
-- next
-- Ends a hold: true if it was this call that did.
CREATE FUNCTION {p}settle(p_id text, p_digest text, p_post boolean, p_now bigint, p_day int) RETURNS boolean LANGUAGE plpgsql VOLATILE AS $body$
DECLARE
	r record;
BEGIN
	UPDATE {p}transfer SET state = CASE WHEN p_post THEN 'posted' ELSE 'voided' END, settled_us = p_now
		WHERE id = p_id AND kind = 'hold' AND state = 'pending' AND (p_digest = '' OR digest = p_digest);
	IF NOT FOUND THEN
		RETURN false;
	END IF;
	IF NOT p_post THEN
		SELECT of_id, total INTO r FROM {p}transfer WHERE id = p_id AND leg = 0;
		IF r.of_id <> '' THEN
			UPDATE {p}transfer SET refunded = refunded - r.total WHERE id = r.of_id AND leg = 0;
		END IF;
	END IF;
	FOR r IN SELECT s.account, s.shard, sum(s.debit)::bigint AS debit, sum(s.credit)::bigint AS credit
		FROM {p}transfer t CROSS JOIN LATERAL (VALUES (t.debit, t.debit_shard, t.amount, 0::bigint), (t.credit, t.credit_shard, 0::bigint, t.amount)) AS s (account, shard, debit, credit)
		WHERE t.id = p_id AND s.shard >= 0 GROUP BY s.account, s.shard ORDER BY s.account, s.shard
	LOOP
		UPDATE {p}account SET debits_pending = debits_pending - r.debit, credits_pending = credits_pending - r.credit,
			debits_posted = debits_posted + CASE WHEN p_post THEN r.debit ELSE 0 END,
			credits_posted = credits_posted + CASE WHEN p_post THEN r.credit ELSE 0 END
			WHERE id = r.account AND shard = r.shard;
		IF NOT FOUND THEN
			RAISE EXCEPTION 'ledger: hold % names account % shard %, which is gone', p_id, r.account, r.shard;
		END IF;
	END LOOP;
	IF p_post THEN
		PERFORM {p}book(p_id, p_now, p_day);
	END IF;
	RETURN true;
END $body$
-- next
-- Posts up to p_max rows of the buffer; how many it were. The lock comes first: two that fold take turns, and a debit that
-- folds sees all that is committed.
CREATE FUNCTION {p}fold(p_account text, p_max int) RETURNS int LANGUAGE plpgsql VOLATILE AS $body$
DECLARE
	n int;
	d bigint;
	c bigint;
BEGIN
	PERFORM 1 FROM {p}account WHERE id = p_account AND shard = 1 FOR UPDATE;
	WITH gone AS (DELETE FROM {p}buffer WHERE account = p_account AND id IN (SELECT id FROM {p}buffer WHERE account = p_account AND day = 0 LIMIT p_max) RETURNING debit, credit)
		SELECT count(*), coalesce(sum(debit), 0), coalesce(sum(credit), 0) INTO n, d, c FROM gone;
	IF n > 0 THEN
		UPDATE {p}account SET debits_posted = debits_posted + d, credits_posted = credits_posted + c WHERE id = p_account AND shard = 1;
	END IF;
	RETURN n;
END $body$
