package conformance

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/dtm-labs/dtm/client/dtmgrpc/dtmgpb"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/lockstep-tx/lockstep/coordinator/dtmwire"
	rig "github.com/lockstep-tx/lockstep/coordinator/dtmwire/dtmwiretest"
)

// Section 3.1.
func TestSmallPathsAnswerInDTMsForm(t *testing.T) {
	r, _ := start(t)
	if code, body, h := r.Get("/version"); code != 200 || string(body) != `{"version":"`+dtmwire.DTMVersion+`"}` || h.Get("Content-Type") != "application/json" {
		t.Errorf("version: %d %s", code, body)
	}
	for _, method := range []string{"GET", "POST", "PUT"} {
		if code, body, _ := r.Do(method, r.HTTP+"/api/ping", nil); code != 200 || string(body) != `{"msg":"pong"}` {
			t.Errorf("%s ping: %d %s", method, code, body)
		}
	}
	seen := map[string]bool{}
	for range 100 {
		_, body, h := r.Get("/newGid")
		var out map[string]string
		if err := json.Unmarshal(body, &out); err != nil || out["dtm_result"] != "SUCCESS" || out["gid"] == "" || seen[out["gid"]] || h.Get("Content-Type") != "application/json" {
			t.Fatalf("newGid: %s", body)
		}
		seen[out["gid"]] = true
	}
	reply, err := r.Client.NewGid(context.Background(), &emptypb.Empty{})
	if err != nil || reply.Gid == "" || seen[reply.Gid] {
		t.Errorf("NewGid: %v %v", reply, err)
	}
}

// Section 3.2: forceStop shows the transaction as failed; nothing is called, no cancel either.
func TestForceStopEndsItWithoutAnyCall(t *testing.T) {
	r, p := start(t)
	begin(t, r, p, "g", "01")
	p.Always("01", "confirm", rig.Ongoing)
	post(t, r, "/submit", end("g"))
	r.PassOver("g")
	post(t, r, "/forceStop", map[string]string{"gid": "g"})
	wantEnd(t, r, "g", failed, prepared, prepared)
	r.Advance(time.Hour)
	wantOps(t, p, "g", "01 confirm")
	if code, body, _ := r.Post("/forceStop", map[string]string{"gid": "g"}); code != 409 || !strings.Contains(string(body), "global transaction force stop error. status: failed. error: FAILURE") {
		t.Errorf("a second stop answered %d %s", code, body)
	}
	if code, body, _ := r.Post("/forceStop", map[string]string{"gid": "unknown"}); code != 500 || !strings.Contains(string(body), "no TransGlobal with gid: unknown found") {
		t.Errorf("a stop of an unknown gid answered %d %s", code, body)
	}
	if code, _, _ := r.Post("/submit", end("g")); code != 409 {
		t.Errorf("a submit after the stop answered %d", code)
	}
	begin(t, r, p, "done", "02")
	post(t, r, "/submit", end("done"))
	r.Await("done", succeed)
	if code, body, _ := r.Post("/forceStop", map[string]string{"gid": "done"}); code != 409 || !strings.Contains(string(body), "status: succeed") {
		t.Errorf("a stop of a finished one answered %d %s", code, body)
	}
}

