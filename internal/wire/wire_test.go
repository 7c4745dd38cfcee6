package wire

import (
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	root "github.com/roost-run/roost"
)

var update = flag.Bool("update", false, "rewrite golden files")

// TestGoldenConfig reads each testdata/*.json and compares what is read back,
// warnings included, with the file beside it.
func TestGoldenConfig(t *testing.T) {
	inputs, err := filepath.Glob("testdata/*.json")
	if err != nil || len(inputs) == 0 {
		t.Fatalf("no inputs: %v", err)
	}
	for _, input := range inputs {
		t.Run(filepath.Base(input), func(t *testing.T) {
			raw, err := os.ReadFile(input)
			if err != nil {
				t.Fatal(err)
			}
			got := describe(t, raw)
			golden := strings.TrimSuffix(input, ".json") + ".golden"
			if *update {
				if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(want), got); diff != "" {
				t.Errorf("read back (-want +got):\n%s", diff)
			}
		})
	}
}

func describe(t *testing.T, raw []byte) string {
	t.Helper()
	p, err := ParseConfig(raw)
	if err != nil {
		return fmt.Sprintf("%s: %s\n", root.KindOf(err), root.MessageOf(err))
	}
	out, err := MarshalConfig(p.Config, p.Source)
	if err != nil {
		t.Fatal(err)
	}
	pretty, err := json.MarshalIndent(out, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	return string(pretty) + "\n" + strings.Join(p.Warnings, "\n") + "\n"
}

// TestConfigEveryField fails when a member of root.Config is added that the
// API's document does not carry.
func TestConfigEveryField(t *testing.T) {
	var cfg root.Config
	n := 0
	fill(t, reflect.ValueOf(&cfg).Elem(), &n)
	cfg.Persist = root.PersistAlways
	secret, image := cfg.Files[0], cfg.Files[0] // content, secret and image_config exclude each other
	cfg.Files[0].ImageConfig, cfg.Files[0].Secret = "", ""
	secret.Content, secret.ImageConfig = nil, ""
	image.Content, image.Secret = nil, ""
	cfg.Files = append(cfg.Files, secret, image)
	cfg.Services[0].Ports[0].HTTP.Headers = map[string][]string{"X-One": {"a"}, "X-Two": {"a", "b"}, "X-Gone": {}}
	cfg.Services[0].Autostop = root.AutostopSuspend
	cfg.Services[0].Checks[0].Readiness = false // a service's checks gate it anyway
	api := FromConfig(cfg)
	data, err := json.Marshal(api)
	if err != nil {
		t.Fatal(err)
	}
	var back = api
	if err := json.Unmarshal(data, &back); err != nil {
		t.Fatal(err)
	}
	got, err := toConfig(&back)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(cfg, got); diff != "" {
		t.Errorf("after a round trip (-want +got):\n%s", diff)
	}
}

// fill sets every field to something that is neither zero nor a default.
func fill(t *testing.T, v reflect.Value, n *int) {
	t.Helper()
	*n++
	switch v.Kind() {
	case reflect.Struct:
		for _, field := range v.Fields() {
			fill(t, field, n)
		}
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		fill(t, v.Elem(), n)
	case reflect.Slice:
		if v.Type().Elem().Kind() == reflect.Uint8 {
			v.SetBytes([]byte{byte(*n)})
			return
		}
		v.Set(reflect.MakeSlice(v.Type(), 1, 1))
		fill(t, v.Index(0), n)
	case reflect.Map:
		key, value := reflect.New(v.Type().Key()).Elem(), reflect.New(v.Type().Elem()).Elem()
		fill(t, key, n)
		fill(t, value, n)
		v.Set(reflect.MakeMap(v.Type()))
		v.SetMapIndex(key, value)
	case reflect.String:
		v.SetString(fmt.Sprintf("v%d", *n))
	case reflect.Bool:
		v.SetBool(true)
	case reflect.Int, reflect.Int64:
		switch v.Interface().(type) {
		case time.Duration:
			v.SetInt(int64(*n) * int64(time.Second))
		case root.Bytes:
			v.SetInt(int64(*n) * int64(root.MiB))
		default:
			v.SetInt(int64(*n))
		}
	case reflect.Uint32:
		v.SetUint(uint64(*n))
	default:
		t.Fatalf("no value for a %s: teach fill", v.Type())
	}
}

func TestParseConfigErrors(t *testing.T) {
	service := func(s string) string { return `{"image":"a","services":[` + s + `]}` }
	tests := map[string]struct {
		config string
		kind   root.Kind
		text   string
	}{
		"absent":          {``, root.Invalid, "config is missing"},
		"null":            {`null`, root.Invalid, "config is missing"},
		"not an object":   {`[]`, root.Invalid, "config: want an object, got array"},
		"cut":             {`{"image":`, root.Invalid, "config is not valid JSON"},
		"two documents":   {`{"image":"a"} {}`, root.Invalid, "something follows"},
		"no image":        {`{}`, root.Invalid, "config.image"},
		"wrong type":      {`{"image":"a","guest":{"cpus":"two"}}`, root.Invalid, "config.guest.cpus: want a whole number, got string"},
		"fraction":        {`{"image":"a","guest":{"cpus":1.5}}`, root.Invalid, "config.guest.cpus: want a whole number"},
		"env number":      {`{"image":"a","env":{"A":1}}`, root.Invalid, "config.env"},
		"autostop":        {service(`{"protocol":"tcp","internal_port":80,"autostop":"sleep"}`), root.Invalid, `config.services[0].autostop: autostop: "sleep" is not one of`},
		"duration":        {`{"image":"a","stop_config":{"timeout":"soon"}}`, root.Invalid, `config.stop_config.timeout: "soon" is not a duration`},
		"memory wraps":    {`{"image":"a","guest":{"memory_mb":17592186044672}}`, root.Invalid, "config.guest.memory_mb"},
		"swap wraps":      {`{"image":"a","init":{"swap_size_mb":17592186044417}}`, root.Invalid, "config.init.swap_size_mb"},
		"size":            {`{"image":"a","size":"large"}`, root.Invalid, `config.size: "large"`},
		"base64":          {`{"image":"a","files":[{"guest_path":"/a","raw_value":"*"}]}`, root.Invalid, "config.files[0].raw_value is not base64"},
		"both contents":   {`{"image":"a","files":[{"guest_path":"/a","raw_value":"","image_config":"b"}]}`, root.Invalid, "config.files[0]"},
		"port and range":  {service(`{"protocol":"tcp","internal_port":80,"ports":[{"port":80,"start_port":1,"end_port":2}]}`), root.Invalid, "config.services[0].ports[0]: use port, or"},
		"half a range":    {service(`{"protocol":"tcp","internal_port":80,"ports":[{"start_port":1}]}`), root.Invalid, "end_port is missing"},
		"reserved env":    {`{"image":"a","env":{"FLY_APP_NAME":"x"}}`, root.Invalid, "FLY_APP_NAME is reserved"},
		"mounts":          {`{"image":"a","mounts":[{"volume":"vol_1","path":"/data"}]}`, root.Unimplemented, "config.mounts"},
		"containers":      {`{"containers":[{"name":"a","image":"b"}]}`, root.Unimplemented, "config.containers"},
		"udp":             {service(`{"protocol":"udp","internal_port":53}`), root.Unimplemented, "config.services[0].protocol"},
		"standbys":        {`{"image":"a","standbys":["148e1234c56789"]}`, root.Unimplemented, "config.standbys"},
		"schedule":        {`{"image":"a","schedule":"daily"}`, root.Unimplemented, "config.schedule"},
		"two processes":   {`{"image":"a","processes":[{},{}]}`, root.Unimplemented, "config.processes"},
		"process secrets": {`{"image":"a","processes":[{"secrets":["A"]}]}`, root.Invalid, "config.processes[0].secrets: want a list"},
		"process secret":  {`{"image":"a","processes":[{"secrets":[{"env_var":"A"}]}]}`, root.Invalid, "config.processes[0].secrets[0]"},
		"secret's name":   {`{"image":"a","processes":[{"secrets":[{"env_var":"FLY_REGION","name":"A"}]}]}`, root.Invalid, "config.processes[0].secrets[0]"},
		"tigris":          {`{"image":"a","statics":[{"guest_path":"/a","url_prefix":"/a","tigris_bucket":"b"}]}`, root.Unimplemented, "config.statics[0].tigris_bucket"},
		"static path":     {`{"image":"a","statics":[{"guest_path":"a","url_prefix":"/a"}]}`, root.Invalid, "config.statics[0].guest_path"},
		"static prefix":   {`{"image":"a","statics":[{"guest_path":"/a","url_prefix":"a"}]}`, root.Invalid, "config.statics[0].url_prefix"},
		"static twice":    {`{"image":"a","statics":[{"guest_path":"/a","url_prefix":"/a"},{"guest_path":"/b","url_prefix":"/a/"}]}`, root.Invalid, "config.statics[1].url_prefix"},
		"file sources":    {`{"image":"a","files":[{"guest_path":"/a","raw_value":"","image_config":"b"}]}`, root.Invalid, "use one of raw_value, secret_name, image_config"},
		"check type":      {`{"image":"a","checks":{"up":{"type":"script","port":80}}}`, root.Invalid, "config.checks.up.type"},
		"check port":      {`{"image":"a","checks":{"up":{"type":"tcp"}}}`, root.Invalid, "config.checks.up.port"},
		"check kind":      {`{"image":"a","checks":{"up":{"type":"tcp","port":80,"kind":"liveness"}}}`, root.Invalid, "config.checks.up.kind"},
		"check protocol":  {service(`{"protocol":"tcp","internal_port":80,"checks":[{"type":"http","protocol":"h2"}]}`), root.Invalid, "config.services[0].checks[0].protocol"},
		"check header":    {service(`{"protocol":"tcp","internal_port":80,"checks":[{"type":"http","headers":[{"name":"A","values":["b\r\nC: d"]}]}]}`), root.Invalid, "config.services[0].checks[0].headers"},
		"check limit":     {service(`{"protocol":"tcp","internal_port":80,"checks":[{"type":"tcp","restart_limit":-1}]}`), root.Invalid, "config.services[0].checks[0].restart_limit"},
		"answer header":   {service(`{"protocol":"tcp","internal_port":80,"ports":[{"port":80,"http_options":{"response":{"headers":{"A":1}}}}]}`), root.Invalid, "response header: 1 is neither"},
		"header name":     {service(`{"protocol":"tcp","internal_port":80,"ports":[{"port":80,"http_options":{"response":{"headers":{"A B":"c"}}}}]}`), root.Invalid, "config.services[0].ports[0].http_options.response.headers"},
		"tls version":     {service(`{"protocol":"tcp","internal_port":80,"ports":[{"port":443,"tls_options":{"versions":["TLSv1.1"]}}]}`), root.Invalid, "config.services[0].ports[0].tls_options.versions"},
		"idle wraps":      {service(`{"protocol":"tcp","internal_port":80,"ports":[{"port":80,"http_options":{"idle_timeout":99999999999}}]}`), root.Invalid, "config.services[0].ports[0].http_options.idle_timeout"},
		"gpus":            {`{"image":"a","guest":{"gpus":1}}`, root.Unimplemented, "config.guest.gpus"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			_, err := ParseConfig([]byte(tt.config))
			if got := root.KindOf(err); err == nil || got != tt.kind {
				t.Errorf("kind: got %v (%v), want %v", got, err, tt.kind)
			}
			if got := root.MessageOf(err); err != nil && !strings.Contains(got, tt.text) {
				t.Errorf("message: got %q, want %q in it", got, tt.text)
			}
		})
	}
}

