// Package route says which app a request is for and which machines offer the
// service it asks for. It is pure: a table is made from one snapshot and never
// changes. The proxy calls it for every request; a lookup takes no lock and a
// table is only made again when its app changed.
package route

import (
	"strings"
	"sync"

	root "github.com/roost-run/roost"
)

// Host returns the app that the authority of a request (its Host header, with
// or without port) names under domain. Case does not matter, nor does one dot
// at the end. The name is checked for its form only.
func Host(authority, domain string) (root.AppName, bool) {
	host, ok := stripPort(authority)
	if !ok {
		return "", false
	}
	host = strings.TrimSuffix(host, ".")
	n := len(host) - len(domain) - 1
	if n < 1 || host[n] != '.' || !strings.EqualFold(host[n+1:], domain) {
		return "", false
	}
	name, err := root.ParseAppName(strings.ToLower(host[:n]))
	return name, err == nil
}

// Find returns the app that the authority of a request names: by a hostname of
// its own, exact or wildcard, else by its place under domain.
func Find(s *root.Snapshot, authority, domain string) (root.AppName, bool) {
	if host, ok := stripPort(authority); ok {
		if app, ok := s.AppAt(strings.ToLower(strings.TrimSuffix(host, "."))); ok {
			return app, true
		}
	}
	return Host(authority, domain)
}

// stripPort cuts ":port" off. An IPv6 literal stays as it is: it names no app.
func stripPort(authority string) (host string, ok bool) {
	i := strings.IndexByte(authority, ':')
	if i < 0 {
		return authority, authority != ""
	}
	port := authority[i+1:]
	if len(port) > 5 || strings.Trim(port, "0123456789") != "" {
		return "", false
	}
	return authority[:i], i > 0
}

// Target is a machine that offers a service on the port asked for.
type Target struct {
	Machine *root.Machine
	Service *root.Service
	Index   int // of the service in the machine's config
	Port    root.Port
}

// Table is an app's routes at one moment. It never changes.
type Table struct {
	App      *root.App
	Machines []*root.Machine

	// Files are the app's statics, the set that counts first in front.
	Files []FileSet

	offers
	match *matcher
	plain *offers            // without the groups that are kept for routes; nil: all
	group map[string]*offers // of each group that a route names
}

// offers are the targets by outside port.
type offers struct {
	single map[int][]Target
	ranges []Target
}

func (o *offers) add(t Target) {
	if t.Port.End > t.Port.Port {
		o.ranges = append(o.ranges, t)
	} else {
		o.single[t.Port.Port] = append(o.single[t.Port.Port], t)
	}
}

func newOffers() *offers { return &offers{single: make(map[int][]Target)} }

// NewTable makes the table of an app. The machines are in order of their ids.
func NewTable(app *root.App, machines []*root.Machine) *Table {
	t := &Table{App: app, Machines: machines, Files: fileSets(machines), offers: *newOffers(), match: newMatcher(app.Routes)}
	if t.match != nil {
		t.plain, t.group = newOffers(), make(map[string]*offers)
		for _, r := range app.Routes {
			t.group[r.Group] = newOffers()
		}
	}
	for _, m := range machines {
		for i := range m.Spec.Config.Services {
			s := &m.Spec.Config.Services[i]
			for _, p := range s.Ports {
				t.enter(Target{Machine: m, Service: s, Index: i, Port: p})
			}
		}
	}
	return t
}

func (t *Table) enter(target Target) {
	t.add(target)
	if t.match == nil {
		return
	}
	group := target.Machine.Group()
	if !t.match.reserved[group] {
		t.plain.add(target)
	}
	if o := t.group[group]; o != nil {
		o.add(target)
	}
}

// Group returns the process group that an app's routes name for a request, ""
// if none does. The first route that matches counts. It does not allocate.
func (t *Table) Group(method, path string) string { return t.match.group(method, path) }

// Within returns the targets of an outside port in the group that Group named.
// With "", or where no machine of the group offers the port, these are the
// machines of all groups but those that are kept for routes. The slice is
// shared: do not change it.
func (t *Table) Within(group string, port int) []Target {
	if t.match == nil {
		return t.Port(port)
	}
	if o := t.group[group]; o != nil {
		if targets := o.Port(port); len(targets) > 0 {
			return targets
		}
	}
	return t.plain.Port(port)
}

// Port returns the targets of an outside port in all groups. The slice is
// shared: do not change it.
func (t *offers) Port(port int) []Target {
	targets := t.single[port]
	if len(t.ranges) == 0 {
		return targets
	}
	targets = targets[:len(targets):len(targets)]
	for _, r := range t.ranges {
		if r.Port.Covers(port) {
			targets = append(targets, r)
		}
	}
	return targets
}

// Ports returns the outside ports that any machine offers, ranges by their first.
func (t *Table) Ports() []int {
	ports := make([]int, 0, len(t.single))
	for p := range t.single {
		ports = append(ports, p)
	}
	for _, r := range t.ranges {
		ports = append(ports, r.Port.Port)
	}
	return ports
}

// Router keeps the tables of the apps that are asked for. Its zero value is
// ready; it is safe for concurrent use.
type Router struct {
	tables sync.Map // root.AppName -> *Table
}

// Table returns the table of an app as it stands in s, or nil if s has no
// such app.
func (r *Router) Table(s *root.Snapshot, name root.AppName) *Table {
	app := s.App(name)
	if app == nil {
		r.tables.Delete(name)
		return nil
	}
	machines := s.Machines(name)
	if v, ok := r.tables.Load(name); ok {
		if t := v.(*Table); t.App == app && same(t.Machines, machines) {
			return t
		}
	}
	t := NewTable(app, machines)
	r.tables.Store(name, t)
	return t
}

// same reports whether a and b are one slice: snapshots make a new one for
// every change of an app, and a table keeps its own alive.
func same(a, b []*root.Machine) bool {
	return len(a) == len(b) && (len(a) == 0 || &a[0] == &b[0])
}
