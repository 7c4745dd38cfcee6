package replay

import (
	"net/http"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	root "github.com/roost-run/roost"
)

func TestParseHeader(t *testing.T) {
	for _, c := range []struct {
		in   string
		want Replay
	}{
		{"region=ord", Replay{Regions: []string{"ord"}}},
		{`region="ord,LAX, any"`, Replay{Regions: []string{"ord", "lax", "any"}}},
		{"region=ord,lax", Replay{Regions: []string{"ord", "lax"}}},
		{"instance=148e1234c56789", Replay{Instance: "148e1234c56789"}},
		{"prefer_instance=148e1234c56789", Replay{PreferInstance: "148e1234c56789"}},
		{"app=other;region=ord", Replay{App: "other", Regions: []string{"ord"}}},
		{"elsewhere=true", Replay{Elsewhere: true}},
		{"Elsewhere=true; State=a=b ", Replay{Elsewhere: true, State: "a=b"}},
		{`elsewhere=true;state="a;b,c"`, Replay{Elsewhere: true, State: "a;b,c"}},
		{"region=ord;timeout=1500ms;fallback=force_self;", Replay{Regions: []string{"ord"}, Timeout: 1500 * time.Millisecond, Fallback: FallbackForceSelf}},
		{"region=ord;fallback=prefer_self", Replay{Regions: []string{"ord"}, Fallback: FallbackPreferSelf}},
	} {
		got, err := ParseHeader(c.in)
		if err != nil {
			t.Errorf("%q: %v", c.in, err)
			continue
		}
		if diff := cmp.Diff(&c.want, got); diff != "" {
			t.Errorf("%q (-want +got):\n%s", c.in, diff)
		}
		again, err := ParseHeader(got.String())
		if err != nil || !reflect.DeepEqual(got, again) {
			t.Errorf("%q prints as %q, which reads as %+v, %v", c.in, got.String(), again, err)
		}
	}
}

func TestParseHeaderRefuses(t *testing.T) {
	for _, c := range []struct{ in, want string }{
		{"", "no target"},
		{"state=x", "no target"},
		{"elsewhere=false", "no target"},
		{"region", "not key=value"},
		{"region=", "no region"},
		{"region=Ö", "region"},
		{"instance=xyz", "instance"},
		{"instace=148e1234c56789", "unknown field"},
		{"instance=148e1234c56789;instance=148e1234c56789", "twice"},
		{"instance=148e1234c56789;prefer_instance=148e1234c56789", "exclude each other"},
		{"app=No_Name", "app name"},
		{"elsewhere=maybe", "elsewhere"},
		{"region=ord;timeout=5", "duration"},
		{"region=ord;timeout=-5s", "duration"},
		{"region=ord;fallback=other", "fallback"},
		{`region="ord`, "not closed"},
		{`region=o"r"d`, "quote"},
	} {
		_, err := ParseHeader(c.in)
		if !root.IsKind(err, root.Invalid) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%q: got %v, want kind Invalid and %q", c.in, err, c.want)
		}
	}
}

func TestParseJSON(t *testing.T) {
	got, err := ParseJSON([]byte(`{"app":"other","region":"ord,any","state":"s","timeout":"2s","fallback":"prefer_self",
		"transform":{"path":"/x?y=1","delete_headers":["Cookie"],"set_headers":[{"name":"X-A","value":"b"}]},
		"cache":{"prefix":"/x","ttl":60},"allow_bypass":true}`))
	if err != nil {
		t.Fatal(err)
	}
	want := &Replay{
		App: "other", Regions: []string{"ord", "any"}, State: "s", Timeout: 2 * time.Second, Fallback: FallbackPreferSelf,
		Transform: Transform{Path: "/x?y=1", DeleteHeaders: []string{"Cookie"}, SetHeaders: []HeaderField{{"X-A", "b"}}},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	h := http.Header{"Cookie": {"a"}, "X-A": {"old"}, "X-B": {"kept"}}
	got.Transform.Apply(h)
	if diff := cmp.Diff(http.Header{"X-A": {"b"}, "X-B": {"kept"}}, h); diff != "" {
		t.Errorf("headers (-want +got):\n%s", diff)
	}
}

func TestParseJSONRefuses(t *testing.T) {
	for _, c := range []struct{ in, want string }{
		{``, "not valid"},
		{`[]`, "not valid"},
		{`{}`, "no target"},
		{`{"instance":7}`, "not valid"},
		{`{"instace":"148e1234c56789"}`, "not valid"},
		{`{"elsewhere":true}{"elsewhere":true}`, "after its end"},
		{`{"elsewhere":true,"state":"a\nb"}`, "state"},
		{`{"elsewhere":true,"transform":{"path":"x"}}`, "transform.path"},
		{`{"elsewhere":true,"transform":{"path":"/x y"}}`, "transform.path"},
		{`{"elsewhere":true,"transform":{"set_headers":[{"name":"a b","value":""}]}}`, "set_headers"},
		{`{"elsewhere":true,"transform":{"set_headers":[{"name":"a","value":"\r\n"}]}}`, "set_headers"},
		{`{"elsewhere":true,"transform":{"set_headers":[{"name":"content-length","value":"5"}]}}`, "belongs to the connection"},
		{`{"elsewhere":true,"transform":{"delete_headers":[""]}}`, "delete_headers"},
		{`{"elsewhere":true,"state":"` + strings.Repeat("x", MaxJSON) + `"}`, "larger"},
	} {
		_, err := ParseJSON([]byte(c.in))
		if !root.IsKind(err, root.Invalid) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%.80q: got %v, want kind Invalid and %q", c.in, err, c.want)
		}
	}
}

func TestExpand(t *testing.T) {
	regions, every := Expand([]string{"loc", "us", "any"})
	if !every || regions[0] != "loc" || regions[1] != "atl" || len(regions) != 13 {
		t.Errorf("got %v %v", regions, every)
	}
}

func FuzzHeader(f *testing.F) {
	for _, s := range []string{
		"region=ord", `region="ord,any";app=x;state="a;b"`, "instance=148e1234c56789;timeout=5s;fallback=force_self", "elsewhere=true;;",
		`state="`, "=;=", `elsewhere=true;state=""`, "elsewhere=true;state= x ", `elsewhere=1;state=a"b`, "region=ord,ord", "elsewhere=T;timeout=1h2m3.5s",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		r, err := ParseHeader(s)
		if err != nil {
			if !root.IsKind(err, root.Invalid) {
				t.Fatalf("%q: %v has kind %v", s, err, root.KindOf(err))
			}
			return
		}
		again, err := ParseHeader(r.String())
		if err != nil || !reflect.DeepEqual(r, again) {
			t.Fatalf("%q prints as %q, which reads as %+v, %v; want %+v", s, r.String(), again, err, r)
		}
	})
}

func FuzzJSON(f *testing.F) {
	for _, s := range []string{
		`{"instance":"148e1234c56789"}`, `{"elsewhere":true,"transform":{"path":"/","set_headers":[{"name":"A","value":"b"}]}}`,
		`{"region":"ord,any","timeout":"5s","fallback":"prefer_self","state":"x"}`, `{"app":"x","cache":{}}`, `{"elsewhere":true,"state":"a\"b"}`, `null`,
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		r, err := ParseJSON(data)
		if err != nil {
			return
		}
		out, err := r.JSON()
		if err != nil {
			t.Fatal(err)
		}
		again, err := ParseJSON(out)
		if err != nil || !reflect.DeepEqual(r, again) {
			t.Fatalf("%q prints as %q, which reads as %+v, %v; want %+v", data, out, again, err, r)
		}
	})
}
