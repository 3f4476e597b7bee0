// Package apipb is the generated code of the native API (lockstep.proto). `make proto` makes it anew.
package apipb
