-- Many transfers as sets: the legs are one insert, what moves one counter is one update by the sum, entries are one insert. A
-- limit that the sum keeps each hold would have kept in its turn, since holds only add to what is pending. Counters are
-- updated in their order, so that two calls do not wait for each other in a circle. leg_to says where each transfer's part of
-- the legs ends; gate_to and move_to are not looked at any more.
CREATE OR REPLACE FUNCTION {p}enter_all(p_id text[], p_kind text, p_post boolean, p_gid text[], p_branch text[], p_digest text[], p_of text[], p_total bigint[], p_now bigint, p_day int,
	leg_to int[], gate_to int[], move_to int[],
	l_leg int[], l_debit text[], l_dshard int[], l_credit text[], l_cshard int[], l_amount bigint[], l_currency text[],
	g_account text[], g_mode text[],
	m_account text[], m_shard int[], m_mode text[], m_currency text[], m_debit bigint[], m_credit bigint[])
RETURNS int LANGUAGE plpgsql VOLATILE SET enable_seqscan = off AS $body$
DECLARE
	i int;
	k int;
	r record;
BEGIN
	IF p_post OR p_kind <> 'hold' THEN
		RAISE EXCEPTION 'ledger: only holds are entered together';
	END IF;
	-- A leg's transfer is the first whose part does not end before it.
	INSERT INTO {p}transfer (id, leg, legs, kind, state, digest, gid, branch, of_id, debit, debit_shard, credit, credit_shard, amount, currency, total, created_us, settled_us)
		SELECT p_id[x.t], x.leg, leg_to[x.t] - coalesce(leg_to[x.t - 1], 0), p_kind, 'pending', p_digest[x.t], p_gid[x.t], p_branch[x.t], p_of[x.t],
			x.debit, x.dshard, x.credit, x.cshard, x.amount, x.currency, p_total[x.t], p_now, NULL
		FROM (SELECT width_bucket((l.n - 1)::int, leg_to) + 1 AS t, l.* FROM unnest(l_leg, l_debit, l_dshard, l_credit, l_cshard, l_amount, l_currency)
			WITH ORDINALITY AS l (leg, debit, dshard, credit, cshard, amount, currency, n)) x
		ON CONFLICT (id, leg) DO NOTHING;
	GET DIAGNOSTICS k = ROW_COUNT;
	IF k <> cardinality(l_leg) THEN
		RETURN 1;
	END IF;
	FOR i IN 1 .. cardinality(p_id) LOOP
		IF p_of[i] <> '' THEN
			UPDATE {p}transfer SET refunded = refunded + p_total[i] WHERE id = p_of[i] AND leg = 0 AND kind IN ('hold', 'transfer') AND of_id = ''
				AND state = 'posted' AND currency = l_currency[coalesce(leg_to[i - 1], 0) + 1] AND refunded + p_total[i] <= total;
			IF NOT FOUND THEN
				RETURN i;
			END IF;
		END IF;
	END LOOP;
	FOR r IN SELECT DISTINCT g.account FROM unnest(g_account) AS g (account) ORDER BY g.account LOOP
		PERFORM pg_advisory_xact_lock_shared({lock}, hashtext(r.account));
	END LOOP;
	FOR r IN SELECT DISTINCT g.account, g.mode FROM unnest(g_account, g_mode) AS g (account, mode) ORDER BY g.account, g.mode LOOP
		PERFORM 1 FROM {p}account WHERE id = r.account AND shard = 0 AND mode = r.mode AND state = 'open';
		IF NOT FOUND THEN
			RETURN 1;
		END IF;
	END LOOP;
	FOR r IN SELECT m.account, m.shard, m.mode, m.currency, sum(m.debit) AS debit, sum(m.credit) AS credit
		FROM unnest(m_account, m_shard, m_mode, m_currency, m_debit, m_credit) AS m (account, shard, mode, currency, debit, credit)
		GROUP BY m.account, m.shard, m.mode, m.currency ORDER BY m.account COLLATE "C", m.shard, m.mode, m.currency
	LOOP
		IF r.debit > 2000000000000000000 OR r.credit > 2000000000000000000 THEN
			RETURN 1; -- a sum that might not fit beside the counters
		END IF;
		UPDATE {p}account SET debits_pending = debits_pending + r.debit::bigint, credits_pending = credits_pending + r.credit::bigint
			WHERE id = r.account AND shard = r.shard AND mode = r.mode AND currency = r.currency AND state = 'open'
			AND (overdraft = 'any' OR debits_pending + debits_posted + r.debit::bigint <= credits_posted)
			AND debits_pending + debits_posted + r.debit::bigint <= coalesce(max_debit, 9000000000000000000)
			AND credits_pending + credits_posted + r.credit::bigint <= coalesce(max_credit, 9000000000000000000);
		IF NOT FOUND THEN
			RETURN 1;
		END IF;
	END LOOP;
	RETURN 0;
