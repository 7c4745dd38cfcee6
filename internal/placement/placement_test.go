package placement

import (
	"strings"
	"testing"

	root "github.com/roost-run/roost"
)

func snapshot() *root.Snapshot {
	return root.NewSnapshot().With(1,
		root.Change{Host: &root.Host{ID: "aaaaaaaa", Region: "fra", Arch: "amd64", Memory: 4 * root.GiB}},
		root.Change{Host: &root.Host{ID: "bbbbbbbb", Region: "fra", Arch: "amd64", Memory: 8 * root.GiB}},
		root.Change{Host: &root.Host{ID: "cccccccc", Region: "iad", Arch: "arm64", Memory: 8 * root.GiB}},
		root.Change{Machine: &root.Machine{ID: "00000000000001", App: "shop", Host: "aaaaaaaa"}},
		root.Change{Machine: &root.Machine{ID: "00000000000002", App: "blog", Host: "bbbbbbbb"}},
		root.Change{Machine: &root.Machine{ID: "00000000000003", App: "blog", Host: "bbbbbbbb"}},
	)
}

func TestPlace(t *testing.T) {
	for _, c := range []struct {
		name string
		r    Request
		want root.HostID
		kind root.Kind
		text string
	}{
		{name: "spreads the app first", r: Request{App: "shop", Here: "fra"}, want: "bbbbbbbb"},
		{name: "then the machines", r: Request{App: "new", Here: "fra"}, want: "aaaaaaaa"},
		{name: "near the caller", r: Request{App: "new", Here: "iad"}, want: "cccccccc"},
		{name: "region", r: Request{App: "new", Region: "iad", Here: "fra"}, want: "cccccccc"},
		{name: "alias", r: Request{App: "new", Region: "us", Here: "fra"}, want: "cccccccc"},
		{name: "any", r: Request{App: "new", Region: "any", Here: "iad"}, want: "cccccccc"},
		{name: "list in order", r: Request{App: "new", Region: "nrt,iad,fra"}, want: "cccccccc"},
		{name: "architecture", r: Request{App: "new", Arch: "arm64", Here: "fra"}, want: "cccccccc"},
		{name: "memory", r: Request{App: "new", Region: "fra", Memory: 6 * root.GiB}, want: "bbbbbbbb"},
		{name: "no such region", r: Request{App: "new", Region: "nrt"}, kind: root.Exhausted, text: "regions with a host: fra, iad"},
		{name: "too large", r: Request{App: "new", Region: "fra", Memory: 16 * root.GiB}, kind: root.Exhausted, text: "asks for 16.0 GB"},
		{name: "malformed", r: Request{App: "new", Region: "FRA!"}, kind: root.Invalid, text: "FRA!"},
	} {
		t.Run(c.name, func(t *testing.T) {
			h, err := Place(c.r, snapshot())
			if c.want != "" {
				if err != nil || h.ID != c.want {
					t.Fatalf("got %v, %v, want host %s", h, err, c.want)
				}
				return
			}
			if !root.IsKind(err, c.kind) || !strings.Contains(err.Error(), c.text) {
				t.Errorf("got %v, want kind %v with %q", err, c.kind, c.text)
			}
		})
	}
}

func TestPlaceWithoutHosts(t *testing.T) {
	if _, err := Place(Request{App: "new"}, root.NewSnapshot()); !root.IsKind(err, root.Exhausted) {
		t.Errorf("got %v, want kind exhausted", err)
	}
}
