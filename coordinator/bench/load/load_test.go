package load

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"time"
)

type fakeDriver struct {
	calls  atomic.Int64
	failed func(n int64) bool
}

func (d *fakeDriver) Run(context.Context) error {
	time.Sleep(time.Millisecond)
	if n := d.calls.Add(1); d.failed != nil && d.failed(n) {
		return errors.New("told to")
	}
	return nil
}

func TestRunCountsWhatWasAskedFor(t *testing.T) {
	d := &fakeDriver{}
	var marks []string
	r, err := Run(t.Context(), d, Plan{Clients: 8, WarmUp: 10 * time.Millisecond, Count: 100},
		func(e string) { marks = append(marks, e) })
	if err != nil {
		t.Fatal(err)
	}
	if r.OK > 100 || r.OK < 99 || r.TotalOK < 100 || int64(r.TotalOK) != d.calls.Load() {
		t.Errorf("result %+v after %d calls", r, d.calls.Load())
	}
	if len(marks) != 2 || marks[0] != "begin" || marks[1] != "end" {
		t.Errorf("marks %v", marks)
	}
}

func TestRunReportsFailures(t *testing.T) {
	d := &fakeDriver{failed: func(n int64) bool { return n%2 == 0 }}
	r, err := Run(t.Context(), d, Plan{Clients: 2, Duration: 100 * time.Millisecond}, func(string) {})
	if err != nil {
		t.Fatal(err)
	}
	if r.TotalFailed == 0 || r.TotalOK == 0 || len(r.Errors) == 0 || len(r.Errors) > errorsKept {
		t.Errorf("result %+v", r)
	}
}
