//go:build !servers

package server

// pagedRows is how many finished transactions are paged through.
const pagedRows = 20_000
