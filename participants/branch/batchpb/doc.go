// Package batchpb is the generated code of the native batch protocol (batch.proto). `make proto` makes it anew.
package batchpb
