package demo

import (
	_ "embed"
	"encoding/json"
	"html/template"
	"os"
	"path/filepath"
	"strings"
	"time"
)

//go:embed timeline.html
var timelineHTML string

var timelineTemplate = template.Must(template.New("timeline").Parse(timelineHTML))

// writeTimeline writes the run as one HTML file that needs nothing else, and gives its path.
func (d *demo) writeTimeline(table string) (path string, err error) {
	d.watch.mu.Lock()
	defer d.watch.mu.Unlock()
	data, err := json.Marshal(map[string]any{
		"lanes": d.world.names(), "events": d.watch.events, "seconds": d.watch.seconds, "took": time.Since(d.start).Seconds(),
	})
	if err != nil {
		return "", err
	}
	if path, err = filepath.Abs(d.cfg.Timeline); err != nil {
		return "", err
	}
	f, err := os.Create(path)
	if err != nil {
		return "", err
	}
	defer func() {
		if cerr := f.Close(); err == nil {
			err = cerr
		}
	}()
	return path, timelineTemplate.Execute(f, map[string]any{"Data": template.JS(data), "Table": strings.TrimSpace(table), "At": d.start.Format(time.RFC3339)})
}
