//go:build servers

package server

// pagedRows is how many finished transactions are paged through: a million takes a minute.
const pagedRows = 1_000_000
