//go:build servers

package dtmimport_test

import (
	"net/http"
	"net/url"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/lockstep-tx/lockstep/coordinator/bench/peer"
)

// scene is one transaction on its way from DTM to Lockstep.
type scene struct {
	gid string
	// atDTM brings it into its open state, and returns when DTM's store says so.
	atDTM func(h *move, gid string)
	// atLockstep is what its client or participants do after the move; nil for nothing.
	atLockstep func(h *move, gid string)
	// end is DTM's word for how it ends.
	end string
	// effects are the calls that took effect in the end, "branch/op"; all others must have none.
	effects []string
	// once are calls that DTM had seen answered: Lockstep must not have made them again.
	once []string
}

const (
	patient = `"timeout_to_fail":600,`
	hasty   = `"timeout_to_fail":15,` // passes during or after the move
)

// scenes are every open state. Those of the second list have short timeouts and are begun last.
func scenes() (slow, quick []scene) {
	slow = []scene{
		{gid: "tcc-prepared", atDTM: func(h *move, gid string) { h.begin(gid, "tcc", patient); h.try(gid, "01"); h.try(gid, "02") },
			atLockstep: func(h *move, gid string) { h.at(h.lockstep, "submit", `{"gid":"%s","trans_type":"tcc"}`, gid) },
			end:        "succeed", effects: []string{"01/try", "02/try", "01/confirm", "02/confirm"}},
		{gid: "tcc-prepared-one-more", atDTM: func(h *move, gid string) { h.begin(gid, "tcc", patient); h.try(gid, "01") },
			atLockstep: func(h *move, gid string) {
				h.registerAt(h.lockstep, gid, "02")
				h.at(h.lockstep, "abort", `{"gid":"%s","trans_type":"tcc","rollback_reason":"changed my mind"}`, gid)
			},
			end: "failed", effects: []string{"01/try", "01/cancel", "02/cancel"}},
		{gid: "tcc-submitted", atDTM: func(h *move, gid string) {
			h.begin(gid, "tcc", patient)
			h.try(gid, "01")
			h.try(gid, "02")
			h.answer(gid+"/01/confirm", http.StatusInternalServerError)
			h.at(h.dtm, "submit", `{"gid":"%s","trans_type":"tcc"}`, gid)
			h.rowIs(gid, "02", "confirm", "succeed")
			h.called(gid + "/01/confirm")
		}, end: "succeed", effects: []string{"01/try", "02/try", "01/confirm", "02/confirm"}, once: []string{"02/confirm"}},
		{gid: "tcc-aborting", atDTM: func(h *move, gid string) {
			h.begin(gid, "tcc", patient)
			h.try(gid, "01")
			h.try(gid, "02")
			h.answer(gid+"/01/cancel", http.StatusInternalServerError)
			h.at(h.dtm, "abort", `{"gid":"%s","trans_type":"tcc","rollback_reason":"no stock"}`, gid)
			h.rowIs(gid, "02", "cancel", "succeed")
			h.called(gid + "/01/cancel")
		}, end: "failed", effects: []string{"01/try", "02/try", "01/cancel", "02/cancel"}, once: []string{"02/cancel"}},
		{gid: "xa-prepared", atDTM: func(h *move, gid string) {
			h.begin(gid, "xa", patient)
			h.at(h.dtm, "registerBranch", `{"gid":"%s","trans_type":"xa","branch_id":"01","url":"%s"}`, gid, h.part)
		}, atLockstep: func(h *move, gid string) { h.at(h.lockstep, "submit", `{"gid":"%s","trans_type":"xa"}`, gid) },
			end: "succeed", effects: []string{"01/commit"}},
		{gid: "saga-middle", atDTM: func(h *move, gid string) {
			h.answer(gid+"/02/action", http.StatusInternalServerError)
			h.saga(gid, "")
			h.rowIs(gid, "01", "action", "succeed")
			h.called(gid + "/02/action")
		}, end: "succeed", effects: []string{"01/action", "02/action", "03/action"}, once: []string{"01/action"}},
		{gid: "saga-refused-after-the-move", atDTM: func(h *move, gid string) {
			h.answer(gid+"/02/action", http.StatusInternalServerError)
			h.saga(gid, patient)
			h.rowIs(gid, "01", "action", "succeed")
			h.called(gid + "/02/action")
			h.later(gid+"/02/action", http.StatusConflict)
		}, end: "failed", effects: []string{"01/action", "01/compensate", "02/compensate"}, once: []string{"01/action"}},
		{gid: "saga-aborting", atDTM: func(h *move, gid string) {
			h.answer(gid+"/02/action", http.StatusConflict)
			h.answer(gid+"/01/compensate", http.StatusInternalServerError)
			h.saga(gid, "")
			h.rowIs(gid, "02", "compensate", "succeed")
			h.called(gid + "/01/compensate")
		}, end: "failed", effects: []string{"01/action", "01/compensate", "02/compensate"}, once: []string{"01/action", "02/action", "02/compensate"}},
		{gid: "msg-submitted", atDTM: func(h *move, gid string) {
			h.answer(gid+"/02/action", http.StatusInternalServerError)
			h.msg(gid, "submit", "")
			h.rowIs(gid, "01", "action", "succeed")
			h.called(gid + "/02/action")
		}, end: "succeed", effects: []string{"01/action", "02/action"}, once: []string{"01/action"}},
		{gid: "msg-prepared", atDTM: func(h *move, gid string) { h.msg(gid, "prepare", patient) },
			atLockstep: func(h *move, gid string) { h.at(h.lockstep, "submit", `{"gid":"%s","trans_type":"msg"}`, gid) },
			end:        "succeed", effects: []string{"01/action", "02/action"}},
	}
	quick = []scene{
		{gid: "tcc-timed-out", atDTM: func(h *move, gid string) { h.begin(gid, "tcc", hasty); h.try(gid, "01") },
			end: "failed", effects: []string{"01/try", "01/cancel"}},
		{gid: "msg-checked-back", atDTM: func(h *move, gid string) { h.msg(gid, "prepare", hasty) },
			end: "succeed", effects: []string{"00/msg", "01/action", "02/action"}},
		{gid: "msg-disowned", atDTM: func(h *move, gid string) {
			h.later(gid+"/00/msg", http.StatusConflict)
			h.msg(gid, "prepare", hasty)
		}, end: "failed"},
		{gid: "workflow-prepared", atDTM: func(h *move, gid string) {
			h.answer(gid+"/00/pay", http.StatusInternalServerError)
			h.at(h.dtm, "prepareWorkflow", `{"gid":"%s","trans_type":"workflow","protocol":"http","query_prepared":"%s","custom_data":"{\"name\":\"pay\",\"data\":\"aGVsbG8=\"}"}`, gid, h.part)
			h.at(h.dtm, "registerBranch", `{"gid":"%s","trans_type":"workflow","branch_id":"01","op":"action","status":"succeed","data":"paid","sync":"1"}`, gid)
		}, end: "succeed", effects: []string{"00/pay"}},
	}
	return slow, quick
}

