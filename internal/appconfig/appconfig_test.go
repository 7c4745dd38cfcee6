package appconfig

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	root "github.com/roost-run/roost"
)

// TestWorkedExample is the one of the specification, section 15.
func TestWorkedExample(t *testing.T) {
	c, problems := Parse("fly.toml", []byte(`
app = "demo"
primary_region = "iad"
kill_signal = "SIGTERM"
kill_timeout = 30
[processes]
  web = "server --port 8080"
  worker = "jobs run"
[deploy]
  release_command = "migrate up"
[http_service]
  processes = ["web"]
  internal_port = 8080
  force_https = true
  auto_stop_machines = "suspend"
  [[http_service.checks]]
    path = "/up"
    interval = "10s"
    timeout = "2s"
    grace_period = "5s"
`))
	if len(problems) > 0 {
		t.Fatalf("problems: %v", problems)
	}
	want := map[string]string{
		"web": `{"env":{"FLY_PROCESS_GROUP":"web","PRIMARY_REGION":"iad"},"init":{"cmd":["server","--port","8080"]},` +
			`"metadata":{"fly_platform_version":"v2","fly_process_group":"web"},` +
			`"services":[{"protocol":"tcp","internal_port":8080,"ports":[{"port":80,"handlers":["http"],"force_https":true},{"port":443,"handlers":["http","tls"]}],` +
			`"autostop":"suspend","checks":[{"type":"http","interval":"10s","timeout":"2s","grace_period":"5s","path":"/up"}],"force_instance_key":null}],` +
			`"stop_config":{"signal":"SIGTERM","timeout":"30s"}}`,
		"worker": `{"env":{"FLY_PROCESS_GROUP":"worker","PRIMARY_REGION":"iad"},"init":{"cmd":["jobs","run"]},` +
			`"metadata":{"fly_platform_version":"v2","fly_process_group":"worker"},"stop_config":{"signal":"SIGTERM","timeout":"30s"}}`,
	}
	for group, want := range want {
		m, err := c.Machine(group)
		if err != nil {
			t.Fatal(err)
		}
		got, err := json.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		if string(got) != want {
			t.Errorf("%s:\n got %s\nwant %s", group, got, want)
		}
	}
	d, err := c.Deploy()
	if err != nil || len(d.ReleaseCommand) != 2 || d.ReleaseCommand[0] != "migrate" {
		t.Errorf("release command: got %q, %v", d.ReleaseCommand, err)
	}
}

// TestEverySetting fails when a setting is lost in a definition or in a file
// that is written back.
func TestEverySetting(t *testing.T) {
	var c Config
	n := 0
	fill(t, reflect.ValueOf(&c).Elem(), &n)
	// What says the same twice, or reads files, is tested elsewhere.
	c.MachineConfig, c.Experimental.MachineConfig = "", ""
	for i := range c.Files {
		c.Files[i].LocalPath = ""
	}
	for name, print := range map[string]func() ([]byte, error){"fly.json": c.JSON, "fly.toml": c.TOML} {
		t.Run(name, func(t *testing.T) {
			data, err := print()
			if err != nil {
				t.Fatal(err)
			}
			back, problems := Parse(name, data)
			if back == nil {
				t.Fatalf("%v\n%s", problems, data)
			}
			for _, p := range problems {
				if p.Unknown {
					t.Errorf("not read back: %s", p)
				}
			}
			if diff := cmp.Diff(&c, back, cmp.FilterPath(func(p cmp.Path) bool {
				return p.Last().String() == ".positions" || p.Last().String() == ".dir"
			}, cmp.Ignore()), cmp.AllowUnexported(Config{})); diff != "" {
				t.Errorf("after a round trip (-want +got):\n%s\n%s", diff, data)
			}
		})
	}
}

// fill sets every field to something that is neither zero nor a default.
func fill(t *testing.T, v reflect.Value, n *int) {
	t.Helper()
	*n++
	switch x := v.Addr().Interface().(type) {
	case *Duration:
		*x = Duration(*n) * Duration(time.Second)
		return
	case *Autostop:
		*x = "suspend"
		return
	}
	switch v.Kind() {
	case reflect.Struct:
		for field, value := range v.Fields() {
			if field.IsExported() {
				fill(t, value, n)
			}
		}
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		fill(t, v.Elem(), n)
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 1, 1))
		fill(t, v.Index(0), n)
	case reflect.Map:
		value := reflect.New(v.Type().Elem()).Elem()
		fill(t, value, n)
		v.Set(reflect.MakeMap(v.Type()))
		v.SetMapIndex(reflect.ValueOf(fmt.Sprintf("k%d", *n)), value)
	case reflect.Interface:
		v.Set(reflect.ValueOf(fmt.Sprintf("v%d", *n)))
	case reflect.String:
		v.SetString(fmt.Sprintf("v%d", *n))
	case reflect.Bool:
		v.SetBool(true)
	case reflect.Int:
		v.SetInt(int64(*n))
	case reflect.Float64:
		v.SetFloat(float64(*n) + 0.5)
	default:
		t.Fatalf("no value for a %s: teach fill", v.Type())
	}
}

