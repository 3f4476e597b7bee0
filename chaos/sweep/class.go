package sweep

import "github.com/lockstep-tx/lockstep/chaos/seed"

// The classes that are not planted by a statement in one database.
const (
	d17 seed.Class = "D17" // an effect applied to a copy twice
	d19 seed.Class = "D19" // a region that does not go on with another's events
	d21 seed.Class = "D21" // a region's wallets set back to what they were
	d22 seed.Class = "D22" // events that are noted as published and are not in the topic
)

// place says in which region's database a class is planted.
type place int

const (
	atHome   place = iota // of the branch's account
	atCopy                // the other region
	anywhere              // either
)

// class is what the suite knows of one: where it is planted, under which names it may be found, and what is to be done.
type class struct {
	id    seed.Class
	title string
	// as are the names under which the product may find it.
	as []string
	// person: it is left as it is, for somebody to decide. Else it is repaired.
	person bool
	// commits, aborts: of which transactions it is planted in a branch.
	commits, aborts bool
	place           place
	// plantedAs is the class of the seed's statements, where that is another.
	plantedAs seed.Class
	// adds: the repair leaves rows of its own, a reversal or one that is not counted.
	adds bool
	// account: what is altered is an account, not a transaction.
	account bool
	// journal: it is planted in a journal's row; event: in the slot's chain of events.
	journal bool
	// apart: it is planted when nothing else is.
	apart bool
}

// classes in the order of the report.
var classes = []class{
	{id: seed.D01, title: "lost confirm", as: []string{"D01"}, commits: true},
	{id: seed.D02, title: "lost cancel", as: []string{"D02"}, aborts: true},
	{id: seed.D03, title: "confirm applied twice", as: []string{"D03"}, commits: true, adds: true},
	{id: seed.D04, title: "cancel applied twice", as: []string{"D04"}, aborts: true, adds: true},
	{id: seed.D05, title: "confirm and cancel both applied", as: []string{"D05"}, person: true, aborts: true},
	{id: seed.D06, title: "account amount corrupted", as: []string{"D06"}, commits: true, place: anywhere, account: true},
	{id: seed.D07, title: "a branch's amount corrupted", as: []string{"D07"}, commits: true},
	{id: seed.D08, title: "wrong account", as: []string{"D08"}, commits: true},
	{id: seed.D09, title: "phantom entry", as: []string{"D09"}, person: true, commits: true, place: anywhere, account: true},
	{id: seed.D10, title: "phantom hold", as: []string{"D10", "D14"}, person: true, commits: true},
	{id: seed.D11, title: "barrier row missing, effect present", as: []string{"D11"}, commits: true, aborts: true},
	{id: seed.D12, title: "barrier row present, effect missing", as: []string{"D12"}, commits: true, aborts: true},
	{id: seed.D13, title: "never tried, decision commit", as: []string{"D13"}, person: true, commits: true},
	{id: seed.D14, title: "transaction's record missing at its region", as: []string{"D14"}, commits: true, aborts: true, journal: true},
	{id: seed.D15, title: "status flipped in the store", as: []string{"D15"}, commits: true, aborts: true, place: anywhere, journal: true},
	{id: seed.D16, title: "event missing", as: []string{"D16"}, commits: true, aborts: true, place: atCopy, journal: true},
	{id: d17, title: "event applied twice", as: []string{"D17"}, commits: true, place: atCopy, plantedAs: seed.D03, adds: true},
	{id: seed.D18, title: "newer overwritten by older", as: []string{"D18"}, commits: true, aborts: true, place: atCopy, journal: true},
	{id: d19, title: "stale region", as: []string{"D19"}, commits: true, aborts: true, place: atCopy, journal: true},
	{id: seed.D20, title: "another body for one number", as: []string{"D20"}, commits: true, aborts: true, place: anywhere, journal: true},
	{id: d21, title: "region set back to a backup", as: []string{"D21"}, apart: true},
	{id: d22, title: "noted as published, absent from the topic", as: []string{"D22"}, apart: true},
	{id: seed.D23, title: "compensating pair", as: []string{"D23"}, commits: true, place: anywhere, account: true},
	{id: seed.D24, title: "unit or currency swapped", as: []string{"D24"}, commits: true},
}

// IDs of the sweep in the suite: each class, then the quiet control.
func IDs() []string {
	var out []string
	for i := range classes {
		out = append(out, "R"+string(classes[i].id[1:]))
	}
	return append(out, Quiet)
}

// Quiet is the id of the quiet control.
const Quiet = "E0"
