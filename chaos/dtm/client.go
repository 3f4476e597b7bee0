package dtm

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"

	"github.com/lockstep-tx/lockstep/chaos/history"
)

// verdict is a transaction as DTM's query shows it.
type verdict struct {
	Gid         string `json:"gid"`
	Transaction *struct {
		Status         string `json:"status"`
		RollbackReason string `json:"rollback_reason,omitempty"`
	} `json:"transaction"`
	Branches []struct {
		Branch string `json:"branch_id"`
		Op     string `json:"op"`
		Status string `json:"status"`
	} `json:"branches"`
}

// known says that DTM knows of it.
func (v *verdict) known() bool { return v.Transaction != nil }

func (v *verdict) status() string {
	if v.Transaction == nil {
		return ""
	}
	return v.Transaction.Status
}

// ended says that DTM does nothing for it any more.
func (v *verdict) ended() bool { return v.status() == "succeed" || v.status() == "failed" }

// phase is its status in the numbers of our journals.
func (v *verdict) phase() int {
	return map[string]int{"submitted": 3, "aborting": 4, "succeed": 5, "failed": 6}[v.status()]
}

// value is its status as a client reads it: submitted and aborting are decisions.
func (v *verdict) value() history.Value {
	return map[string]history.Value{"submitted": history.Committed, "succeed": history.Committed, "aborting": history.Aborted, "failed": history.Aborted, "prepared": history.Open, "": history.Open}[v.status()]
}

// query asks the servers, one after the other until one answers.
func (s *System) query(ctx context.Context, servers []string, gid string) (v verdict, err error) {
	for _, at := range servers {
		req, rerr := http.NewRequestWithContext(ctx, http.MethodGet, at+"/query?gid="+url.QueryEscape(gid), nil)
		if rerr != nil {
			return v, rerr
		}
		resp, rerr := s.http.Do(req)
		if rerr != nil {
			err = rerr
			continue
		}
		raw, rerr := io.ReadAll(resp.Body)
		resp.Body.Close()
		if rerr == nil && resp.StatusCode != http.StatusOK {
			rerr = fmt.Errorf("query of %s: %s: %.200s", gid, resp.Status, raw)
		}
		if rerr == nil {
			v = verdict{}
			rerr = json.Unmarshal(raw, &v)
		}
		if v.Gid = gid; rerr == nil {
			return v, nil
		}
		err = rerr
	}
	return v, err
}

// errNo is DTM's No: 409.
var errNo = errors.New("refused")

// post sends one of DTM's requests. nil is its Yes, errNo its No; all else leaves open what became of it.
func (s *System) post(ctx context.Context, at string, body any) error {
	raw, err := json.Marshal(body)
	if err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, at, bytes.NewReader(raw))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := s.http.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	said, err := io.ReadAll(resp.Body)
	switch {
	case err != nil:
		return err
	case resp.StatusCode == http.StatusOK:
		return nil
	case resp.StatusCode == http.StatusConflict:
		return fmt.Errorf("%w: %.200s", errNo, said)
	}
	return fmt.Errorf("%s: %.200s", resp.Status, said)
}
