package check

import "net/http"

// Plant is a drift that was planted, and what became of it.
type Plant struct {
	Region  string `json:"region"`
	Class   string `json:"class"`
	Account string `json:"account,omitempty"`
	Gid     string `json:"gid,omitempty"`
	At      int64  `json:"at"`
	// Ambiguous: nothing that is written down anywhere says what was so. Quarantined says whether the product has named it and
	// proposed no repair, Stayed whether it was still there, as it was planted, when all repairs were done.
	Ambiguous   bool `json:"ambiguous"`
	Quarantined bool `json:"quarantined"`
	Stayed      bool `json:"stayed"`
}

// repairs (I13): what is repaired had been altered; a repair that is made again makes nothing worse; and what is ambiguous is
// left as it is, for a person.
func repairs(v *view, r *Result) {
	repeated, quarantined := 0, 0
	done := map[string]int{}
	for _, m := range v.Repairs {
		if m.Status != http.StatusOK {
			continue
		}
		r.Examined++
		key := m.Region + "/" + m.Account + "/" + m.Gid + "/" + m.Branch
		if done[key]++; done[key] == 2 {
			repeated++
		}
		altered := false
		for _, p := range v.Plants {
			same := p.Account != "" && p.Account == m.Account || p.Gid != "" && p.Gid == m.Gid
			altered = altered || same && p.Region == m.Region && p.At <= m.At && !p.Ambiguous
		}
		if !altered {
			r.bad("%s: %s of account %q, transaction %q, branch %q at %d ms: nothing of it had been altered, or nothing says what was so", m.Region, m.Path, m.Account, m.Gid, m.Branch, m.At/1e6)
		}
	}
	for _, p := range v.Plants {
		r.Examined++
		switch {
		case p.Ambiguous && !p.Stayed:
			r.bad("%s: the %s of %s%s was repaired, and nothing says what was so", p.Region, p.Class, p.Account, p.Gid)
		case p.Ambiguous && !p.Quarantined:
			r.bad("%s: the %s of %s%s was not put before a person", p.Region, p.Class, p.Account, p.Gid)
		case p.Ambiguous:
			quarantined++
		default:
			v.restored(p, r)
		}
	}
	r.arm(min(quarantined, repeated), 1, "of the rarer: findings in quarantine, repairs made twice")
}

// restored wants an account whose counters were altered to be what its entries say.
func (v *view) restored(p Plant, r *Result) {
	for _, b := range v.Books {
		if b.Region != p.Region {
			continue
		}
		var sum int64
		for _, e := range b.Entries {
			if e.Account != p.Account {
				continue
			}
			if e.Direction == "credit" {
				sum += e.Amount
			} else {
				sum -= e.Amount
			}
		}
		for _, a := range b.Accounts {
			if a.ID == p.Account && a.Balance() != sum {
				r.bad("%s: %s, whose %s was repaired, has %d, its entries come to %d", b.Region, a.ID, p.Class, a.Balance(), sum)
			}
		}
	}
}
