-- Many transfers in one statement. The arrays ending in _to say where each one's part of the flattened arrays ends. 0: all are
-- written; else the number of the first that is not, and the caller rolls back.
CREATE FUNCTION {p}enter_all(p_id text[], p_kind text, p_post boolean, p_gid text[], p_branch text[], p_digest text[], p_of text[], p_total bigint[], p_now bigint, p_day int,
	leg_to int[], gate_to int[], move_to int[],
	l_leg int[], l_debit text[], l_dshard int[], l_credit text[], l_cshard int[], l_amount bigint[], l_currency text[],
	g_account text[], g_mode text[],
	m_account text[], m_shard int[], m_mode text[], m_currency text[], m_debit bigint[], m_credit bigint[])
RETURNS int LANGUAGE plpgsql VOLATILE AS $body$
DECLARE
	i int;
	l int := 1;
	g int := 1;
	m int := 1;
	code int;
BEGIN
	FOR i IN 1 .. cardinality(p_id) LOOP
		code := {p}enter(p_id[i], p_kind, p_post, p_gid[i], p_branch[i], p_digest[i], p_of[i], p_total[i], p_now, p_day,
			l_leg[l:leg_to[i]], l_debit[l:leg_to[i]], l_dshard[l:leg_to[i]], l_credit[l:leg_to[i]], l_cshard[l:leg_to[i]], l_amount[l:leg_to[i]], l_currency[l:leg_to[i]],
			g_account[g:gate_to[i]], g_mode[g:gate_to[i]],
			m_account[m:move_to[i]], m_shard[m:move_to[i]], m_mode[m:move_to[i]], m_currency[m:move_to[i]], m_debit[m:move_to[i]], m_credit[m:move_to[i]]);
		IF code <> 0 THEN
			RETURN i;
		END IF;
		l := leg_to[i] + 1;
		g := gate_to[i] + 1;
		m := move_to[i] + 1;
	END LOOP;
	RETURN 0;
END $body$
-- next
-- Ends many holds; 0, or the number of the first that this call did not end.
CREATE FUNCTION {p}settle_all(p_id text[], p_digest text[], p_post boolean, p_now bigint, p_day int) RETURNS int LANGUAGE plpgsql VOLATILE AS $body$
DECLARE
	i int;
BEGIN
	FOR i IN 1 .. cardinality(p_id) LOOP
		IF NOT {p}settle(p_id[i], p_digest[i], p_post, p_now, p_day) THEN
			RETURN i;
		END IF;
	END LOOP;
	RETURN 0;
END $body$
