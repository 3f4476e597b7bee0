package peer

import "strings"

// The tables of DTM's SQL store: the columns and unique keys it reads, writes and relies on (a duplicate gid or branch
// must be refused by the database), and the index of its poll. Written out once; the two dialects differ in the words of
// dialect alone.
const tables = `
CREATE TABLE trans_global (
  id ID, gid varchar(128) NOT NULL, trans_type varchar(45) NOT NULL, status varchar(45) NOT NULL,
  query_prepared varchar(1024) NOT NULL, protocol varchar(45) NOT NULL, owner varchar(128) NOT NULL DEFAULT '',
  create_time TIME, update_time TIME, finish_time TIME, rollback_time TIME,
  next_cron_interval int, next_cron_time TIME,
  options varchar(1024) DEFAULT '', custom_data varchar(1024) DEFAULT '', ext_data text,
  result varchar(1024) DEFAULT '', rollback_reason varchar(1024) DEFAULT '',
  UNIQUE (gid)
);
CREATE INDEX trans_global_owner ON trans_global (owner);
CREATE INDEX trans_global_due ON trans_global (status, next_cron_time);
CREATE TABLE trans_branch_op (
  id ID, gid varchar(128) NOT NULL, url varchar(1024) NOT NULL, data text, bin_data BYTES,
  branch_id varchar(128) NOT NULL, op varchar(45) NOT NULL, status varchar(45) NOT NULL,
  finish_time TIME, rollback_time TIME, create_time TIME, update_time TIME,
  UNIQUE (gid, branch_id, op)
);
CREATE TABLE kv (
  id ID, cat varchar(45) NOT NULL, k varchar(128) NOT NULL, v text, version bigint DEFAULT 1,
  create_time TIME, update_time TIME,
  UNIQUE (cat, k)
);`

var (
	postgresTables = dialect("ID", "bigserial PRIMARY KEY", "TIME", "timestamp(0) with time zone", "BYTES", "bytea")
	mysqlTables    = dialect("ID", "bigint AUTO_INCREMENT PRIMARY KEY", "TIME", "datetime NULL", "BYTES", "blob")
)

// dialect returns the statements with each word (whole and in capitals) replaced by its type.
func dialect(wordType ...string) []string {
	var pairs []string
	for i := 0; i < len(wordType); i += 2 {
		word, typ := wordType[i], wordType[i+1]
		pairs = append(pairs, " "+word+",", " "+typ+",", " "+word+"\n", " "+typ+"\n")
	}
	text := strings.NewReplacer(pairs...).Replace(tables)
	return strings.Split(strings.TrimSuffix(strings.TrimSpace(text), ";"), ";\n")
}
