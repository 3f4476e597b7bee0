// Package batchpb is the native batch protocol (batch.proto): its generated code, which `make proto` makes anew, and the names
// that both sides use.
package batchpb

const (
	// Path takes native batches over HTTP, unless the offer names another one.
	Path = "/lockstep/v1/batch"
	// Method takes them over gRPC.
	Method = "/lockstep.participant.v1.Participant/Batch"
	// QueryMethod answers messages' check-backs over gRPC.
	QueryMethod = "/lockstep.participant.v1.Participant/QueryPrepared"
	// OfferHeader in an answer to a single call says where batches are taken (HTTP header; in lower case as gRPC header
	// metadata).
	OfferHeader = "Lockstep-Batch"
	// ContentType is that of a batch and its reply over HTTP.
	ContentType = "application/protobuf"
)
