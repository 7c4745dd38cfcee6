package appconfig

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "rewrite golden files")

// TestGolden reads each file of testdata and compares what is wrong with it,
// and what it converts to, with the file's .golden.
func TestGolden(t *testing.T) {
	files, err := filepath.Glob("testdata/*")
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, file := range files {
		if fi, err := os.Stat(file); err != nil || fi.IsDir() || filepath.Ext(file) == ".golden" {
			continue
		}
		n++
		t.Run(filepath.Base(file), func(t *testing.T) {
			got := describe(t, file)
			golden := file + ".golden"
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
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
	if n < 10 {
		t.Errorf("got %d files, want all of them", n)
	}
}

func describe(t *testing.T, file string) string {
	t.Helper()
	var b strings.Builder
	c, problems := Load(file)
	for _, p := range problems {
		fmt.Fprintf(&b, "%s:%s\n", filepath.Base(file), p)
	}
	if len(problems.Errors()) > 0 {
		return b.String()
	}
	for _, group := range c.Groups() {
		m, err := c.Machine(group)
		if err != nil {
			t.Fatalf("%s: %v", group, err)
		}
		fmt.Fprintf(&b, "\n%s: %s\n", group, pretty(t, m))
		if checks := c.GroupMachineChecks(group); len(checks) > 0 {
			fmt.Fprintf(&b, "\n%s, machine checks: %s\n", group, pretty(t, checks))
		}
	}
	d, err := c.Deploy()
	if err != nil {
		t.Fatal(err)
	}
	fmt.Fprintf(&b, "\ndeploy: %s, %v unavailable, wait %s, command %q within %s, in %v, seed %q, webhook %q\n",
		d.Strategy, d.MaxUnavailable, d.WaitTimeout, d.ReleaseCommand, d.ReleaseTimeout, d.ReleaseGuest, d.SeedCommand, d.Webhook)
	if routes := c.Routes(); len(routes) > 0 {
		fmt.Fprintf(&b, "\nroutes: %s\n", pretty(t, routes))
	}
	return b.String()
}

func pretty(t *testing.T, v any) string {
	t.Helper()
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	if err := enc.Encode(v); err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(b.String())
}

// TestDocumentedFiles: what the documents show is a config without problems.
func TestDocumentedFiles(t *testing.T) {
	n := 0
	for _, doc := range []string{"../../docs/deploy.md", "../../docs/decisions/0027-fly-toml.md"} {
		text, err := os.ReadFile(doc)
		if err != nil {
			t.Fatal(err)
		}
		for i, part := range strings.Split(string(text), "```toml\n")[1:] {
			example, _, _ := strings.Cut(part, "```")
			n++
			c, problems := Parse("fly.toml", []byte(example))
			if len(problems) > 0 {
				t.Errorf("%s, example %d: %v", doc, i, problems)
				continue
			}
			for _, group := range c.Groups() {
				if _, err := c.Machine(group); err != nil {
					t.Errorf("%s, example %d: %v", doc, i, err)
				}
			}
		}
	}
	if n < 2 {
		t.Errorf("found %d examples: something is wrong with this test", n)
	}
}