func TestFromMachineState(t *testing.T) {
	tests := map[string]struct {
		spec   root.Spec
		status root.Status
		want   string
	}{
		"nothing known":  {root.Spec{}, root.Status{}, "creating"},
		"as told":        {root.Spec{}, root.Status{State: root.StateSuspended}, "suspended"},
		"on its way out": {root.Spec{Destroy: &root.Destroy{}}, root.Status{State: root.StateStopped}, "destroying"},
		"gone":           {root.Spec{Destroy: &root.Destroy{}}, root.Status{State: root.StateDestroyed}, "destroyed"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			m, err := FromMachine(&root.Machine{Spec: tt.spec, Status: tt.status}, true)
			if err != nil || string(m.State) != tt.want {
				t.Errorf("state: got %q, %v, want %q", m.State, err, tt.want)
			}
		})
	}
}

// TestMetadataIsCurrent: metadata changes without a new version, so the
// document that the client once sent must not bring old keys back.
func TestMetadataIsCurrent(t *testing.T) {
	p, err := ParseConfig([]byte(`{"image":"a","metadata":{"old":"1","kept":"2"}}`))
	if err != nil {
		t.Fatal(err)
	}
	delete(p.Config.Metadata, "old")
	p.Config.Metadata["new"] = "3"
	out, err := MarshalConfig(p.Config, p.Source)
	if err != nil {
		t.Fatal(err)
	}
	var got struct{ Metadata map[string]string }
	if err := json.Unmarshal(out, &got); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(map[string]string{"kept": "2", "new": "3"}, got.Metadata); diff != "" {
		t.Errorf("metadata (-want +got):\n%s", diff)
	}
}

