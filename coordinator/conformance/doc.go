// Package conformance drives a whole coordinator over its wire: with DTM's own Go SDK unchanged, with bodies written by
// hand after the other SDKs, with one test per defect of DTM that concerns the wire, the engine or the invoker, and with
// bad input. It has no code of its own but tests.
//
// The scenarios and the statuses they expect come from the DTM wire reference; section numbers in the tests are its.
package conformance
