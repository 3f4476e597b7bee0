// Package spec is a model of the protocol in Promela (tcc.pml), and a test that has Spin search it: two regions, one after the
// other the owner of a transaction, two participants, a network that loses, repeats and reorders.
//
// The law it keeps: a model that nobody executes is decoration. Every rule that the model can break is broken, and the search must
// find what comes of it; a rule that it cannot find the want of stands in the test as such. The code is not what is
// searched here: package search does that, within one region. The model's source is DESIGN, sections 3, 4 and 7; ADR 9.
//
// The test needs Spin and a C compiler, which make test installs; -spec.all searches the larger worlds too (minutes, 1 GiB).
package spec
