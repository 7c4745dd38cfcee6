package api

import (
	"encoding/json"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	root "github.com/roost-run/roost"
)

const minimal = `{"config":{"image":"a"}}`

// TestDecoding: what a request means to control.
func TestDecoding(t *testing.T) {
	w := newWorld(t)
	id := w.create(t, `{"name":"one","config":{"image":"a","metadata":{"role":"web"}}}`)
	m := "/v1/apps/shop/machines/" + id
	tests := map[string]struct{ method, path, body, want string }{
		"app by its older name": {"POST", "/v1/apps", `{"app_name":"b","org_slug":"personal","network":"","app_role_id":""}`, "create app b org=personal network= key="},
		"app idempotent":        {"POST", "/v1/apps?wait=true", `{"name":"c","org_slug":"personal","idempotency_key":"k"}`, "create app c org=personal network= key=k"},
		"app delete":            {"DELETE", "/v1/apps/c?force=True", "", "delete app c force=true"},
		"create, all members":   {"POST", "/v1/apps/shop/machines", `{"name":"n","region":"fra,any","skip_launch":true,"skip_service_registration":true,"lsvd":false,"config":{"image":"a"}}`, "create machine name=n region=fra,any skip_launch=true cordoned=true"},
		"list as Python writes": {"GET", "/v1/apps/shop/machines?include_deleted=False", "", "list deleted=false region= states=[] metadata=map[]"},
		"list, all filters":     {"GET", "/v1/apps/shop/machines?include_deleted=1&region=loc&state=started,stopped&state=created&metadata.role=web&metadata.a=b", "", "list deleted=true region=loc states=[started stopped created] metadata=map[a:b role:web]"},
		"update":                {"POST", m, `{"current_version":"01INSTANCE00001","config":{"image":"b"}}`, "update " + id + " current=01INSTANCE00001"},
		"start":                 {"POST", m + "/start", "", "start " + id},
		"stop without body":     {"POST", m + "/stop", "", "stop " + id + " signal= timeout=0s"},
		"stop as fly-go does":   {"POST", m + "/stop", `{"id":"` + id + `","timeout":"0s"}`, "stop " + id + " signal= timeout=0s"},
		"stop, all members":     {"POST", m + "/stop", `{"signal":"SIGTERM","timeout":"1m"}`, "stop " + id + " signal=SIGTERM timeout=1m0s"},
		"stop, nanoseconds":     {"POST", m + "/stop", `{"signal":15,"timeout":1000000000}`, "stop " + id + " signal=SIGTERM timeout=1s"},
		"restart":               {"POST", m + "/restart?force_stop=true&timeout=10s&signal=SIGINT", "", "restart " + id + " signal=SIGINT timeout=10s force=true"},
		"restart, seconds":      {"POST", m + "/restart?timeout=7", "", "restart " + id + " signal= timeout=7s force=false"},
		"signal by number":      {"POST", m + "/signal", `{"signal":9}`, "signal " + id + " 9"},
		"signal by name":        {"POST", m + "/signal", `{"signal":"SIGUSR1"}`, "signal " + id + " 10"},
		"cordon":                {"POST", m + "/cordon", "", "cordon " + id + " true"},
		"uncordon":              {"POST", m + "/uncordon", "", "cordon " + id + " false"},
		"wait":                  {"GET", m + "/wait", "", "wait " + id + " states=[] version= from= timeout=1m0s"},
		"wait, all members":     {"GET", m + "/wait?state=started,stopped&state=settled&timeout=5&instance_id=01I&from_event_id=01E", "", "wait " + id + " states=[started stopped settled] version=01I from=01E timeout=5s"},
		"wait, too long":        {"GET", m + "/wait?state=started&timeout=600&version=01V", "", "wait " + id + " states=[started] version=01V from= timeout=1m0s"},
		"wait, too short":       {"GET", m + "/wait?timeout=0", "", "wait " + id + " states=[] version= from= timeout=1s"},
		"exec, words":           {"POST", m + "/exec", `{"command":["a b","c"],"timeout":5}`, "exec " + id + ` ["a b" "c"] timeout=5s`},
		"exec, a line":          {"POST", m + "/exec", `{"cmd":"sh -c 'echo \"a  b\"' x\\ y \"q\\\"r\" ''"}`, "exec " + id + ` ["sh" "-c" "echo \"a  b\"" "x y" "q\"r" ""] timeout=0s`},
		"lease by query":        {"POST", m + "/lease?ttl=13", "", "lease " + id + " ttl=13s "},
		"lease by body":         {"POST", m + "/lease", `{"ttl":20,"description":"deploy"}`, "lease " + id + " ttl=20s deploy"},
		"lease without ttl":     {"POST", m + "/lease", "", "lease " + id + " ttl=30s "},
		"lease for ever":        {"POST", m + "/lease?ttl=1000000", "", "lease " + id + " ttl=1h0m0s "},
		"destroy":               {"DELETE", m, "", "destroy " + id + " force=false"},
		"destroy with force":    {"DELETE", m + "?force=true", "", "destroy " + id + " force=true"},
		"destroy with kill":     {"DELETE", m + "?kill=true", "", "destroy " + id + " force=true"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			w.do(t, tt.method, tt.path, tt.body, "Fly-Machine-Lease-Nonce", "0123456789ab")
			w.mu.Lock()
			defer w.mu.Unlock()
			if !slices.Contains(w.calls, tt.want) {
				t.Errorf("control was asked: %q, want %q", w.calls[len(w.calls)-1], tt.want)
			}
		})
	}
}

