package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/lockstep-tx/lockstep/participants/payment"
	"github.com/lockstep-tx/lockstep/participants/sqldb"
)

// reconWorld is a directory with a mapping, a channel's outbox and a participant's database.
type reconWorld struct {
	t   *testing.T
	dir string
}

const reconMapping = `channel: acme
kind: business
format: csv
trailer: {begins: "T", fields: {count: {column: 2}, sum: {column: 3}}}
fields: {merchant: {column: 1}, order_no: {column: 2}, amount: {column: 3}, state: {column: 4}, time: {column: 5}}
states: {OK: paid}
currency: CNY
day_cut: "22:00"
name: '^acme_(?P<day>\d{8})\.csv$'
signature: {type: none}
source: {url: %s}
`

func newReconWorld(t *testing.T) *reconWorld {
	t.Helper()
	w := &reconWorld{t, t.TempDir()}
	for _, d := range []string{"outbox", "books"} {
		if err := os.Mkdir(filepath.Join(w.dir, d), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	w.write("mapping.yaml", fmt.Sprintf(reconMapping, filepath.Join(w.dir, "outbox")))
	db, d, err := sqldb.Open(t.Context(), "sqlite:"+filepath.Join(w.dir, "books", "merchant.db"))
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if err := payment.Migrate(t.Context(), db, d); err != nil {
		t.Fatal(err)
	}
	if _, err := db.Exec(`INSERT INTO payment (id, merchant, order_no, body, digest, gid, state, created_ms, decided_ms) VALUES (?, 'm', '1', '{"merchant":"m","order_no":"1","buyer":"b","amount":100,"currency":"CNY"}', '', 'g', 'paid', 1, 1732104000000)`,
		payment.PaymentID("m", "1")); err != nil { // 2024-11-20 12:00 UTC
		t.Fatal(err)
	}
	return w
}

func (w *reconWorld) write(name, text string) {
	w.t.Helper()
	if err := os.WriteFile(filepath.Join(w.dir, name), []byte(text), 0o600); err != nil {
		w.t.Fatal(err)
	}
}

// do runs a command as an operator does, whose environment says where things are.
func (w *reconWorld) do(want int, args ...string) string {
	w.t.Helper()
	w.t.Setenv("LOCKSTEP_RECON_STATE", "sqlite:"+filepath.Join(w.dir, "recon.db"))
	w.t.Setenv("LOCKSTEP_RECON_DIR", filepath.Join(w.dir, "recon"))
	w.t.Setenv("LOCKSTEP_RECON_MAPPING", filepath.Join(w.dir, "mapping.yaml"))
	w.t.Setenv("LOCKSTEP_RECON_BOOKS", "sqlite:"+filepath.Join(w.dir, "books"))
	var out strings.Builder
	if code := run(w.t.Context(), append([]string{"recon"}, args...), &out, &out, noEnv); code != want {
		w.t.Fatalf("lockstep recon %q: exit code %d, want %d\n%s", args, code, want, out.String())
	}
	return out.String()
}

func (w *reconWorld) says(text string, parts ...string) {
	w.t.Helper()
	for _, p := range parts {
		if !strings.Contains(text, p) {
			w.t.Errorf("it does not say %q:\n%s", p, text)
		}
	}
}

// A day goes from the channel's directory to its report; the exit code says whether differences stand, and each line next: leads on.
func TestADayIsReconciledByCommands(t *testing.T) {
	w := newReconWorld(t)
	w.says(w.do(exitFailure, "run", "--day", "2024-11-20"), "file: 0 of the 1 files", "next: lockstep recon load")
	w.write("outbox/acme_20241120.csv", "m,1,100,OK,2024-11-20T12:00:01Z\nm,2,250,OK,2024-11-20T13:00:00Z\nT,2,350\n")
	w.says(w.do(exitOK, "fetch"), "acme_20241120.csv", "next: lockstep recon load")
	w.says(w.do(exitOK, "load"), "2 lines, 0 bad", "next: lockstep recon run --dry-run")
	w.says(w.do(exitOK, "load"), "nothing to load")
	w.says(w.do(exitFailure, "run", "--day", "2024-11-20", "--dry-run"), "short", "1 differences would stand; nothing was changed")
	w.says(w.do(exitOK, "cases"), "no case is open")
	metrics := filepath.Join(w.dir, "recon.prom")
	w.says(w.do(exitFailure, "run", "--day", "20241120", "--metrics", metrics), "1 matched", "1 differences stand", "next: lockstep recon cases")
	if raw, err := os.ReadFile(metrics); err != nil || !strings.Contains(string(raw), `lockstep_recon_differences{channel="acme",kind="business",class="short"} 1`) {
		t.Errorf("%s, %v", raw, err)
	}
	id := strings.Fields(strings.Split(w.do(exitOK, "cases"), "\n")[1])[0]
	w.says(w.do(exitOK, "show", id), "m,2,250,OK", "next: lockstep recon book "+id)
	w.says(w.do(exitFailure, "show", "nothing"), "no such case", "next: lockstep recon cases --all")
	w.says(w.do(exitOK, "book", id, "--buyer", "b", "--item", "x=1", "--reason", "receipt", "--payments", "http://127.0.0.1:1", "--dry-run"), "would book order 2 of merchant m: 250 CNY from b")
	w.says(w.do(exitFailure, "book", id, "--buyer", "b", "--item", "x=1", "--reason", "receipt"), "payments: it is empty", "next: ")
	w.says(w.do(exitOK, "settle", id, "--reason", "the channel gave it back", "--who", "ann"), "is ended")
	w.says(w.do(exitOK, "run", "--day", "2024-11-20"), "no difference stands", "next: lockstep recon report")
	html, sheet := filepath.Join(w.dir, "r.html"), filepath.Join(w.dir, "r.csv")
	w.do(exitOK, "report", "--channel", "acme", "--day", "2024-11-20", "--html", html, "--csv", sheet)
	for _, path := range []string{html, sheet} {
		if raw, err := os.ReadFile(path); err != nil || !strings.Contains(string(raw), id) {
			t.Errorf("%s: %v", path, err)
		}
	}
	w.says(w.do(exitOK, "report", "--audit"), "ann", "the channel gave it back", "compare")
	w.write("outbox/acme_20241120.csv", "m,1,100,OK,2024-11-20T12:00:01Z\nT,1,100\n")
	w.says(w.do(exitFailure, "load", filepath.Join(w.dir, "outbox", "acme_20241120.csv")), "name: ", "is loaded already", "next: ")
}

// Watching does the same by itself, for every day whose time has come.
func TestWatchingGoesThroughTheDays(t *testing.T) {
	w := newReconWorld(t)
	w.write("outbox/acme_20241120.csv", "m,1,100,OK,2024-11-20T12:00:01Z\nT,1,100\n")
	w.write("outbox/acme_20241121.csv", "T,0,0\n")
	w.says(w.do(exitOK, "watch", "--once"), "day 20241120", "1 matched", "day 20241121", "no difference stands")
}

func TestAWrongMappingNamesItsFields(t *testing.T) {
	w := newReconWorld(t)
	w.write("mapping.yaml", "channel: Acme\nkind: daily\n")
	w.says(w.do(exitUsage, "load"), "channel: ", "kind: ", "next: ")
	w.do(exitUsage, "run", "--day", "yesterday")
}

// Every command of the runbook is one that can be typed, and does what the page says where it can.
func TestTheDayEndRunbookRuns(t *testing.T) {
	raw, err := os.ReadFile("../../../docs/runbooks/day-end-differences.md")
	if err != nil {
		t.Fatal(err)
	}
	if _, body, _ := strings.Cut(string(raw), "\n\n"); !strings.HasPrefix(body, "**Do not run `lockstep recon ") {
		t.Error("it does not begin with the wrong command")
	}
	w := newReconWorld(t)
	w.write("acme_20241120.csv", "m,1,100,OK,2024-11-20T12:00:01Z\nm,2,250,OK,2024-11-20T13:00:00Z\nT,2,350\n")
	w.do(exitOK, "load", filepath.Join(w.dir, "acme_20241120.csv"))
	w.do(exitFailure, "run", "--day", "20241120")
	id := strings.Fields(strings.Split(w.do(exitOK, "cases"), "\n")[1])[0]
	place := strings.NewReplacer("CASE", id, "STATE", "sqlite:"+filepath.Join(w.dir, "recon.db"), "DIR", filepath.Join(w.dir, "recon"), "MAPPING", filepath.Join(w.dir, "mapping.yaml"),
		"BOOKS", "sqlite:"+filepath.Join(w.dir, "books"), "PAYMENTS", "http://127.0.0.1:1", "DAY", "2024-11-20")
	ran := 0
	for _, block := range shellBlock.FindAllStringSubmatch(string(raw), -1) {
		for line := range strings.SplitSeq(block[1], "\n") {
			command, ok := strings.CutPrefix(strings.TrimSpace(line), "lockstep ")
			if !ok {
				continue
			}
			ran++
			var out strings.Builder
			if code := run(t.Context(), strings.Fields(place.Replace(command)), &out, &out, noEnv); code == exitUsage {
				t.Errorf("lockstep %s:\n%s", command, out.String())
			}
		}
	}
	if ran < 6 {
		t.Errorf("only %d commands were found", ran)
	}
}

// What a run could not do is told with what it found, counted, and gone on with by the next look of a watch, also when no new day has
// come.
func TestWhatIsDueIsCountedAndGoneOnWith(t *testing.T) {
	w := newReconWorld(t)
	w.write("outbox/acme_20241120.csv", "T,0,0\n") // the channel does not have what is paid here
	metrics := filepath.Join(w.dir, "recon.prom")
	counted := func(lines ...string) {
		t.Helper()
		raw, err := os.ReadFile(metrics)
		if err != nil {
			t.Fatal(err)
		}
		w.says(string(raw), lines...)
	}
	owed := []string{`lockstep_recon_differences{channel="acme",kind="business",class="long"} 1`, `lockstep_recon_due{channel="acme",kind="business"} 1`}
	w.says(w.do(exitFailure, "watch", "--once", "--metrics", metrics), "payments: it is empty", "long", "1 differences stand")
	counted(owed...)
	w.says(w.do(exitFailure, "watch", "--once"), "payments: it is empty")
	w.write("outbox/acme_20241121.csv", "T,0,0\n") // the same to the byte; a clean day does not hide the day before
	w.says(w.do(exitFailure, "watch", "--once", "--metrics", metrics), "payments: it is empty", "day 20241121", "no difference stands")
	counted(owed...)
	id := strings.Fields(strings.Split(w.do(exitOK, "cases"), "\n")[1])[0]
	w.says(w.do(exitOK, "show", id), "next: lockstep recon run --day 20241120")
	w.says(w.do(exitFailure, "settle", id, "--reason", "x", "--dry-run"), "its reversal was begun")
	w.says(w.do(exitFailure, "book", id, "--reason", "x", "--dry-run"), "settle it instead")
}

// A file that is refused is set aside and does not keep the others out; what the channel puts in its place is fetched, also if it is as long.
func TestARefusedFileIsFetchedAgain(t *testing.T) {
	w := newReconWorld(t)
	w.write("outbox/acme_20241120.csv", "m,1,100,OK,2024-11-20T12:00:01Z\nT,1,101\n")
	w.write("outbox/acme_20241121.csv", "T,0,0\n")
	w.do(exitOK, "fetch")
	w.says(w.do(exitFailure, "load"), "acme_20241120.csv.refused", "acme_20241121.csv: acme business day 20241121")
	w.write("outbox/acme_20241120.csv", "m,1,100,OK,2024-11-20T12:00:01Z\nT,1,100\n")
	w.says(w.do(exitOK, "fetch"), "acme_20241120.csv")
	w.says(w.do(exitOK, "load"), "1 lines, 0 bad")
}
