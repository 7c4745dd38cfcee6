package appconfig

import (
	"fmt"
	"slices"
	"strings"

	root "github.com/roost-run/roost"
)

// Problem is something that is wrong with a config.
type Problem struct {
	Position
	Path    string // "services[0].internal_port", "" the file as a whole
	Message string // one sentence, lower case
	Hint    string // what to do, "" nothing known
	Warning bool   // the config works, perhaps not as meant
	Unknown bool   // a key or section that nothing reads
}

// String is one line for people and editors: "12:3: error: message".
func (p Problem) String() string {
	var b strings.Builder
	if p.Line > 0 {
		fmt.Fprintf(&b, "%d:%d: ", p.Line, p.Column)
	}
	if p.Warning {
		b.WriteString("warning: ")
	} else {
		b.WriteString("error: ")
	}
	b.WriteString(p.Message)
	if p.Hint != "" {
		b.WriteString(" (" + p.Hint + ")")
	}
	return b.String()
}

// Problems are all that is wrong with a config, in the order of the file.
type Problems []Problem

// Strict returns the problems with unknown keys for errors.
func (ps Problems) Strict() Problems {
	ps = slices.Clone(ps)
	for i := range ps {
		if ps[i].Unknown {
			ps[i].Warning = false
		}
	}
	return ps
}

// Errors are those that keep the config from being used.
func (ps Problems) Errors() Problems {
	return slices.DeleteFunc(slices.Clone(ps), func(p Problem) bool { return p.Warning })
}

// Err returns nil unless there are errors; else one that lists them, of kind
// Invalid.
func (ps Problems) Err() error {
	errs := ps.Errors()
	if len(errs) == 0 {
		return nil
	}
	list := make([]string, len(errs))
	for i, p := range errs {
		p.Warning = false
		list[i] = strings.Replace(p.String(), "error: ", "", 1)
	}
	return root.Errorf(root.Invalid, "the app's config has problems: %s", strings.Join(list, "; "))
}

func (ps Problems) sort() {
	slices.SortStableFunc(ps, func(a, b Problem) int {
		if a.Line != b.Line {
			return a.Line - b.Line
		}
		return a.Column - b.Column
	})
}
