// Package drift tries the reconciler: each class of drift is planted in the databases of a region that has paid, and must be
// found, named, and repaired or left to a person, as the chaos suite's table says.
//
// The law it keeps: what is planted is planted by SQL of its own (chaos/seed), and a look before it finds nothing. It is made
// of tests alone; those on PostgreSQL and MariaDB have the build tag servers.
package drift
