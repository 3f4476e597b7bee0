package conformance

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/dtm-labs/dtm/client/dtmcli"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/wrapperspb"

	rig "github.com/lockstep-tx/lockstep/coordinator/dtmwire/dtmwiretest"
)

// The status words of DTM's protocol.
const (
	prepared  = "prepared"
	submitted = "submitted"
	aborting  = "aborting"
	succeed   = "succeed"
	failed    = "failed"
)

// payload is what the branches of the SDK tests carry.
type payload struct {
	Account string `json:"account"`
	Amount  int64  `json:"amount"`
}

var thirty = &payload{Account: "alice", Amount: 30}

// message is what they carry over gRPC.
func message() proto.Message { return wrapperspb.String("alice:30") }

// start runs a coordinator and a participant, in parallel with the other tests.
func start(t *testing.T, o ...rig.Options) (*rig.Rig, *rig.Participant) {
	t.Helper()
	t.Parallel()
	o = append(o, rig.Options{})
	r := rig.Start(t, o[0])
	return r, rig.NewParticipant(t)
}

func newGid(r *rig.Rig) string { return dtmcli.MustGenGid(r.DTM) }

// wantEnd checks the status and the branch rows of a transaction that has ended or waits.
func wantEnd(t *testing.T, r *rig.Rig, gid, status string, branches ...string) {
	t.Helper()
	if got := r.Status(gid); got != status {
		t.Errorf("status of %s is %q, want %q", gid, got, status)
	}
	if got := r.Branches(gid); !slices.Equal(got, branches) {
		t.Errorf("branch rows of %s are %v, want %v", gid, got, branches)
	}
}

func wantOps(t *testing.T, p *rig.Participant, gid string, want ...string) {
	t.Helper()
	if got := p.Ops(gid); !slices.Equal(got, want) {
		t.Errorf("calls of %s are %v, want %v", gid, got, want)
	}
}

// wantOpsUnordered compares without order: confirms and cancels go out in parallel.
func wantOpsUnordered(t *testing.T, p *rig.Participant, gid string, want ...string) {
	t.Helper()
	got := p.Ops(gid)
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("calls of %s are %v, want %v in any order", gid, got, want)
	}
}

func wantErr(t *testing.T, err error, text string) {
	t.Helper()
	if err == nil || !strings.Contains(err.Error(), text) {
		t.Errorf("error is %v, want one with %q", err, text)
	}
}

func noErr(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// ongoingPause is longer than the default pause after ONGOING, errorPause longer than the longest back-off.
const (
	ongoingPause = 11 * time.Second
	errorPause   = 90 * time.Second
)

// ignore drops the reply of a gRPC call.
func ignore[T any](_ T, err error) error { return err }

func wantCode(t *testing.T, err error, code string) {
	t.Helper()
	if got := status.Code(err).String(); got != code {
		t.Errorf("error is %v, want the code %s", err, code)
	}
}

// eventually asks again until ok.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	end := time.After(20 * time.Second)
	for !ok() {
		select {
		case <-tick.C:
		case <-end:
			t.Fatalf("waited 20 s: %s", what)
		}
	}
}