// Section 3.4: ids are numbers of 31 bits, times are never null, options always hold concurrent.
func TestQueryFitsStrictReaders(t *testing.T) {
	r, p := start(t)
	begin(t, r, p, "g", "01")
	check := func(body []byte, list string) {
		t.Helper()
		if strings.Contains(string(body), `"create_time":null`) || strings.Contains(string(body), `"finish_time":null`) || strings.Contains(string(body), "_time\":\"\"") {
			t.Errorf("a time is null or empty: %s", body)
		}
		var out map[string]json.RawMessage
		noErr(t, json.Unmarshal(body, &out))
		rows := []map[string]any{}
		if list == "transactions" {
			noErr(t, json.Unmarshal(out[list], &rows))
		} else {
			var tx map[string]any
			noErr(t, json.Unmarshal(out["transaction"], &tx))
			noErr(t, json.Unmarshal(out["branches"], &rows))
			if !strings.Contains(tx["options"].(string), `"concurrent":false`) {
				t.Errorf("options are %v", tx["options"])
			}
			rows = append(rows, tx)
		}
		for _, row := range rows {
			if id, ok := row["id"].(float64); !ok || id < 0 || id > 1<<31-1 || id != float64(int64(id)) {
				t.Errorf("id is %v", row["id"])
			}
			for k, v := range row {
				if strings.HasSuffix(k, "_time") {
					if _, err := time.Parse(time.RFC3339, fmt.Sprint(v)); err != nil {
						t.Errorf("%s is %v", k, v)
					}
				}
			}
			if row["create_time"] == nil || row["update_time"] == nil {
				t.Errorf("row %v has no times", row)
			}
			if n, ok := row["next_cron_interval"].(float64); ok && (n < 0 || n > 1<<31-1) {
				t.Errorf("next_cron_interval is %v", n)
			}
		}
	}
	_, body, _ := r.Get("/query?gid=g")
	check(body, "")
	_, body, _ = r.Get("/all")
	check(body, "transactions")
	post(t, r, "/submit", end("g"))
	r.Await("g", succeed)
	_, body, _ = r.Get("/query?gid=g")
	check(body, "")
	_, body, _ = r.Get("/all?gid=g")
	check(body, "transactions")
}

// all lists the gids of every page of /all.
func all(t *testing.T, r *rig.Rig, query string) (gids []string) {
	t.Helper()
	position := ""
	for range 100 {
		_, body, _ := r.Get("/all?" + query + "&position=" + url.QueryEscape(position))
		var out struct {
			Transactions []struct{ Gid string }
			Next         *string `json:"next_position"`
		}
		if err := json.Unmarshal(body, &out); err != nil || out.Next == nil {
			t.Fatalf("/all: %s", body)
		}
		for _, tx := range out.Transactions {
			gids = append(gids, tx.Gid)
		}
		if position = *out.Next; position == "" {
			return gids
		}
	}
	t.Fatal("/all has no end")
	return nil
}

// Section 3.1: /all pages, filters and shows the live and the finished.
func TestAllPagesAndFilters(t *testing.T) {
	r, p := start(t)
	for i := range 25 {
		gid := fmt.Sprintf("g%02d", i)
		begin(t, r, p, gid, "01")
		switch i % 3 {
		case 1:
			post(t, r, "/submit", end(gid))
			r.Await(gid, succeed)
		case 2:
			post(t, r, "/abort", end(gid))
			r.Await(gid, failed)
		}
	}
	post(t, r, "/prepare", map[string]string{"gid": "xa", "trans_type": "xa"})
	r.Journaled(16) // /all takes the finished ones from there
	for query, want := range map[string]int{
		"limit=4": 26, "limit=100": 26, "status=prepared&limit=3": 10, "status=succeed&limit=3": 8, "status=failed": 8, "status=submitted": 0,
		"transType=xa": 1, "transType=tcc&limit=7": 25, "createTimeStart=" + fmt.Sprint(time.Now().Add(time.Hour).UnixMilli()): 0,
		"createTimeEnd=" + fmt.Sprint(time.Now().Add(time.Hour).UnixMilli()): 26,
	} {
		gids := all(t, r, query)
		seen := map[string]bool{}
		for _, g := range gids {
			if seen[g] {
				t.Errorf("%s lists %s twice", query, g)
			}
			seen[g] = true
		}
		if len(gids) != want {
			t.Errorf("%s lists %d, want %d: %v", query, len(gids), want, gids)
		}
	}
}