func TestLocalFilesStayLocal(t *testing.T) {
	const file = `{"app":"a","files":[{"guest_path":"/x","local_path":"/etc/hostname"}]}`
	if _, err := Decode([]byte(file)); root.KindOf(err) != root.Invalid || !strings.Contains(err.Error(), "local_path") {
		t.Errorf("a definition that names a file of its reader's computer: got %v", err)
	}
	if _, err := Decode([]byte(`{"app":"a","machine_config":"/etc/hostname"}`)); root.KindOf(err) != root.Invalid {
		t.Errorf("machine_config that is a path: got %v", err)
	}
	c, problems := Load("testdata/node.toml")
	if err := problems.Err(); err != nil {
		t.Fatal(err)
	}
	definition, err := c.JSON()
	if err != nil {
		t.Fatal(err)
	}
	back, err := Decode(definition)
	if err != nil {
		t.Fatal(err)
	}
	m, err := back.Machine("app")
	if err != nil || len(m.Files) != 3 || *m.Files[2].RawValue != "aGVsbG8K" {
		t.Errorf("files: got %+v, %v", m.Files, err)
	}
}

func TestMachineConfigIsTheBase(t *testing.T) {
	c, problems := Parse("fly.toml", []byte(`
machine_config = '{"auto_destroy": true, "metadata": {"mine": "1"}, "env": {"OLD": "1"}, "schedule": "daily"}'
[env]
NEW = "1"
`))
	if len(problems) > 0 {
		t.Fatal(problems)
	}
	m, err := c.Machine("app")
	if err != nil || !m.AutoDestroy || m.Schedule != "daily" || m.Metadata["mine"] != "1" || m.Env["OLD"] != "" || m.Env["NEW"] != "1" {
		t.Errorf("got %+v, %v", m, err)
	}
}

func TestStrict(t *testing.T) {
	_, problems := Parse("fly.toml", []byte("app = \"a\"\nkil_signal = \"SIGTERM\"\n"))
	if err := problems.Err(); err != nil {
		t.Errorf("an unknown key keeps a deploy from being: %v", err)
	}
	if err := problems.Strict().Err(); err == nil || !strings.Contains(err.Error(), `2:1: unknown key "kil_signal"`) {
		t.Errorf("strict: got %v", err)
	}
}

func TestDurationPrintsShort(t *testing.T) {
	for d, want := range map[time.Duration]string{
		0: "0s", time.Second: "1s", 90 * time.Second: "1m30s", 5 * time.Minute: "5m", time.Hour: "1h", 10 * time.Hour: "10h",
		61 * time.Minute: "1h1m", time.Hour + time.Second: "1h0m1s", 250 * time.Millisecond: "250ms",
	} {
		if got := Duration(d).String(); got != want {
			t.Errorf("%s: got %s, want %s", d, got, want)
		}
	}
}

func TestSizes(t *testing.T) {
	for in, want := range map[string]int{"512": 512, "512mb": 512, "1gb": 1024, "2 GB": 2048, "1GiB": 1024, "0.5gb": 512, "": -1, "x": -1, "1pb": -1, "-1": -1} {
		var m Memory
		if err := m.read(in); err != nil {
			m = -1
		}
		if int(m) != want {
			t.Errorf("%q: got %d, want %d", in, m, want)
		}
	}
}

// FuzzParse: never panics; what is printed means the same and prints as itself.
func FuzzParse(f *testing.F) {
	files, err := filepath.Glob("testdata/*.*")
	if err != nil {
		f.Fatal(err)
	}
	for _, file := range files {
		if data, err := os.ReadFile(file); err == nil && filepath.Ext(file) != ".golden" {
			f.Add(filepath.Ext(file), data)
		}
	}
	f.Fuzz(func(t *testing.T, ext string, data []byte) {
		c, problems := parse("fly"+ext, data, "")
		if problems.Err() != nil {
			return
		}
		definition, err := c.JSON()
		if err != nil {
			t.Fatal(err)
		}
		machines := func(c *Config) string {
			var b strings.Builder
			for _, group := range c.Groups() {
				m, err := c.Machine(group)
				if err != nil {
					t.Fatalf("%s: %v", group, err)
				}
				if err := json.NewEncoder(&b).Encode(m); err != nil {
					t.Fatal(err)
				}
			}
			if _, err := c.Deploy(); err != nil {
				t.Fatal(err)
			}
			return b.String()
		}
		want := machines(c)
		for name, print := range map[string]func() ([]byte, error){"fly.json": c.JSON, "fly.toml": c.TOML} {
			printed, err := print()
			if err != nil {
				t.Fatal(err)
			}
			again, problems := parse(name, printed, "")
			if err := problems.Err(); err != nil {
				t.Fatalf("%s is refused: %v\n%s", name, err, printed)
			}
			if diff := cmp.Diff(want, machines(again)); diff != "" {
				t.Fatalf("%s means something else (-want +got):\n%s\n%s", name, diff, printed)
			}
			back, err := again.JSON()
			if err != nil || string(back) != string(definition) {
				t.Fatalf("%s is not stable (%v):\n%s\n%s", name, err, definition, back)
			}
		}
	})
}

// TestUnreadIsNotMissing: one mistake is told once.
func TestUnreadIsNotMissing(t *testing.T) {
	_, problems := Parse("fly.toml", []byte("app = \"shop\"\n[http_service]\ninternal_port = \"80x\"\n"))
	if len(problems) != 1 || !strings.Contains(problems[0].Message, `got the text "80x"`) {
		t.Errorf("got %v, want one problem, of the text", problems)
	}
}
