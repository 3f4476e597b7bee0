// Package peerpb is the generated code of what coordinators say to one another (peer.proto). `make proto` makes it anew.
package peerpb
