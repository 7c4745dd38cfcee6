package route

import (
	"slices"
	"strings"

	root "github.com/roost-run/roost"
)

// matcher finds the process group of a request by an app's [[serverless]]
// rules. It never changes.
type matcher struct {
	rules    []rule
	reserved map[string]bool // groups whose machines take nothing but what a rule sends them
}

type rule struct {
	patterns []pattern
	methods  []string
	group    string
}

// pattern is a path's segments: "*" stands for any one, a last "**" for any
// number, none included.
type pattern struct {
	segments []string
	rest     bool
}

func newMatcher(routes []root.Route) *matcher {
	if len(routes) == 0 {
		return nil
	}
	m := &matcher{reserved: make(map[string]bool)}
	for _, r := range routes {
		next := rule{methods: r.Methods, group: r.Group}
		for _, p := range r.Paths {
			segments := strings.Split(strings.Trim(p, "/"), "/")
			if p = segments[len(segments)-1]; p == "**" || p == "" {
				segments = segments[:len(segments)-1]
			}
			next.patterns = append(next.patterns, pattern{segments, p == "**"})
		}
		m.rules = append(m.rules, next)
		m.reserved[r.Group] = true
	}
	for _, r := range routes {
		if r.Shared {
			delete(m.reserved, r.Group)
		}
	}
	return m
}

// group returns the group of the first rule that matches, "" for none. It
// does not allocate.
func (m *matcher) group(method, path string) string {
	if m == nil {
		return ""
	}
	for i := range m.rules {
		r := &m.rules[i]
		if !r.takes(method) {
			continue
		}
		for j := range r.patterns {
			if r.patterns[j].matches(path) {
				return r.group
			}
		}
	}
	return ""
}

// takes reports whether the rule is for the method; who asks for GET means
// HEAD, too.
func (r *rule) takes(method string) bool {
	return len(r.methods) == 0 || slices.Contains(r.methods, method) || method == "HEAD" && slices.Contains(r.methods, "GET")
}

// matches compares segment by segment. One slash at the end of a path does not
// count.
func (p *pattern) matches(path string) bool {
	path, ok := strings.CutPrefix(path, "/")
	if !ok {
		return false
	}
	path = strings.TrimSuffix(path, "/")
	more := path != ""
	for _, want := range p.segments {
		if !more {
			return false
		}
		var got string
		got, path, more = strings.Cut(path, "/")
		if got != want && (want != "*" || got == "") {
			return false
		}
	}
	return p.rest || !more
}
