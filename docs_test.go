package roost_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/roost-run/roost/internal/cli"
	"github.com/roost-run/roost/internal/cli/term"
)

// TestPackageTable holds the table of packages in docs/ARCHITECTURE.md against
// the one of TestArrows, and both against the packages there are.
func TestPackageTable(t *testing.T) {
	text := read(t, "docs/ARCHITECTURE.md")
	_, text, _ = strings.Cut(text, "| Package | What lives there | May import |")
	text, _, _ = strings.Cut(text, "\n\n")
	rows := map[string][]string{}
	for line := range strings.Lines(text) {
		cells := strings.Split(line, "|")
		if len(cells) < 4 || !strings.HasPrefix(cells[1], " `") {
			continue
		}
		name := rowName(quoted(cells[1])[0])
		if _, twice := rows[name]; twice {
			t.Errorf("docs/ARCHITECTURE.md has two rows for %s", name)
		}
		rows[name] = quoted(cells[3])
	}
	for name, allowed := range arrows {
		row, ok := rows[name]
		if !ok {
			t.Errorf("docs/ARCHITECTURE.md has no row for %s", name)
			continue
		}
		want := make([]string, len(allowed))
		for i, a := range allowed {
			want[i] = strings.TrimPrefix(a, "/")
		}
		slices.Sort(want)
		slices.Sort(row)
		if !slices.Equal(row, want) {
			t.Errorf("what %s may import: docs/ARCHITECTURE.md says %v, deps_test.go %v", name, row, want)
		}
	}
	packages := map[string]bool{}
	for _, p := range listPackages(t) {
		packages[short(p.ImportPath)] = true
	}
	for name := range rows {
		if _, ok := arrows[name]; !ok {
			t.Errorf("deps_test.go has no row for %s, which docs/ARCHITECTURE.md names", name)
		}
		if !packages[name] {
			t.Errorf("docs/ARCHITECTURE.md has a row for %s, which does not exist", name)
		}
	}
}

// rowName is the key in arrows of a package as a row names it.
func rowName(path string) string {
	if path == "roost" {
		return "/"
	}
	return short(module + "/" + path)
}

var backticks = regexp.MustCompile("`([^`]+)`")

func quoted(s string) []string {
	var list []string
	for _, m := range backticks.FindAllStringSubmatch(s, -1) {
		list = append(list, m[1])
	}
	return list
}

// TestDocumentedCommands runs the help of every command that the documents
// name, and looks for the flags they use.
func TestDocumentedCommands(t *testing.T) {
	files := []string{"README.md", "docs/COMPATIBILITY.md", "docs/deploy.md", "examples/store/README.md"}
	if more, err := filepath.Glob("docs/decisions/*.md"); err == nil {
		files = append(files, more...)
	}
	count := 0
	for _, file := range files {
		for _, line := range commands(read(t, file)) {
			count++
			if err := checkCommand(t, line); err != nil {
				t.Errorf("%s: roost %s: %v", file, line, err)
			}
		}
	}
	if count < 10 {
		t.Errorf("found %d commands in the documents: something is wrong with this test", count)
	}
	for _, wrong := range []string{"nonsense", "app nonsense", "app create shop --nonsense"} {
		if checkCommand(t, wrong) == nil {
			t.Errorf("roost %s passes: something is wrong with this test", wrong)
		}
	}
}

var (
	// command is a call of roost in an indented block; inline one in backticks.
	command = regexp.MustCompile(`(?m)^    .*?\b(?:bin/)?roost ([a-z][^#\n]*)`)
	inline  = regexp.MustCompile("`(?:bin/)?roost ([a-z][^`]*)`")
	word    = regexp.MustCompile(`^[a-z]+$`)
	flag    = regexp.MustCompile(`(?:^|\s)(--[a-z-]+)`)
)

func commands(text string) []string {
	var list []string
	for _, re := range []*regexp.Regexp{command, inline} {
		for _, m := range re.FindAllStringSubmatch(text, -1) {
			list = append(list, strings.TrimSpace(m[1]))
		}
	}
	return list
}

// processes are commands that the server calls, not people; they have no help
// that anybody reads.
var processes = []string{"control", "edge", "builder"}

func checkCommand(t *testing.T, line string) error {
	t.Helper()
	var words []string
	for w := range strings.FieldsSeq(line) {
		if !word.MatchString(w) {
			break
		}
		words = append(words, w)
	}
	if len(words) == 0 || slices.Contains(processes, words[0]) {
		return nil
	}
	help, used := helpOf(t, words)
	if used == 0 || used < len(words) && strings.Contains(help, "Available Commands:") {
		return errors.New("there is no such command")
	}
	for _, m := range flag.FindAllStringSubmatch(strings.SplitN(line, " -- ", 2)[0], -1) {
		if !strings.Contains(help, m[1]+" ") {
			return fmt.Errorf("it has no flag %s", m[1])
		}
	}
	return nil
}

