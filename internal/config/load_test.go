package config

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	root "github.com/roost-run/roost"
)

func write(t *testing.T, content string) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "roost.toml")
	if err := os.WriteFile(name, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

func TestPrecedence(t *testing.T) {
	file := write(t, `
domain = "file.example"
region = "fra"
reclaim_after = "5s"
reserve = "1GB"
listen = [{addr = ":8080", port = 80}, ":8443"]
access_log = false
hold_queue = 5
nameservers = ["192.0.2.1", "192.0.2.2:53"]
`)
	got, err := Load(map[string]string{"domain": "flag.example"}, []string{"ROOST_REGION=env", "ROOST_DOMAIN=env.example", "PATH=/bin", "ROOST_TOKEN=x"}, file)
	if err != nil {
		t.Fatal(err)
	}
	want := Default()
	want.Domain, want.Region, want.Reclaim, want.Reserve = "flag.example", "env", 5*time.Second, root.GiB
	want.Listen = []Listen{{":8080", 80}, {":8443", 0}}
	want.AccessLog, want.HoldQueue = false, 5
	want.Nameservers = []string{"192.0.2.1", "192.0.2.2:53"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("config (-want +got):\n%s", diff)
	}
}

func TestStringReadsBack(t *testing.T) {
	want := Default()
	want.Listen = []Listen{{":8080", 80}, {":8443", 0}}
	want.Nameservers = []string{"192.0.2.1"}
	got, err := Load(nil, nil, write(t, want.String()))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("config (-want +got):\n%s", diff)
	}
}

func TestAllProblemsAtOnce(t *testing.T) {
	file := write(t, `
domian = "x.example"
reserve = "lots"
data = "relative"
swap = "file:1KB"
listen = []
`)
	_, err := Load(map[string]string{"log_level": "loud"}, []string{"ROOST_HOLD_QUEUE=many", "ROOST_RECLAIM=1s", "ROOST_BUILDS=two"}, file)
	if err == nil {
		t.Fatal("got no error")
	}
	for _, want := range []string{
		`unknown key "domian"; did you mean "domain"?`, `reserve = "lots"`, `data = "relative"`, `swap = "file:1KB"`,
		"listen: at least one address", `log_level = "loud"`, `hold_queue = "many"`, `unknown variable ROOST_RECLAIM; did you mean "ROOST_RECLAIM_AFTER"?`,
		`builds = "two": not a whole number`,
	} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("problems do not say %s:\n%v", want, err)
		}
	}
	if strings.Contains(err.Error(), "builds must be at least 1") {
		t.Errorf("a value that cannot be read is complained of twice:\n%v", err)
	}
}

func TestSyntaxErrorHasPosition(t *testing.T) {
	_, err := Load(nil, nil, write(t, "domain = \"a\"\nregion = = 3\n"))
	if err == nil || !strings.Contains(err.Error(), ":2:") {
		t.Errorf("got %v, want an error with line 2", err)
	}
}

func TestMissingFile(t *testing.T) {
	if _, err := Load(nil, nil, filepath.Join(t.TempDir(), "none.toml")); err == nil {
		t.Error("a named file that does not exist: got no error")
	}
}

func TestParseBytes(t *testing.T) {
	for in, want := range map[string]root.Bytes{"0": 0, "512": 512, "512MB": 512 * root.MiB, "2 gb": 2 * root.GiB, "64k": 64 * root.KiB} {
		if got, err := ParseBytes(in); err != nil || got != want {
			t.Errorf("%q: got %d, %v, want %d", in, got, err, want)
		}
	}
	for _, in := range []string{"", "-1", "1.5GB", "99999999999GB", "MB"} {
		if got, err := ParseBytes(in); err == nil {
			t.Errorf("%q: got %d, want an error", in, got)
		}
	}
}

func TestCheck(t *testing.T) {
	for name, c := range map[string]struct {
		values map[string]string
		want   string
	}{
		"same directories":      {map[string]string{"data": "/srv/roost", "run": "/srv/roost"}, "data and run are the same directory"},
		"long run":              {map[string]string{"run": "/" + strings.Repeat("x", 50)}, "longer than 50 characters"},
		"domain":                {map[string]string{"domain": "not a name"}, `domain = "not a name"`},
		"region":                {map[string]string{"region": "Frankfurt am Main"}, `region = "Frankfurt am Main"`},
		"address":               {map[string]string{"listen": "80"}, `"80" is not an address such as ":80"`},
		"port it stands for":    {map[string]string{"listen": ":8080=http"}, `"http" is not a port`},
		"port too large":        {map[string]string{"listen": ":8080=65536"}, `"65536" is not a port`},
		"the same twice":        {map[string]string{"listen": ":80,:80"}, ":80 stands twice"},
		"api":                   {map[string]string{"api": "4280"}, `api = "4280"`},
		"swap":                  {map[string]string{"swap": "disk"}, `swap = "disk": not one of auto`},
		"no queue":              {map[string]string{"hold_queue": "0"}, "hold_queue = 0"},
		"no hold":               {map[string]string{"hold_timeout": "0s"}, "hold_timeout = 0s"},
		"duration without unit": {map[string]string{"hold_timeout": "5"}, `hold_timeout = "5"`},
		"negative":              {map[string]string{"reclaim_after": "-1s"}, "reclaim_after = -1s"},
		"logs":                  {map[string]string{"logs": "1KB"}, "logs at least 1MB"},
		"boolean":               {map[string]string{"access_log": "maybe"}, `access_log = "maybe"`},
		"name server":           {map[string]string{"nameservers": "resolver"}, `"resolver" is not an address`},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := Load(c.values, nil, os.DevNull)
			if err == nil || !strings.Contains(err.Error(), c.want) || root.KindOf(err) != root.Invalid {
				t.Errorf("got %v, want kind invalid and %q", err, c.want)
			}
		})
	}
	if _, err := Load(map[string]string{"api": "", "listen": "127.0.0.1:0=80,127.0.0.1:0=443", "reclaim_after": "0s"}, nil, os.DevNull); err != nil {
		t.Errorf("no API port, any ports, reclaim at once: got %v, want nil", err)
	}
}

// Every setting can be given in all three ways, and its default is its own.
func TestSettings(t *testing.T) {
	defaults := Default()
	for _, s := range Settings() {
		value := s.get(&defaults)
		for source, load := range map[string]func() (Config, error){
			"flag":        func() (Config, error) { return Load(map[string]string{s.Key: value}, nil, os.DevNull) },
			"environment": func() (Config, error) { return Load(nil, []string{s.Env() + "=" + value}, os.DevNull) },
			"file":        func() (Config, error) { return Load(nil, nil, write(t, s.Key+" = '"+value+"'\n")) },
		} {
			if got, err := load(); err != nil || !cmp.Equal(got, defaults) {
				t.Errorf("%s by %s: got %v, %v", s.Key, source, cmp.Diff(defaults, got), err)
			}
		}
		if s.Usage == "" || s.Flag() == "" || strings.Contains(s.Flag(), "_") {
			t.Errorf("%s: flag %q, usage %q", s.Key, s.Flag(), s.Usage)
		}
	}
}