// Section 10, over HTTP and gRPC alike.
func TestTopicsSubscribeUnsubscribeDelete(t *testing.T) {
	type topics struct{ sub, unsub, del func(topic, u string) string }
	overHTTP := func(r *rig.Rig) topics {
		do := func(method, path string) string {
			code, body, _ := r.Do(method, r.DTM+path, nil)
			var m map[string]string
			_ = json.Unmarshal(body, &m)
			if code != http.StatusOK && code != http.StatusInternalServerError {
				t.Errorf("%s answered %d", path, code)
			}
			return m["message"]
		}
		q := func(path string) func(string, string) string {
			return func(topic, u string) string {
				return do("GET", path+"?topic="+url.QueryEscape(topic)+"&remark=r&url="+url.QueryEscape(u))
			}
		}
		return topics{q("/subscribe"), q("/unsubscribe"), func(topic, _ string) string { return do("DELETE", "/topic/"+topic) }}
	}
	overGRPC := func(r *rig.Rig) topics {
		text := func(err error) string {
			if err == nil {
				return ""
			}
			wantCode(t, err, "Unknown")
			_, after, _ := strings.Cut(err.Error(), "desc = ")
			return after
		}
		ctx := context.Background()
		return topics{
			func(topic, u string) string {
				return text(ignore(r.Client.Subscribe(ctx, &dtmgpb.DtmTopicRequest{Topic: topic, URL: u, Remark: "r"})))
			},
			func(topic, u string) string {
				return text(ignore(r.Client.Unsubscribe(ctx, &dtmgpb.DtmTopicRequest{Topic: topic, URL: u})))
			},
			func(topic, _ string) string {
				return text(ignore(r.Client.DeleteTopic(ctx, &dtmgpb.DtmTopicRequest{Topic: topic})))
			},
		}
	}
	r, _ := start(t)
	for name, tp := range map[string]topics{"h": overHTTP(r), "g": overGRPC(r)} {
		a, b := "http://dtm/1", "http://dtm/2"
		for i, step := range []struct{ got, want string }{
			{tp.sub(name, a), ""}, {tp.sub(name, a), "this url exists"}, {tp.sub("", a), "empty topic"}, {tp.sub(name, ""), "empty url"}, {tp.sub(name, b), ""},
			{tp.unsub(name, a), ""}, {tp.unsub(name, a), "no such an url "}, {tp.unsub("", a), "empty topic"}, {tp.unsub(name, ""), "empty url"},
			{tp.unsub("none", a), "no such a topic"}, {tp.unsub(name, b), ""}, {tp.unsub(name, b), "this topic is empty"},
			{tp.del("none", ""), "storage: NotFound"}, {tp.del(name, ""), ""}, {tp.del(name, ""), "storage: NotFound"},
		} {
			if step.got != step.want {
				t.Errorf("%s step %d answered %q, want %q", name, i, step.got, step.want)
			}
		}
	}
	for i := range 7 {
		r.Get(fmt.Sprintf("/subscribe?topic=t%d&url=http://a&remark=x", i))
	}
	var keys []string
	position := ""
	for range 10 {
		_, body, _ := r.Get("/scanKV?cat=topics&limit=3&position=" + url.QueryEscape(position))
		var out struct {
			KV   []struct{ K, V, Cat string }
			Next string `json:"next_position"`
		}
		noErr(t, json.Unmarshal(body, &out))
		for _, kv := range out.KV {
			keys = append(keys, kv.K)
			if kv.Cat != "topics" || kv.V != `[{"url":"http://a","remark":"x"}]` {
				t.Errorf("row is %+v", kv)
			}
		}
		if position = out.Next; position == "" {
			break
		}
	}
	if len(keys) != 7 {
		t.Errorf("scanKV lists %v", keys)
	}
	if _, body, _ := r.Get("/queryKV?cat=topics&key=none"); string(body) != `{"kv":[]}` {
		t.Errorf("queryKV of nothing answered %s", body)
	}
}