// TestAnswers: statuses and bodies, as clients match on them.
func TestAnswers(t *testing.T) {
	w := newWorld(t)
	id := w.create(t, `{"name":"one","config":{"image":"a","metadata":{"role":"web"}}}`)
	m := "/v1/apps/shop/machines/" + id
	w.mu.Lock()
	w.machines["000000000000ff"] = &root.Machine{ID: "000000000000ff", App: "shop", Name: "held", Lease: &root.Lease{Owner: "ci@shop", Nonce: "n", ExpiresAt: w.now.Add(1000000 * time.Hour)}}
	w.mu.Unlock()
	held := "/v1/apps/shop/machines/000000000000ff"
	tests := []struct {
		name, method, path, body string
		status                   int
		want                     string // in the body
	}{
		{"app list", "GET", "/v1/apps?org_slug=personal", "", 200, `{"apps":[{"id":"abcdefghij012345","internal_numeric_id":`},
		{"app list counts", "GET", "/v1/apps?org_slug=personal", "", 200, `"total_apps":1`},
		{"app", "GET", "/v1/apps/shop", "", 200, `"name":"shop","organization":{"name":"Personal","slug":"personal"`},
		{"app created", "POST", "/v1/apps", `{"name":"new","org_slug":"personal"}`, 201, `"created_at":1767323045000`},
		{"app name taken", "POST", "/v1/apps", `{"name":"shop","org_slug":"personal"}`, 422, `{"error":"Name has already been taken","status":"name_taken"}`},
		{"app of others", "GET", "/v1/apps/foreign", "", 403, `"error":"not yours"`},
		{"app that is free", "GET", "/v1/apps/free", "", 404, `"error":"app \"free\" not found"`},
		{"app with a bad name", "GET", "/v1/apps/Not%20A%20Name", "", 404, "app not found"},
		{"app with machines", "DELETE", "/v1/apps/shop", "", 412, `"error":"failed_precondition: app shop has machines"`},
		{"app deleted", "DELETE", "/v1/apps/new?force=true", "", 202, ""},

		{"no body", "POST", "/v1/apps/shop/machines", "", 400, "has no body"},
		{"not JSON", "POST", "/v1/apps/shop/machines", "{", 400, "not valid JSON"},
		{"no config", "POST", "/v1/apps/shop/machines", "{}", 400, "config is missing"},
		{"wrong type", "POST", "/v1/apps/shop/machines", `{"config":{"image":"a","guest":{"cpus":"x"}}}`, 400, "config.guest.cpus: want a whole number, got string"},
		{"lease_ttl negative", "POST", "/v1/apps/shop/machines", `{"lease_ttl":-1,"config":{"image":"a"}}`, 400, "lease_ttl"},
		{"not built yet", "POST", "/v1/apps/shop/machines", `{"config":{"image":"a","schedule":"daily"}}`, 422, `"error":"config.schedule is not supported yet`},
		{"machine name taken", "POST", "/v1/apps/shop/machines", `{"name":"one","config":{"image":"a"}}`, 409, `"error":"machine name one is taken by ` + id},
		{"warnings", "POST", "/v1/apps/shop/machines", `{"name":"w","config":{"image":"a","metrics":{"port":1}}}`, 200, `"warnings":["config.metrics is kept`},
		{"leased", "POST", "/v1/apps/shop/machines", `{"name":"l","lease_ttl":10,"config":{"image":"a"}}`, 200, `"nonce":"0123456789ab"`},

		{"get", "GET", m, "", 200, `"state":"started","region":"loc","image_ref":{"registry":"docker.io","repository":"library/debian","tag":"bookworm-slim","digest":"sha256:0","labels":{}},"instance_id":"01INSTANCE`},
		{"get, config", "GET", m, "", 200, `"guest":{"cpu_kind":"shared","cpus":1,"memory_mb":256}`},
		{"get, events newest first", "GET", m, "", 200, `"events":[{"id":"01J00003","type":"start","status":"started","source":"user","timestamp":1767323045000}`},
		{"get, cordoned always", "GET", m, "", 200, `"cordoned":false`},
		{"get, bad id", "GET", "/v1/apps/shop/machines/xyz", "", 400, `"error":"invalid machine ID, 'xyz'"`},
		{"get, unknown id", "GET", "/v1/apps/shop/machines/00000000000000", "", 404, `"error":"machine not found"`},
		{"get, other app", "GET", "/v1/apps/other/machines/" + id, "", 404, `"error":"machine not found"`},
		{"list, bad boolean", "GET", "/v1/apps/shop/machines?include_deleted=maybe", "", 400, "include_deleted"},
		{"list of none", "GET", "/v1/apps/shop/machines?metadata.role=none", "", 200, "[]"},
		{"list by metadata", "GET", "/v1/apps/shop/machines?metadata.role=web", "", 200, `"id":"` + id},
		{"leases", "GET", held + "?include_leases=true", "", 200, `"lease":{"description":"","expires_at":`},

		{"start again", "POST", m + "/start", "", 200, `{"previous_state":"started","migrated":false,"new_host":""}`},
		{"stop", "POST", m + "/stop", `{"timeout":"0s"}`, 200, `{"ok":true}`},
		{"suspend, stopped", "POST", m + "/suspend", "", 412, `"error":"failed_precondition: unable to suspend machine from current state: 'stopped'"`},
		{"exec", "POST", m + "/exec", `{"cmd":"ls","stdin":"in-"}`, 200, `{"stdout":"in-out","stderr":"err","exit_code":3,"exit_signal":0}`},
		{"exec, nothing", "POST", m + "/exec", `{}`, 400, "command is missing"},
		{"exec, open quote", "POST", m + "/exec", `{"cmd":"echo 'a"}`, 400, "a quote is not closed"},
		{"exec, container", "POST", m + "/exec", `{"command":["a"],"container":"x"}`, 422, "container"},
		{"stop, bad signal", "POST", m + "/stop", `{"signal":"SIGNOPE"}`, 400, "SIGHUP"},
		{"stop, bad timeout", "POST", m + "/stop", `{"timeout":"soon"}`, 400, `timeout: \"soon\" is not a duration`},
		{"signal, bad", "POST", m + "/signal", `{"signal":"KILL"}`, 400, "signal"},
		{"restart, bad timeout", "POST", m + "/restart?timeout=soon", "", 400, "timeout"},
		{"wait, bad state", "GET", m + "/wait?state=asleep", "", 400, "asleep"},
		{"wait, time-out", "GET", m + "/wait?state=started&timeout=1", "", 408, `"error":"deadline_exceeded: machine failed to reach desired state, started, currently stopped"`},
		{"wait", "GET", m + "/wait?state=stopped", "", 200, `{"ok":true,"state":"stopped","version":"01INSTANCE00001","event_id":"`},

		{"leased by others", "POST", held + "/stop", "", 409, `{"error":"machine ID 000000000000ff lease currently held by ci@shop, expires at `},
		{"leased by others, older clients", "POST", held + "/lease", "", 409, `"status":"error","message":"machine ID 000000000000ff lease currently held by`},
		{"no lease", "GET", m + "/lease", "", 404, "lease not found"},
		{"lease", "POST", m + "/lease?ttl=9", "", 201, `{"status":"success","data":{"nonce":"0123456789ab","expires_at":`},

		{"metadata", "GET", m + "/metadata", "", 200, `{"role":"web"}`},
		{"metadata, set", "POST", m + "/metadata/color", `{"value":"red"}`, 204, ""},
		{"metadata, get", "GET", m + "/metadata/color", "", 200, `{"value":"red"}`},
		{"metadata, merge", "PATCH", m + "/metadata", `{"metadata":{"color":null,"role":"","a":"b"}}`, 204, ""},
		{"metadata, merged", "GET", m + "/metadata", "", 200, `{"a":"b"}`},
		{"metadata, in the config", "GET", m, "", 200, `"metadata":{"a":"b"}`},
		{"metadata, delete", "DELETE", m + "/metadata/a", "", 204, ""},
		{"metadata, gone", "GET", m + "/metadata/a", "", 404, "not found"},
		{"metadata, old version", "PUT", m + "/metadata", `{"metadata":{"a":"b"},"machine_version":"01OLD"}`, 412, "failed_precondition"},

		{"ps", "GET", m + "/ps", "", 200, `[{"pid":1,"stime":0,"rtime":0,"command":"/bin/store","directory":"","cpu":0,"rss":4096,"listen_sockets":[{"proto":"tcp6","address":"[::]:8080"}]}]`},
		{"events", "GET", m + "/events?limit=1", "", 200, `"type":"stop"`},
		{"versions", "GET", m + "/versions", "", 200, `[{"version":"01INSTANCE00001","user_config":{`},
		{"org machines", "GET", "/v1/orgs/personal/machines", "", 200, `"app_name":"shop"`},
		{"regions", "GET", "/v1/platform/regions", "", 200, `{"nearest":"loc","regions":[{"code":"loc"`},
		{"token", "GET", "/v1/tokens/current", "", 200, `"token_id":"01org"`},

		{"destroy, leased", "DELETE", m, "", 409, "lease currently held"},
		{"release without the nonce", "DELETE", m + "/lease", "", 409, "lease currently held"},
	}
	for _, tt := range tests { // in order: they build on each other
		t.Run(tt.name, func(t *testing.T) {
			a := w.do(t, tt.method, tt.path, tt.body)
			if a.status != tt.status || !strings.Contains(a.body, tt.want) {
				t.Errorf("got %d %s\nwant %d %s", a.status, a.body, tt.status, tt.want)
			}
		})
	}
}

