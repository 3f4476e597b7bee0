// Package engine is all transactions of one coordinator process. Core is a plain struct: the transactions of the
// slots that the process holds, their timers, what waits to be saved and who waits for an answer. Runner is the
// goroutines and the I/O around it.
//
// The law it keeps is persist, then perform: what stands behind a Save runs only after the Save is durable under the
// slot's term (G2, G3). A write whose answer is lost is settled by taking a new term and reading the slot again, never
// by guessing and never by a mere read.
//
// Core is tested by scenario scripts and by a simulation with a store that loses answers; Runner with the memory
// store, the embedded etcd and real processes. Source: design, sections 4 and 5; docs/architecture.md.
package engine
