package report_test

import (
	"bytes"
	"encoding/csv"
	"strings"
	"testing"

	"github.com/lockstep-tx/lockstep/region/reconcile/dayend"
	"github.com/lockstep-tx/lockstep/region/reconcile/dayend/report"
)

// What a channel wrote is text, not markup and not a formula, and every finding is in both reports.
func TestAReportHoldsEveryFindingAsText(t *testing.T) {
	all := func(each func(dayend.Finding) error) error {
		for _, raw := range []string{"<script>alert(1)</script>", `=HYPERLINK("x")`} {
			f := dayend.Finding{ID: "f1", Class: dayend.Short, Status: dayend.StatusOpen, Key: "a\x1fb", Raw: raw, Text: "theirs only", Line: 7, Theirs: &dayend.Row{Amount: 5, Currency: "CNY"}}
			if err := each(f); err != nil {
				return err
			}
		}
		return nil
	}
	var page, sheet bytes.Buffer
	run := &dayend.Run{Channel: "acme", Day: "20261120", Standing: map[dayend.Class]int{dayend.Short: 2}}
	if err := report.HTML(&page, run, "3 bad lines", all); err != nil {
		t.Fatal(err)
	}
	if s := page.String(); strings.Contains(s, "<script>") || strings.Count(s, "<td>f1</td>") != 2 || !strings.Contains(s, "2 differences stand") || !strings.Contains(s, "3 bad lines") {
		t.Error(s)
	}
	if err := report.CSV(&sheet, all); err != nil {
		t.Fatal(err)
	}
	rows, err := csv.NewReader(&sheet).ReadAll()
	if err != nil || len(rows) != 3 || rows[2][len(rows[2])-1] != `'=HYPERLINK("x")` || rows[1][5] != "a b" {
		t.Errorf("%q, %v", rows, err)
	}
}
