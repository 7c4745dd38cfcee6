package roost

import (
	"strings"
	"testing"
)

func TestParseHostname(t *testing.T) {
	for in, want := range map[string]string{
		"shop.example.com": "shop.example.com", "Shop.Example.COM.": "shop.example.com", " shop.example.com ": "shop.example.com",
		"*.example.com": "*.example.com", "xn--caf-dma.example.com": "xn--caf-dma.example.com", "a_b.example.com": "a_b.example.com",
		"": "", "example": "", "*": "", "*.": "", "*.com": "", "a.*.com": "", "**.example.com": "", "-a.example.com": "", "a-.example.com": "",
		"a..example.com": "", ".example.com": "", "a b.example.com": "", "café.example.com": "", "10.0.0.1": "", "example.com:80": "", "a/b.example.com": "",
		"a\x00.example.com": "", strings.Repeat("a", 64) + ".example.com": "", strings.Repeat("a.", 130) + "com": "",
	} {
		got, err := ParseHostname(in)
		if want == "" {
			if !IsKind(err, Invalid) {
				t.Errorf("%q: got %q, %v; want kind invalid", in, got, err)
			}
			continue
		}
		if err != nil || got != want {
			t.Errorf("%q: got %q, %v; want %q", in, got, err, want)
		}
	}
}

func FuzzParseHostname(f *testing.F) {
	for _, s := range []string{"shop.example.com", "*.example.com", "Shop.Example.com.", "a_b.c", "1.2.3.4", "*."} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		name, err := ParseHostname(s)
		if err != nil {
			return
		}
		if again, err := ParseHostname(name); err != nil || again != name {
			t.Errorf("%q became %q, which becomes %q, %v", s, name, again, err)
		}
		if len(name) > maxHostname || strings.ToLower(name) != name {
			t.Errorf("%q became %q", s, name)
		}
	})
}

func TestAppAt(t *testing.T) {
	app := func(name AppName, hostnames ...string) Change {
		return Change{App: &App{Name: name, Hostnames: hostnames}}
	}
	check := func(s *Snapshot, host string, want AppName) {
		t.Helper()
		if got, ok := s.AppAt(host); got != want || ok != (want != "") {
			t.Errorf("%s: got %q, %t; want %q", host, got, ok, want)
		}
	}
	one := NewSnapshot().With(1, app("a", "shop.example.com", "*.example.com"), app("b", "b.example.com"))
	check(one, "shop.example.com", "a")
	check(one, "other.example.com", "a")
	check(one, "b.example.com", "b") // the exact name comes first
	check(one, "x.b.example.com", "")
	check(one, "example.com", "")
	check(one, ".example.com", "")

	two := one.With(2, app("a", "*.example.com"))
	check(two, "shop.example.com", "a") // by the wildcard
	check(one, "shop.example.com", "a")
	three := two.With(3, app("a"), app("b", "b.example.com", "shop.example.com"))
	check(three, "shop.example.com", "b")
	check(three, "other.example.com", "")
	// A name that moves: the new owner's record comes before the old one's.
	four := three.With(4, app("a", "b.example.com")).With(5, app("b", "shop.example.com"))
	check(four, "b.example.com", "a")
	five := four.With(6, Change{AppDeleted: "a"}, Change{AppDeleted: "b"})
	check(five, "b.example.com", "")
	check(five, "shop.example.com", "")
	check(four, "shop.example.com", "b") // snapshots never change
	// Many at once take the path that owns its parts.
	var many []Change
	for _, n := range []AppName{"c", "d", "e", "f", "g"} {
		many = append(many, app(n, string(n)+".example.org"))
	}
	six := five.With(7, many...)
	check(six, "g.example.org", "g")
	check(five, "g.example.org", "")
	if got := six.With(8, Change{App: &App{Name: "c", Hostnames: []string{"c.example.org"}, Release: 2}}); len(got.Since(six)) != 1 {
		t.Errorf("changes: got %d, want 1", len(got.Since(six)))
	}
}