// FuzzParseConfig: never panics, and what is read back means the same and
// reads back as itself.
func FuzzParseConfig(f *testing.F) {
	inputs, err := filepath.Glob("testdata/*.json")
	if err != nil {
		f.Fatal(err)
	}
	for _, input := range inputs {
		raw, err := os.ReadFile(input)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(raw)
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		p, err := ParseConfig(raw)
		if err != nil {
			if root.KindOf(err) == root.Internal {
				t.Fatalf("an error without kind: %v", err)
			}
			return
		}
		first, err := MarshalConfig(p.Config, p.Source)
		if err != nil {
			t.Fatal(err)
		}
		again, err := ParseConfig(first)
		if err != nil {
			t.Fatalf("%s reads back as %s, which is refused: %v", raw, first, err)
		}
		if diff := cmp.Diff(p.Config, again.Config, cmpopts.EquateEmpty()); diff != "" {
			t.Fatalf("%s reads back as %s, which differs:\n%s", raw, first, diff)
		}
		second, err := MarshalConfig(again.Config, again.Source)
		if err != nil {
			t.Fatal(err)
		}
		if string(first) != string(second) {
			t.Fatalf("not stable:\n%s\n%s", first, second)
		}
	})
}

// TestGoldenMachine: a machine with everything there is.
func TestGoldenMachine(t *testing.T) {
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	p, err := ParseConfig([]byte(`{"image":"demo:1","future":1}`))
	if err != nil {
		t.Fatal(err)
	}
	m := &root.Machine{
		ID: "73d8d46dbee589", App: "demo", Org: "personal", Name: "quiet-lake-4821", Region: "loc", CreatedAt: at,
		Spec: root.Spec{
			Instance: "01J0ABCDEFGHJKMNPQRSTVWXY1", Config: p.Config, Source: p.Source, Cordoned: true, UpdatedAt: at.Add(time.Second),
			Image:   root.Image{Registry: "registry.localhost", Repository: "demo", Tag: "1", Digest: "sha256:00", Labels: map[string]string{"fly.version": "1"}},
			Address: root.Address{IPv4: "172.19.0.9", IPv6: "fdaa:0:1::2"},
		},
		Status: root.Status{
			State: root.StateStopped, UpdatedAt: at.Add(time.Minute),
			Checks: []root.CheckResult{{Name: "servicecheck-00-http-8080", Status: "critical", Output: "connection refused", UpdatedAt: at}},
			Events: []root.Event{
				{ID: "01J2", Type: "exit", Status: root.StateStopped, Source: "flyd", Reason: "out of memory", At: at.Add(time.Minute), Count: 3,
					Exit: &root.Exit{Code: 137, Signal: 9, OOMKilled: true, Restarting: true, At: at.Add(time.Minute)}},
				{ID: "01J1", Type: "start", Status: root.StateStarted, Source: "proxy", Reason: "request", At: at},
			},
		},
	}
	out, err := FromMachine(m, false)
	if err != nil {
		t.Fatal(err)
	}
	got, err := json.MarshalIndent(out, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	const golden = "testdata/machine.golden"
	if *update {
		if err := os.WriteFile(golden, append(got, '\n'), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), string(got)+"\n"); diff != "" {
		t.Errorf("document (-want +got):\n%s", diff)
	}
}
