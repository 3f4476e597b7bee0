// Package recordpb is the generated code of the stored form of a transaction (record.proto). `make proto` makes it anew.
package recordpb
