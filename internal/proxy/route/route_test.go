package route

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	root "github.com/roost-run/roost"
)

func TestHost(t *testing.T) {
	for _, c := range []struct {
		authority, domain string
		want              root.AppName
	}{
		{"shop.localhost", "localhost", "shop"},
		{"shop.localhost:8080", "localhost", "shop"},
		{"shop.localhost:", "localhost", "shop"},
		{"SHOP.LocalHost", "localhost", "shop"},
		{"shop.localhost.", "localhost", "shop"},
		{"shop.localhost.:80", "localhost", "shop"},
		{"my-shop.apps.example.com", "apps.example.com", "my-shop"},
		{"shop.localhost..", "localhost", ""},
		{"www.shop.localhost", "localhost", ""},
		{"localhost", "localhost", ""},
		{".localhost", "localhost", ""},
		{"shoplocalhost", "localhost", ""},
		{"shop.example.com", "localhost", ""},
		{"shop.localhost:http", "localhost", ""},
		{"shop.localhost:80:80", "localhost", ""},
		{"shop.localhost:123456", "localhost", ""},
		{"-shop.localhost", "localhost", ""},
		{"sh_op.localhost", "localhost", ""},
		{"user@shop.localhost", "localhost", ""},
		{"[::1]:80", "localhost", ""},
		{":80", "localhost", ""},
		{"", "localhost", ""},
		{strings.Repeat("a", 63) + ".localhost", "localhost", root.AppName(strings.Repeat("a", 63))},
		{strings.Repeat("a", 64) + ".localhost", "localhost", ""},
	} {
		got, ok := Host(c.authority, c.domain)
		if ok != (c.want != "") || ok && got != c.want {
			t.Errorf("Host(%q, %q): got %q %v, want %q", c.authority, c.domain, got, ok, c.want)
		}
	}
}

func FuzzHost(f *testing.F) {
	for _, s := range []string{"shop.localhost", "SHOP.localhost.:80", "a.b.localhost", "[::1]:80", "shop.localhost:99999", "\x00.localhost", "xn--bcher-kva.localhost", "ſhop.localhost", "K.localhost"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, authority string) {
		name, ok := Host(authority, "localhost")
		if !ok {
			return
		}
		if _, err := root.ParseAppName(string(name)); err != nil {
			t.Fatalf("Host(%q): got %q, which is no name: %v", authority, name, err)
		}
		if again, ok := Host(string(name)+".localhost", "localhost"); !ok || again != name {
			t.Fatalf("Host of what Host(%q) found: got %q %v, want %q", authority, again, ok, name)
		}
		if !strings.EqualFold(authority[:len(name)+1], string(name)+".") {
			t.Fatalf("Host(%q): got %q", authority, name)
		}
	})
}

func service(ports ...root.Port) root.Service {
	return root.Service{Protocol: "tcp", InternalPort: 8080, Ports: ports}
}

func machine(id root.MachineID, services ...root.Service) *root.Machine {
	return &root.Machine{ID: id, App: "shop", Spec: root.Spec{Config: root.Config{Services: services}}}
}

func TestTable(t *testing.T) {
	http := service(root.Port{Port: 80}, root.Port{Port: 443})
	several := service(root.Port{Port: 3000, End: 3010})
	s := root.NewSnapshot().With(1,
		root.Change{App: &root.App{Name: "shop"}},
		root.Change{Machine: machine("m1", http)},
		root.Change{Machine: machine("m2", service(root.Port{Port: 9}), http)},
		root.Change{Machine: machine("m3", several)},
	)
	var r Router
	table := r.Table(s, "shop")
	for port, want := range map[int][]string{80: {"m1/0", "m2/1"}, 443: {"m1/0", "m2/1"}, 9: {"m2/0"}, 3000: {"m3/0"}, 3010: {"m3/0"}, 3011: nil, 0: nil} {
		var got []string
		for _, target := range table.Port(port) {
			got = append(got, fmt.Sprintf("%s/%d", target.Machine.ID, target.Index))
		}
		if !slices.Equal(got, want) {
			t.Errorf("port %d: got %v, want %v", port, got, want)
		}
	}
	if r.Table(s, "other") != nil {
		t.Error("an app that does not exist has a table")
	}
	if r.Table(s.With(2, root.Change{App: &root.App{Name: "other"}}), "shop") != table {
		t.Error("the table was made again though its app did not change")
	}
	for name, c := range map[string]root.Change{
		"machine changed": {Machine: machine("m1")},
		"machine gone":    {MachineGone: "m1"},
		"app changed":     {App: &root.App{Name: "shop", Org: "other"}},
	} {
		if r.Table(s.With(2, c), "shop") == table {
			t.Errorf("%s: the table is still the old one", name)
		}
	}
}

func BenchmarkMatch(b *testing.B) {
	s := root.NewSnapshot()
	for i := range 1000 {
		name := root.AppName(fmt.Sprintf("app-%d", i))
		s = s.With(int64(i), root.Change{App: &root.App{Name: name}})
		for j := range 5 {
			m := machine(root.MachineID(fmt.Sprintf("%d-%d", i, j)), service(root.Port{Port: 80}, root.Port{Port: 443}))
			m.App = name
			s = s.With(int64(i), root.Change{Machine: m})
		}
	}
	var r Router
	b.ReportAllocs()
	for b.Loop() {
		name, ok := Host("app-500.localhost:8080", "localhost")
		if !ok || len(r.Table(s, name).Port(80)) != 5 {
			b.Fatal("no match")
		}
	}
}

func TestFind(t *testing.T) {
	s := root.NewSnapshot().With(1, root.Change{App: &root.App{Name: "shop", Hostnames: []string{"shop.example.com", "*.example.com"}}},
		root.Change{App: &root.App{Name: "blog", Hostnames: []string{"blog.example.com"}}})
	for host, want := range map[string]root.AppName{
		"shop.example.com": "shop", "SHOP.example.COM": "shop", "shop.example.com.": "shop", "shop.example.com:8443": "shop",
		"a.example.com": "shop", "blog.example.com": "blog", "blog.localhost": "blog", "other.localhost": "other",
		"a.b.example.com": "", "example.com": "", ".example.com": "", "shop.example.com:http": "", "": "", "..": "", ":80": "",
	} {
		got, ok := Find(s, host, "localhost")
		if got != want || ok != (want != "") {
			t.Errorf("%q: got %q, %t; want %q", host, got, ok, want)
		}
	}
}

func BenchmarkFind(b *testing.B) {
	var changes []root.Change
	for i := range 1000 {
		changes = append(changes, root.Change{App: &root.App{Name: root.AppName(fmt.Sprintf("app-%d", i)), Hostnames: []string{fmt.Sprintf("shop-%d.example.com", i)}}})
	}
	s := root.NewSnapshot().With(1, changes...)
	for name, host := range map[string]string{"own": "shop-500.example.com", "domain": "app-500.localhost"} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, ok := Find(s, host, "localhost"); !ok {
					b.Fatal("not found")
				}
			}
		})
	}
}
