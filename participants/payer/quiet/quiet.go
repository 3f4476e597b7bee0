// Package quiet keeps the logger of DTM's SDK from complaining, as the program starts, that LOG_LEVEL names no level, and
// from telling of every request later. It is imported for that effect.
//
// The logger reads the variable when it is initialised. Go initialises packages in the order of their paths as soon as what
// they import is initialised (since Go 1.21), and this one, which imports os alone, is ready before zap, which the logger
// waits for. It is tested with the program: `lockstep-participants --help` says nothing on standard error.
package quiet

import "os"

func init() {
	if os.Getenv("LOG_LEVEL") == "" {
		_ = os.Setenv("LOG_LEVEL", "error") // if it fails there is a line too much
	}
}
