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
	_, err := Load(map[string]string{"log_level": "loud"}, []string{"ROOST_HOLD_QUEUE=many", "ROOST_RECLAIM=1s"}, file)
	if err == nil {
		t.Fatal("got no error")
	}
	for _, want := range []string{
		`unknown key "domian"; did you mean "domain"?`, `reserve = "lots"`, `data = "relative"`, `swap = "file:1KB"`,
		"listen: at least one address", `log_level = "loud"`, `hold_queue = "many"`, `unknown variable ROOST_RECLAIM; did you mean "reclaim_after"?`,
	} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("problems do not say %s:\n%v", want, err)
		}
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
