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

	single map[int][]Target
	ranges []Target
}

// NewTable makes the table of an app. The machines are in order of their ids.
func NewTable(app *root.App, machines []*root.Machine) *Table {
	t := &Table{App: app, Machines: machines, single: make(map[int][]Target)}
	for _, m := range machines {
		for i := range m.Spec.Config.Services {
			s := &m.Spec.Config.Services[i]
			for _, p := range s.Ports {
				target := Target{Machine: m, Service: s, Index: i, Port: p}
				if p.End > p.Port {
					t.ranges = append(t.ranges, target)
				} else {
					t.single[p.Port] = append(t.single[p.Port], target)
				}
			}
		}
	}
	return t
}

// Port returns the targets of an outside port. The slice is shared: do not
// change it.
func (t *Table) Port(port int) []Target {
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
