// Package report writes what a day's reconciliation came to, as a page of HTML that needs nothing else and as CSV.
//
// The law it keeps: every finding of the day is in both, with what the channel wrote and what became of it; nothing that a
// channel or a person wrote is taken for markup or for a formula. Memory does not grow with the findings.
//
// It is tested with texts that would be both.
package report

import (
	"encoding/csv"
	"fmt"
	"html/template"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/lockstep-tx/lockstep/region/reconcile/dayend"
)

// Findings gives findings one after the other.
type Findings func(each func(dayend.Finding) error) error

var columns = []string{"id", "day", "kind", "class", "status", "key", "ours_amount", "theirs_amount", "currency", "file", "line", "text", "outcome", "who", "found", "ended", "raw"}

// CSV writes findings as CSV (RFC 4180) with a line of titles. A text that a spreadsheet would take for a formula begins with
// an apostrophe.
func CSV(w io.Writer, findings Findings) error {
	out := csv.NewWriter(w)
	if err := out.Write(columns); err != nil {
		return err
	}
	err := findings(func(f dayend.Finding) error {
		v := viewOf(f)
		cells := []string{v.ID, v.Day, string(v.Kind), string(v.Class), string(v.Status), text(v.Shown), v.OursAmount, v.TheirsAmount, text(v.Currency), text(v.File), v.LineNo,
			text(v.Text), text(v.Outcome), text(v.Who), v.Found, v.Ended, text(v.Raw)}
		return out.Write(cells)
	})
	if err != nil {
		return err
	}
	out.Flush()
	return out.Error()
}

func text(s string) string {
	if s != "" && strings.ContainsAny(s[:1], "=+-@\t\r") {
		return "'" + s
	}
	return s
}

type view struct {
	dayend.Finding
	Shown, OursAmount, TheirsAmount, Currency, LineNo, Found, Ended string
}

func viewOf(f dayend.Finding) view {
	v := view{Finding: f, Shown: dayend.ShownKey(f.Key), Found: at(f.FoundMS), Ended: at(f.EndedMS)}
	if f.Ours != nil {
		v.OursAmount, v.Currency = strconv.FormatInt(f.Ours.Amount, 10), f.Ours.Currency
	}
	if f.Theirs != nil {
		v.TheirsAmount, v.Currency = strconv.FormatInt(f.Theirs.Amount, 10), f.Theirs.Currency
	}
	if f.Line > 0 {
		v.LineNo = strconv.FormatInt(f.Line, 10)
	}
	return v
}

func at(ms int64) string {
	if ms == 0 {
		return ""
	}
	return time.UnixMilli(ms).UTC().Format(time.RFC3339)
}

// HTML writes the report of a run as one page. held says why nothing is reversed, "" if nothing is in the way.
func HTML(w io.Writer, r *dayend.Run, held string, findings Findings) error {
	type count struct {
		Class           dayend.Class
		Standing, Ended int
	}
	classes := map[dayend.Class]count{}
	for c, n := range r.Standing {
		classes[c] = count{c, n, 0}
	}
	for c, n := range r.Ended {
		classes[c] = count{c, classes[c].Standing, n}
	}
	var counts []count
	for _, c := range slices.Sorted(maps.Keys(classes)) {
		counts = append(counts, classes[c])
	}
	head := struct {
		*dayend.Run
		From, To, Held string
		Counts         []count
		Stand          int
	}{r, at(r.FromMS), at(r.ToMS), held, counts, r.Differences()}
	if err := page.ExecuteTemplate(w, "head", head); err != nil {
		return fmt.Errorf("report: %w", err)
	}
	if err := findings(func(f dayend.Finding) error { return page.ExecuteTemplate(w, "row", viewOf(f)) }); err != nil {
		return fmt.Errorf("report: %w", err)
	}
	return page.ExecuteTemplate(w, "foot", nil)
}

var page = template.Must(template.New("page").Parse(`
{{define "head"}}<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>{{.Channel}} {{.Kind}} {{.Day}}</title>
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<style>
body{font:14px/1.4 system-ui,sans-serif;margin:2em;color:#222}table{border-collapse:collapse;margin:1em 0}
th,td{border:1px solid #ccc;padding:.25em .6em;text-align:left;vertical-align:top}td.n{text-align:right;font-variant-numeric:tabular-nums}
tr.due,tr.open{background:#fff3e0}tr.ended{color:#666}.held{background:#ffe0e0;padding:.6em}code{white-space:pre-wrap;word-break:break-all}
</style></head><body>
<h1>{{.Channel}}, {{.Kind}}, day {{.Day}}</h1>
<p>From {{.From}} to {{.To}}. <strong>{{if .Stand}}{{.Stand}} differences stand.{{else}}No difference stands.{{end}}</strong></p>
{{with .Held}}<p class="held">{{.}}</p>{{end}}
<table><tr><th>ours</th><th>theirs</th><th>matched</th><th>from the suspense pool</th><th>into the suspense pool</th></tr>
<tr><td class="n">{{.Ours}}</td><td class="n">{{.Theirs}}</td><td class="n">{{.Matched}}</td><td class="n">{{.FromPool}}</td><td class="n">{{.ToPool}}</td></tr></table>
<table><tr><th>class</th><th>stand</th><th>ended</th></tr>
{{range .Counts}}<tr><td>{{.Class}}</td><td class="n">{{.Standing}}</td><td class="n">{{.Ended}}</td></tr>{{end}}</table>
<table><tr><th>case</th><th>class</th><th>status</th><th>what</th><th>ours</th><th>theirs</th><th>in the file</th><th>text</th><th>outcome</th></tr>
{{end}}
{{define "row"}}<tr class="{{.Status}}"><td>{{.ID}}</td><td>{{.Class}}</td><td>{{.Status}}</td><td>{{.Shown}}</td><td class="n">{{.OursAmount}}</td><td class="n">{{.TheirsAmount}} {{.Currency}}</td><td>{{.File}}{{with .LineNo}} line {{.}}{{end}}{{with .Raw}}<br><code>{{.}}</code>{{end}}</td><td>{{.Text}}</td><td>{{.Outcome}}{{with .Who}} ({{.}}){{end}}</td></tr>
{{end}}
{{define "foot"}}</table><p>Amounts are in minor units.</p></body></html>
{{end}}`))
