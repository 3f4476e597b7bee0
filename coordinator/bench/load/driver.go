// Package load is the client side of the benchmarks: a number of clients, each running one global transaction after the
// other against a coordinator, two branches, waiting for the end. cmd/bench-load makes a process of it; the drivers for
// the APIs are packages of their own.
package load

import "context"

// Branches is the number of branches of every transaction.
const Branches = 2

// The APIs by which transactions are run, as bench-load's --api names them.
const (
	HTTP   = "http"   // DTM's Go SDK over HTTP
	GRPC   = "grpc"   // DTM's Go SDK over gRPC
	Native = "native" // our own API, one call per transaction, HTTP participants; only Lockstep speaks it
	// NativeBatch is Native with participants that take batches.
	NativeBatch = "native-batch"
	// PayDTM and PayNative are payments between the ledgers of package payees: with DTM's Go SDK over HTTP, and with our
	// API in one call.
	PayDTM    = "pay-dtm"
	PayNative = "pay-native"
)

// Driver runs transactions through one API. Run is called by many clients at once.
type Driver interface {
	// Run runs one transaction and returns nil when the coordinator said that it is committed and confirmed.
	Run(ctx context.Context) error
}

// Config says where the coordinator and the participants are.
type Config struct {
	Coordinator      string // in the form that the API's clients take
	ParticipantsHTTP string // host:port
	ParticipantsGRPC string // host:port

	// Of payments: where the two ledgers are, how many accounts each has, and how many of the merchants are paid.
	Buyers, Merchants            string // host:port
	BuyerAccounts, MerchantsPaid int
}
