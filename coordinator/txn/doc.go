// Package txn is one global transaction: its State, the Events that reach it, the Effects it owes, and the one
// function, Step, that leads from a state and an event to the next state.
//
// The law it keeps: nothing here reads a clock, randomness, a log, a lock or map order, and nothing here does I/O.
// An event carries its time, set once where it entered. What a transaction decides is therefore a function of what
// it was told, and every decision can be replayed.
//
// It is tested by the golden matrix of every state and event (testdata/transitions.golden), by scenario scripts
// (testdata/scenarios), by a property test that Step emits nothing that Owed does not know, and by fuzzing.
// Source: docs/architecture.md, sections 4 and 5 of the design; serves G1, G2, G4 and G8.
package txn

//go:generate go test . -run TestMatrix -update