func TestSummaryOmitsConfig(t *testing.T) {
	w := newWorld(t)
	w.create(t, minimal)
	a := w.do(t, "GET", "/v1/apps/shop/machines?summary=true", "")
	var list []map[string]any
	if err := json.Unmarshal([]byte(a.body), &list); err != nil || len(list) != 1 {
		t.Fatalf("list: %v %s", err, a.body)
	}
	for _, member := range []string{"config", "checks", "events", "host_status", "nonce"} {
		if _, there := list[0][member]; there {
			t.Errorf("a summary has %s: %s", member, a.body)
		}
	}
}

// TestMachineSocket: without a token a machine may read its app's machines and
// put itself to sleep, but make none.
func TestMachineSocket(t *testing.T) {
	w := newWorld(t)
	id := w.create(t, minimal)
	w.catalog = w.catalog.With(1, root.Change{Machine: w.machines[root.MachineID(id)]})
	socket := []string{"Authorization", "", "Roost-Front", "machine", "Roost-Machine", id}
	tests := map[string]struct {
		method, path, body string
		status             int
	}{
		"list":    {"GET", "/v1/apps/shop/machines", "", http.StatusOK},
		"suspend": {"POST", "/v1/apps/shop/machines/" + id + "/suspend", "", http.StatusOK},
		"create":  {"POST", "/v1/apps/shop/machines", minimal, http.StatusForbidden},
		"destroy": {"DELETE", "/v1/apps/shop/machines/" + id, "", http.StatusForbidden},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			if a := w.do(t, tt.method, tt.path, tt.body, socket...); a.status != tt.status {
				t.Errorf("got %d %s, want %d", a.status, a.body, tt.status)
			}
		})
	}
}