END $body$
-- next
-- Ends many holds; 0, or else not all of them were there to be ended, and the caller rolls back.
CREATE OR REPLACE FUNCTION {p}settle_all(p_id text[], p_digest text[], p_post boolean, p_now bigint, p_day int) RETURNS int
LANGUAGE plpgsql VOLATILE SET enable_seqscan = off AS $body$
DECLARE
	i int;
	k int;
	r record;
BEGIN
	IF NOT p_post THEN
		FOR i IN 1 .. cardinality(p_id) LOOP
			IF NOT {p}settle(p_id[i], p_digest[i], p_post, p_now, p_day) THEN
				RETURN i;
			END IF;
		END LOOP;
		RETURN 0;
	END IF;
	WITH ended AS (UPDATE {p}transfer t SET state = 'posted', settled_us = p_now FROM unnest(p_id, p_digest) AS x (id, digest)
		WHERE t.id = x.id AND t.kind = 'hold' AND t.state = 'pending' AND (x.digest = '' OR t.digest = x.digest) RETURNING t.id)
		SELECT count(DISTINCT id) INTO k FROM ended;
	IF k <> cardinality(p_id) THEN
		RETURN 1;
	END IF;
	FOR r IN SELECT s.account, s.shard, sum(s.debit) AS debit, sum(s.credit) AS credit
		FROM unnest(p_id) AS x (id) JOIN {p}transfer t ON t.id = x.id
		CROSS JOIN LATERAL (VALUES (t.debit, t.debit_shard, t.amount, 0::bigint), (t.credit, t.credit_shard, 0::bigint, t.amount)) AS s (account, shard, debit, credit)
		WHERE s.shard >= 0 GROUP BY s.account, s.shard ORDER BY s.account COLLATE "C", s.shard
	LOOP
		UPDATE {p}account SET debits_pending = debits_pending - r.debit::bigint, credits_pending = credits_pending - r.credit::bigint,
			debits_posted = debits_posted + r.debit::bigint, credits_posted = credits_posted + r.credit::bigint
			WHERE id = r.account AND shard = r.shard;
		IF NOT FOUND THEN
			RAISE EXCEPTION 'ledger: a hold names account % shard %, which is gone', r.account, r.shard;
		END IF;
	END LOOP;
	-- balance_after is the balance after the whole transfer, in the order of the call: the balance now, less what the transfers
	-- after it did.
	INSERT INTO {p}entry (transfer_id, leg, direction, account, amount, currency, gid, branch, posted_us, balance_after)
		SELECT t.id, t.leg, s.direction, s.account, t.amount, t.currency, t.gid, t.branch, p_now,
			CASE WHEN s.shard = 0 THEN (SELECT a.credits_posted - a.debits_posted FROM {p}account a WHERE a.id = s.account AND a.shard = 0)
				- coalesce(sum(s.change) OVER (PARTITION BY s.account, s.shard ORDER BY x.n DESC RANGE BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING), 0) END
		FROM unnest(p_id) WITH ORDINALITY AS x (id, n) JOIN {p}transfer t ON t.id = x.id
		CROSS JOIN LATERAL (VALUES ('debit', t.debit, t.debit_shard, -t.amount), ('credit', t.credit, t.credit_shard, t.amount)) AS s (direction, account, shard, change)
		WHERE t.amount > 0;
	INSERT INTO {p}buffer (account, day, debit, credit)
		SELECT s.account, CASE WHEN right(s.account, 9) = ':clearing' THEN p_day ELSE 0 END, s.debit, s.credit
		FROM unnest(p_id) AS x (id) JOIN {p}transfer t ON t.id = x.id
		CROSS JOIN LATERAL (VALUES (t.debit, t.debit_shard, t.amount, 0::bigint), (t.credit, t.credit_shard, 0::bigint, t.amount)) AS s (account, shard, debit, credit)
		WHERE t.amount > 0 AND s.shard = -1;
	RETURN 0;
END $body$