// TestAdoptedFromAKilledDTM: on each of DTM's stores, a real DTM server is brought into every open state, refused to
// import from while it runs, killed, and adopted with the real command line. Everything ends as it should: nothing is
// lost, nothing is confirmed and cancelled, what DTM saw answered is not called again, and clients go on.
func TestAdoptedFromAKilledDTM(t *testing.T) {
	for _, env := range []string{"LOCKSTEP_TEST_POSTGRES_URL", "LOCKSTEP_TEST_MYSQL_URL", "LOCKSTEP_TEST_REDIS_URL"} {
		t.Run(strings.ToLower(strings.Split(env, "_")[2]), func(t *testing.T) {
			t.Parallel()
			base := os.Getenv(env)
			if base == "" {
				t.Fatalf("%s is not set: run bin/devctl run -- go test -tags servers ./coordinator/dtmimport", env)
			}
			moveOver(t, base)
		})
	}
}

func moveOver(t *testing.T, base string) {
	ctx := t.Context()
	st, drop, err := peer.CreateStore(ctx, base)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := drop(background(ctx)); err != nil {
			t.Error(err)
		}
	})
	dtm, err := peer.StartDTM(ctx, st, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(dtm.Kill)
	h := newMove(t, dtm.HTTPBase)
	from, err := url.Parse(base)
	if err != nil {
		t.Fatal(err)
	}
	if st.DB != "" {
		from.Path = "/" + st.DB
	}
	args := []string{"import-dtm", "--from", from.String(), "--redis-prefix", st.RedisPrefix}
	if st.RedisPrefix == "" {
		args = args[:3]
	}

	slow, quick := scenes()
	for _, s := range slow {
		s.atDTM(h, s.gid)
	}
	// No driver of service discovery is spoken here: what needs one cannot be adopted.
	h.begin("tcc-odd", "tcc", patient)
	h.at(h.dtm, "registerBranch", `{"gid":"tcc-odd","trans_type":"tcc","branch_id":"01","data":"{}","confirm":"etcd://busi/x","cancel":"etcd://busi/y"}`)
	if out, code := h.run(args...); code != 1 || !strings.Contains(out, "seems to be running") {
		t.Errorf("import from a running DTM: exit %d\n%s", code, out)
	}
	for _, s := range quick {
		s.atDTM(h, s.gid)
	}
	dtm.Kill()
	h.heal()

	h.serve()
	args = append(args, "--admin-addr", h.admin)
	out, code := h.run(append(args, "--dry-run")...)
	if n := len(slow) + len(quick); code != 1 || strings.Count(out, "  adoptable") != n {
		t.Errorf("dry run: exit %d, want 1 and %d adoptable\n%s", code, n, out)
	}
	if got := h.status("tcc-prepared"); got != "" {
		t.Errorf("the dry run left tcc-prepared as %s", got)
	}
	out, code = h.run(args...)
	t.Logf("%s", out)
	if n := len(slow) + len(quick); code != 1 || strings.Count(out, "  adopted") != n || !strings.Contains(out, "tcc-odd") || !strings.Contains(out, "service discovery") {
		t.Fatalf("import: exit %d, want 1, %d adopted and tcc-odd not", code, n)
	}
	for _, s := range append(slow, quick...) {
		if s.atLockstep != nil {
			s.atLockstep(h, s.gid)
		}
	}
	for _, s := range append(slow, quick...) {
		h.eventually(60*time.Second, s.gid+" ends", func() bool { st := h.status(s.gid); return st == "succeed" || st == "failed" })
		if got := h.status(s.gid); got != s.end {
			t.Errorf("%s ended as %s, want %s", s.gid, got, s.end)
		}
		h.audit(&s)
	}
	// Everything has ended; a repeat changes nothing.
	before := h.total()
	out, code = h.run(args...)
	if n := len(slow) + len(quick); code != 1 || strings.Count(out, "  known") != n {
		t.Errorf("repeat: exit %d, want 1 and %d known\n%s", code, n, out)
	}
	if got := h.total(); got != before {
		t.Errorf("the repeat made %d calls", got-before)
	}
	if pass, _ := from.User.Password(); pass != "" && strings.Contains(h.printed.String(), pass) {
		t.Error("the command printed the store's password")
	}
}
