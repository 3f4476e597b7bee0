// Package sim is the deterministic simulator (layer L1 of the chaos suite): three regions with two coordinators each, an arbiter,
// participants with their accounts, an event log between the regions and an operator, in one goroutine, on a simulated clock, from
// one seed.
//
// The law it keeps: a run is a function of its seed, its script of faults and its options alone, so that the trace of a seed is
// the same to the byte over any two runs, and a fault can be taken out of the script and the rest replayed. A violation ends a
// run at once; a run in which nothing was decided is no pass.
//
// What is the product's own code in it: the transaction (txn), the Core with its timers, batches, terms and global decisions, the
// way in which a slot is sealed, imported and handed back after a loss (engine.Mover), the filter of known gids, records, events
// and their chain (record), the owners and their transitions (slot), the machine of handover and forced failover (failover.Next),
// the seals that frozen journals give (conduct.Seals), what is driven after a loss and what tries prove (recovery), and the store
// in memory, which passes the stores' suite.
//
// What is a model, because the product's has goroutines, SQL or sockets in it: the Runner's loop (claims, calls, the journal's
// queue), the journal with its order of epochs, freeze, bind and cut, the pulling of events and the filling of gaps, the applier,
// the arbiter's compares, Place (addresses of branches, doubts, what a region hands back), the conductor's writes, and the
// participants: barrier, fence rows, release and adoption. A fault in those is found by the tests of their packages, not here.
//
// It is tested by switching one rule off at a time: each unsafe shortcut must be found within a bounded number of seeds.
// Source: chaos reference, sections 2.3, 3 and 13; multi-region reference, section 1.4.
package sim
