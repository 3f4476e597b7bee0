// Command dtmpeer is DTM's own server, unchanged, as a binary of its own.
//
// It exists to be measured against and adopted from: bench-peers, bench-recovery and the import tests start it as a
// process (package coordinator/bench/peer does the starting). It is a module of its own because DTM v1.19.0 is built
// with the dependency versions of its own go.mod, which are older than ours: minimal version selection over that one
// requirement gives exactly them.
//
// Left out on purpose: the admin pages (DTM proxies them from a host outside when they are not embedded) and the
// drivers for service discovery, which no test here uses.
//
// Configuration is DTM's: environment variables (STORE_DRIVER, HTTP_PORT, …) and -c FILE. The boltdb store opens
// ./dtm.bolt, so the working directory is the data directory.
package main

import (
	"os"
	"os/signal"
	"syscall"

	"github.com/dtm-labs/dtm/dtmsvr/entry"
)

// version is what GET /api/dtmsvr/version answers.
var version = "v1.19.0"

func main() {
	if app, _ := entry.Main(&version); app == nil {
		return // -h and -v
	}
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGINT, syscall.SIGTERM)
	<-stop
}