// helpOf returns the help of the deepest command that words name, and how many
// of them that took.
func helpOf(t *testing.T, words []string) (help string, used int) {
	t.Helper()
	for n := len(words); n > 0; n-- {
		var out, errs bytes.Buffer
		args := append(slices.Clone(words[:n]), "--help")
		code := cli.Run(t.Context(), &term.IO{In: strings.NewReader(""), Out: &out, Err: &errs}, args, cli.Processes{})
		usage := "\n  roost " + strings.Join(words[:n], " ")
		if text := out.String(); code == 0 && (strings.Contains(text, "Usage:"+usage+" ") || strings.Contains(text, "Usage:"+usage+"\n")) {
			return text, n
		}
	}
	return "", 0
}

// TestDecisionsAreListed: every decision has a number of its own, without
// gaps, and a row in the index.
func TestDecisionsAreListed(t *testing.T) {
	files, err := filepath.Glob("docs/decisions/[0-9]*.md")
	if err != nil || len(files) == 0 {
		t.Fatalf("no decisions found: %v", err)
	}
	index := read(t, "docs/decisions/README.md")
	for i, file := range files {
		name := filepath.Base(file)
		if want := fmt.Sprintf("%04d-", i+1); !strings.HasPrefix(name, want) {
			t.Errorf("decision %s: got it in place %d; numbers have no gaps and no twins", name, i+1)
		}
		title, _, _ := strings.Cut(read(t, file), "\n")
		number := fmt.Sprintf("# %d. ", i+1)
		if !strings.HasPrefix(title, number) {
			t.Errorf("decision %s: got title %q, want it to begin %q", name, title, number)
		}
		if row := fmt.Sprintf("| %d | [%s](%s) |", i+1, strings.TrimPrefix(title, number), name); !strings.Contains(index, row) {
			t.Errorf("docs/decisions/README.md lacks the row %s", row)
		}
	}
}

var (
	limited = regexp.MustCompile(`"(?:config)?\.?[a-z_\[\]%d.]*\.([a-z_]+)[" \\]`)
	states  = []string{"works", "partly", "differs", "not yet"}
)

// TestCompatibilityStates: every row of docs/COMPATIBILITY.md has a state, and
// what internal/wire refuses or warns of has one that is not "works".
func TestCompatibilityStates(t *testing.T) {
	limits := map[string]bool{} // member: has it a row
	for _, m := range limited.FindAllStringSubmatch(read(t, "internal/wire/limits.go"), -1) {
		limits[m[1]] = false
	}
	if len(limits) < 15 {
		t.Fatalf("found %v in internal/wire/limits.go: something is wrong with this test", limits)
	}
	stated := false
	for line := range strings.Lines(read(t, "docs/COMPATIBILITY.md")) {
		cells := strings.Split(line, "|")
		switch {
		case len(cells) < 4 || strings.HasPrefix(cells[1], "---"):
			stated = stated && strings.HasPrefix(line, "|")
		case strings.TrimSpace(cells[2]) == "State":
			stated = true
		case stated:
			state := strings.TrimSpace(cells[2])
			if !slices.Contains(states, state) || len(cells) != 5 {
				t.Errorf("docs/COMPATIBILITY.md: row %q has no state", strings.TrimSpace(line))
			}
			if state == "works" {
				continue
			}
			for member := range limits {
				if regexp.MustCompile("`[^`]*\\b" + member + "\\b[^`]*`").MatchString(cells[1]) {
					limits[member] = true
				}
			}
		}
	}
	for member, ok := range limits {
		if !ok {
			t.Errorf("docs/COMPATIBILITY.md says nothing of %q, which internal/wire does not act upon", member)
		}
	}
}

var link = regexp.MustCompile(`\]\(([^)#:]+)(?:#[^)]*)?\)`)

// TestLinksLeadSomewhere looks for the files that the documents link to.
func TestLinksLeadSomewhere(t *testing.T) {
	files := []string{"README.md", "examples/store/README.md"}
	for _, pattern := range []string{"docs/*.md", "docs/decisions/*.md"} {
		more, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, more...)
	}
	for _, file := range files {
		for _, m := range link.FindAllStringSubmatch(read(t, file), -1) {
			if _, err := os.Stat(filepath.Join(filepath.Dir(file), m[1])); err != nil {
				t.Errorf("%s links to %s: %v", file, m[1], err)
			}
		}
	}
}

func read(t *testing.T, file string) string {
	t.Helper()
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}
