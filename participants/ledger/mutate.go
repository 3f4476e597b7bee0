package ledger

import (
	"context"
	"database/sql"
	"encoding/json"
)

// mendAgain is what the mutant does in the place of mendCounters (package mutant): it adds what the finding says that is
// missing, whatever has become of the account since.
func (s Slots) mendAgain(ctx context.Context, tx *sql.Tx, want AccountFault) (json.RawMessage, error) {
	_, err := tx.ExecContext(ctx, s.q("UPDATE {p}account SET debits_posted = debits_posted + ?, credits_posted = credits_posted + ? WHERE id = ? AND shard = 0"),
		want.Fold[1]-want.Have[1], want.Fold[3]-want.Have[3], want.Account)
	if err != nil {
		return nil, err
	}
	return json.Marshal(map[string]any{"account": want.Account, "mended": true})
}
