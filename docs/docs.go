// Package docs holds the documentation. It has no code of its own: its tests keep the pages true, and write those that
// are generated.
package docs

//go:generate go test . -run Reference -update
