package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/lockstep-tx/lockstep/participants/participanttest"
)

type checkCmd struct {
	URL       string        `help:"Address of the branch; its operations are called at URL/try, URL/confirm and URL/cancel. Over gRPC: HOST:PORT/Service, with the methods Try, Confirm and Cancel." `
	Try       string        `help:"Address of the try, where the three are not at one URL."`
	Confirm   string        `help:"Address of the confirm."`
	Cancel    string        `help:"Address of the cancel."`
	Payload   string        `help:"Payload of every call; its try must be possible at least thirty times. It moves real balances: use accounts made for it." default:"{}"`
	Refused   string        `help:"Payload of a try that is to be refused for a business reason, such as more than there is. Without it no such try is checked." placeholder:"JSON"`
	StateURL  string        `help:"URL that answers a GET with all balances that the branch touches: {\"balances\":{\"name\":minor}}. Without it no balance is checked."`
	RegionURL string        `help:"Base URL behind which the participant serves /lockstep/…, where its accounts move between regions. Without it that is not checked."`
	Unfenced  bool          `help:"The participant knows no epochs (written with DTM's SDK)."`
	Timeout   time.Duration `help:"How long one call may take." default:"10s"`
}

// Validate wants the addresses in one of their two forms.
func (c *checkCmd) Validate() error {
	apart := c.Try != "" && c.Confirm != "" && c.Cancel != ""
	if none := c.Try == "" && c.Confirm == "" && c.Cancel == ""; (c.URL != "") == apart || (!apart && !none) {
		return errors.New("give --url http://HOST:PORT/BRANCH, or --try, --confirm and --cancel")
	}
	return nil
}

// exitError ends the program with a code of its own; what is to be said was said.
type exitError int

func (e exitError) Error() string { return fmt.Sprintf("exit %d", int(e)) }

// exitNotChecked says that nothing failed and that not everything was checked.
const exitNotChecked = 3

// Run checks a participant and prints the report. It exits with 0 when all holds, 1 when something does not, 2 when
// nothing could be checked, 3 when nothing failed but not everything was checked.
func (c *checkCmd) Run(ctx context.Context, out io.Writer) error {
	target := participanttest.Target{
		Try: c.Try, Confirm: c.Confirm, Cancel: c.Cancel, Payload: []byte(c.Payload), Refused: []byte(c.Refused), StateURL: c.StateURL, RegionURL: c.RegionURL, Unfenced: c.Unfenced, Timeout: c.Timeout,
	}
	if c.URL != "" {
		base := strings.TrimSuffix(c.URL, "/")
		target.Try, target.Confirm, target.Cancel = base+"/try", base+"/confirm", base+"/cancel"
		if !strings.Contains(base, "://") {
			target.Try, target.Confirm, target.Cancel = base+"/Try", base+"/Confirm", base+"/Cancel"
		}
	}
	r, err := participanttest.Check(ctx, target)
	if r != nil {
		r.Write(out)
	}
	switch {
	case err != nil:
		return errors.Join(fmt.Errorf("the participant could not be checked: %w", err), exitError(2))
	case r.Count(participanttest.Fail) > 0:
		return exitError(1)
	case r.Count(participanttest.NotChecked) > 0:
		return exitError(exitNotChecked)
	}
	return nil
}
