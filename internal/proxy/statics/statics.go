package statics

import (
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	root "github.com/roost-run/roost"
	"github.com/roost-run/roost/internal/proxy/route"
)

// Linger is how long files of an image are still found after the last machine
// with it has gone: pages that were delivered before ask for them.
const Linger = 10 * time.Minute

// Server finds files. It is safe for concurrent use.
type Server struct {
	view  func(root.Digest) string
	now   func() time.Time
	tags  tags
	packs packs

	apps sync.Map // root.AppName -> *history
}

// history is the file sets of an app. It never changes.
type history struct {
	current []route.FileSet
	former  []former // the latest first
}

type former struct {
	route.FileSet
	until time.Time
}

// New returns a server; view says where the files of an image are, whether
// they are there or not.
func New(view func(root.Digest) string) *Server {
	return &Server{view: view, now: time.Now}
}

// Verdict says what a path is to the statics of an app.
type Verdict uint8

// The verdicts.
const (
	Pass   Verdict = iota // not a file here: the app's to answer
	Found                 // the file is to be served, and closed
	Refuse                // a path that tries to climb out: nobody asks for it honestly
)

// Ask is what a request asks for.
type Ask struct {
	URL            *url.URL
	AcceptEncoding string
	Plain          bool // nothing is to be compressed that is not already
}

// Find looks for the file that a URL names, in sets in their order, then in
// sets that the app had a while ago.
func (s *Server) Find(app root.AppName, sets []route.FileSet, a *Ask) (*File, Verdict) {
	if escapesSlash(a.URL) {
		return nil, Pass // no file's name has one in it
	}
	h := s.history(app, sets)
	for i := range h.current {
		if f, v := s.find(&h.current[i], a); v != Pass {
			return f, v
		}
	}
	for i := range h.former {
		if s.now().After(h.former[i].until) {
			break
		}
		if f, v := s.find(&h.former[i].FileSet, a); v != Pass {
			return f, v
		}
	}
	return nil, Pass
}

func escapesSlash(u *url.URL) bool {
	return u.RawPath != "" && (strings.Contains(u.RawPath, "%2f") || strings.Contains(u.RawPath, "%2F"))
}

func (s *Server) find(set *route.FileSet, a *Ask) (*File, Verdict) {
	for i := range set.Mounts {
		m := &set.Mounts[i]
		rest, ok := m.Under(a.URL.Path)
		if !ok {
			continue
		}
		name, v := fileName(rest, m.Index)
		if v != Found {
			return nil, v
		}
		return s.open(set.Image, m.Guest, name, a)
	}
	return nil, Pass
}

// fileName turns what follows a prefix into a relative file name. Only a name
// in its plain form is one: everything else would be a second name of a file.
func fileName(rest, index string) (string, Verdict) {
	if strings.IndexByte(rest, 0) >= 0 {
		return "", Refuse
	}
	if rest == "" || strings.HasSuffix(rest, "/") {
		if index == "" {
			// The guest path itself may be a file.
			if rest == "" {
				return "", Found
			}
			return "", climbing(rest)
		}
		rest += index
	}
	for left, more := rest, true; more; {
		var segment string
		segment, left, more = strings.Cut(left, "/")
		if segment == "" || segment == "." || segment == ".." {
			return "", climbing(rest)
		}
	}
	return rest, Found
}

// climbing tells a path with ".." from one that is only odd.
func climbing(rest string) Verdict {
	for segment := range strings.SplitSeq(rest, "/") {
		if segment == ".." {
			return Refuse
		}
	}
	return Pass
}

// history returns the app's sets, which it notes if they changed.
func (s *Server) history(app root.AppName, sets []route.FileSet) *history {
	var old *history
	if v, ok := s.apps.Load(app); ok {
		old = v.(*history)
		if same(old.current, sets) {
			return old
		}
	}
	next := &history{current: sets}
	if old != nil {
		now := s.now()
		for _, set := range old.current {
			if !holds(sets, set) {
				next.former = append(next.former, former{set, now.Add(Linger)})
			}
		}
		for _, f := range old.former {
			if now.Before(f.until) && !holds(sets, f.FileSet) {
				next.former = append(next.former, f)
			}
		}
		// A hundred deploys in ten minutes are a loop, not pages to be served.
		next.former = next.former[:min(len(next.former), maxFormer)]
	}
	s.apps.Store(app, next)
	return next
}

const maxFormer = 8

func same(a, b []route.FileSet) bool {
	if len(a) == len(b) && (len(a) == 0 || &a[0] == &b[0]) {
		return true
	}
	return slices.EqualFunc(a, b, equal)
}

func equal(a, b route.FileSet) bool {
	return a.Image == b.Image && slices.Equal(a.Mounts, b.Mounts)
}

func holds(sets []route.FileSet, set route.FileSet) bool {
	return slices.ContainsFunc(sets, func(o route.FileSet) bool { return equal(o, set) })
}
