package fault

import (
	"bufio"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// metric reads a metric without labels at a coordinator's admin address; 0 where nobody answers.
func metric(admin, name string) float64 {
	c := http.Client{Timeout: 2 * time.Second}
	resp, err := c.Get("http://" + admin + "/metrics")
	if err != nil {
		return 0
	}
	defer resp.Body.Close()
	for sc := bufio.NewScanner(resp.Body); sc.Scan(); {
		if rest, ok := strings.CutPrefix(sc.Text(), name+" "); ok {
			v, _ := strconv.ParseFloat(strings.TrimSpace(rest), 64)
			return v
		}
	}
	return 0
}

// held is how many slots a coordinator holds.
func held(admin string) float64 { return metric(admin, "lockstep_slots_held") }
