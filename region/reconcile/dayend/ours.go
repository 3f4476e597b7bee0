package dayend

import (
	"context"
	"strings"

	"github.com/lockstep-tx/lockstep/region/reconcile/channelfile"
)

// Ours is our side of a kind.
type Ours interface {
	// Each gives every row that was decided in [from, to), each once, in any order.
	Each(ctx context.Context, from, to int64, each func(*Row) error) error
	// Look says what is known under keys; what is not there is not in the answer.
	Look(ctx context.Context, keys []string) (map[string]Known, error)
	// Ask finds out what became of something that is not decided. It never decides by itself.
	Ask(ctx context.Context, key string) (Known, error)
	// Reverse undoes what key names under id, the id first: what comes late under key is refused from then on. The same id
	// again goes on. done is false where it is not decided yet. An error that is a *Conflict says that it cannot be undone.
	Reverse(ctx context.Context, id, key string) (outcome string, done bool, err error)
	// Book makes what the channel has and we lack; the same case again is the same order. An error that is a *Conflict says why it was refused.
	Book(ctx context.Context, f *Finding, how Missing) (outcome string, done bool, err error)
}

// ByMerchant is an Ours whose sums are by merchant.
type ByMerchant interface {
	// MerchantOf is whose a payment or refund is; "" where our side has no such thing.
	MerchantOf(ctx context.Context, key string) (string, error)
}

// Known is what our side has.
type Known struct {
	Row
	// Reversed says that it was undone.
	Reversed bool
}

// Missing is what a person says about an order that is to be booked.
type Missing struct {
	Merchant, OrderNo, Buyer string
	Items                    map[string]int64
	Who, Reason              string
}

const keySeparator = "\x1f"

// EntryKey names an entry of a statement.
func EntryKey(account, transfer string, debit bool) string {
	side := "credit"
	if debit {
		side = "debit"
	}
	return account + keySeparator + transfer + keySeparator + side
}

// SumKey names a period's sum.
func SumKey(currency, merchant string) string {
	if merchant == "" {
		return currency
	}
	return currency + keySeparator + merchant
}

// ShownKey is a key for people.
func ShownKey(key string) string { return strings.ReplaceAll(key, keySeparator, " ") }

// reversible says whether what only we have is undone by itself: payments and entries are. That a refund of ours is not at the
// channel cannot be undone without the buyer, and a sum is no order.
func reversible(kind channelfile.Kind, key string) bool {
	return kind == channelfile.Bill || kind == channelfile.Business && !strings.Contains(key, "/")
}
