package telemetry

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"runtime/pprof"
	"time"

	"github.com/grafana/pyroscope-go"
)

// uploadTimeout bounds one upload, and so how long a stop waits for the last ones.
const uploadTimeout = 5 * time.Second

// StartProfiles sends CPU and memory profiles to a Pyroscope server until stop is called.
func StartProfiles(url, region, member string, log *slog.Logger) (stop func() error, err error) {
	p, err := pyroscope.Start(pyroscope.Config{
		ApplicationName: "lockstep.coordinator", ServerAddress: url, Tags: map[string]string{"region": region, "member": member},
		Logger: profileLog{log}, HTTPClient: &http.Client{Timeout: uploadTimeout},
		ProfileTypes: []pyroscope.ProfileType{
			pyroscope.ProfileCPU, pyroscope.ProfileAllocSpace, pyroscope.ProfileInuseSpace, pyroscope.ProfileGoroutines,
		},
	})
	if err != nil {
		return nil, fmt.Errorf("pyroscope: %w", err)
	}
	return func() error {
		p.Flush(true) // Stop alone drops what is not sent yet
		return p.Stop()
	}, nil
}

type profileLog struct{ log *slog.Logger }

// Infof, Debugf and Errorf are pyroscope.Logger's.
func (l profileLog) Infof(format string, a ...any)  { l.log.Debug(fmt.Sprintf(format, a...)) }
func (l profileLog) Debugf(format string, a ...any) { l.log.Debug(fmt.Sprintf(format, a...)) }
func (l profileLog) Errorf(format string, a ...any) { l.log.Warn(fmt.Sprintf(format, a...)) }

// Labelled runs f with the labels that profiles are read by: the transaction's mode and the phase of the work.
func Labelled(ctx context.Context, mode, phase string, f func()) {
	pprof.Do(ctx, pprof.Labels("mode", mode, "phase", phase), func(context.Context) { f() })
}
