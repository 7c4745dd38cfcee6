package image

import (
	"strings"
	"testing"

	root "github.com/roost-run/roost"
)

func TestParseRef(t *testing.T) {
	t.Parallel()
	d := "sha256:" + strings.Repeat("ab", 32)
	for in, want := range map[string]string{
		"debian":                            "docker.io/library/debian:latest",
		"debian:12":                         "docker.io/library/debian:12",
		"team/app":                          "docker.io/team/app:latest",
		"index.docker.io/library/debian:12": "docker.io/library/debian:12",
		"localhost:5000/app":                "localhost:5000/app:latest",
		"ghcr.io/a/b/c:v1":                  "ghcr.io/a/b/c:v1",
		"debian@" + d:                       "docker.io/library/debian@" + d,
		"debian:12@" + d:                    "docker.io/library/debian:12@" + d,
		d:                                   d,
	} {
		got, err := parseRef(in)
		if err != nil || got.String() != want {
			t.Errorf("%s: got %q, %v; want %q", in, got, err, want)
		}
	}
	for _, in := range []string{
		"", "UPPER", "a b", "a:", "a@", "a@sha256:12", ":1", "/a", "a//b", "-a", "a:" + strings.Repeat("t", 129),
		"https://docker.io/debian", "a@sha512:" + strings.Repeat("ab", 64), "sha512:" + strings.Repeat("ab", 64),
		strings.Repeat("a/", 400) + "a", "../etc/passwd", "a\x00b", strings.Repeat("ab", 32),
	} {
		if got, err := parseRef(in); !root.IsKind(err, root.Invalid) {
			t.Errorf("%q: got %q, %v; want Invalid", in, got, err)
		}
	}
}

func TestOwnRegistry(t *testing.T) {
	t.Parallel()
	s := &Store{o: Options{Domain: "roost.test"}}
	for in, want := range map[string]bool{
		"registry.roost.test/app:1": true, "registry.roost.test:4280/app:1": true,
		"registry.roost.test.evil/app:1": false, "debian": false, "xregistry.roost.test/app": false,
	} {
		r, err := parseRef(in)
		if err != nil {
			t.Fatal(err)
		}
		if got := s.own(r); got != want {
			t.Errorf("%s is ours: got %v, want %v", in, got, want)
		}
	}
}

// Whatever comes in: no panic, bounded messages, and the normal form is one.
func FuzzParseRef(f *testing.F) {
	for _, s := range []string{
		"debian", "debian:12", "localhost:5000/a/b:c", "a@sha256:" + strings.Repeat("0", 64), "sha256:" + strings.Repeat("0", 64),
		"a:b@sha256:" + strings.Repeat("f", 64), "[::1]:5000/a", "A", "a/../b", "docker.io/debian", "registry.localhost/app:deployment-01J0ABCDEFGHJKMNPQRSTVWXYZ",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		r, err := parseRef(s)
		if err != nil {
			if !root.IsKind(err, root.Invalid) {
				t.Errorf("kind of %v: got %v, want Invalid", err, root.KindOf(err))
			}
			if m := root.MessageOf(err); len(m) > 1000 {
				t.Errorf("message of %d bytes", len(m))
			}
			return
		}
		again, err := parseRef(r.String())
		if err != nil || again != r {
			t.Errorf("%q: normal form %q parses to %+v, %v; want %+v", s, r, again, err, r)
		}
		if r.domain != "" {
			byName, err := parseRef(r.name())
			if err != nil || byName.repository() != r.repository() {
				t.Errorf("%q: name %q parses to %+v, %v", s, r.name(), byName, err)
			}
		}
	})
}
