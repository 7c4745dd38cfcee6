package agent

import (
	"errors"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	root "github.com/roost-run/roost"
	"github.com/roost-run/roost/internal/orders"
)

// TestViews: the files of an image are shown as long as a machine with statics
// has it, a while longer, and across agents.
func TestViews(t *testing.T) {
	h := newHost(t)
	c := webConfig()
	c.Statics = []root.Static{{GuestPath: "/app/static", URLPrefix: "/static"}}
	m := h.machine(1, c, true)
	must(t, last(h.Launch(t.Context(), m)))
	must(t, last(h.Launch(t.Context(), h.machine(2, workerConfig(), true)))) // without statics
	shown := func() map[string]root.Digest {
		t.Helper()
		views, err := h.images.Views(t.Context())
		must(t, err)
		return views
	}
	target := h.options.Config.View("sha256:1")
	want := map[string]root.Digest{target: "sha256:1"}
	if diff := cmp.Diff(want, shown()); diff != "" {
		t.Fatalf("views (-want +got):\n%s", diff)
	}
	now := time.Now()
	h.removeViews(t.Context(), now.Add(2*lingerView))
	if diff := cmp.Diff(want, shown()); diff != "" {
		t.Errorf("a view that is needed (-want +got):\n%s", diff)
	}

	// The next agent finds what this one made, and mounts again what is gone.
	h.kill()
	must(t, h.images.Unview(t.Context(), target))
	stale := h.options.Config.View("sha256:2")
	must(t, h.images.View(t.Context(), "sha256:2", stale))
	h.begin()
	h.waitState(m.ID, root.StateStarted)
	h.eventually("the view to be there again", func() bool { return shown()[target] == "sha256:1" })
	h.eventually("the old view to be known", func() bool {
		h.views.mu.Lock()
		defer h.views.mu.Unlock()
		return h.views.known["sha256:2"] != nil
	})
	h.removeViews(t.Context(), time.Now().Add(lingerView/2))
	if len(shown()) != 2 {
		t.Errorf("views: got %v, want the old one to linger", shown())
	}
	h.removeViews(t.Context(), time.Now().Add(2*lingerView))
	if diff := cmp.Diff(want, shown()); diff != "" {
		t.Errorf("after a while (-want +got):\n%s", diff)
	}

	must(t, last(h.Stop(t.Context(), m.ID, orders.Stop{Source: orders.SourceUser})))
	h.waitState(m.ID, root.StateStopped)
	rev, err := h.Destroy(t.Context(), m.ID)
	must(t, err)
	must(t, h.catalog.WaitRevision(t.Context(), rev))
	h.removeViews(t.Context(), time.Now().Add(3*lingerView))
	if len(shown()) != 0 {
		t.Errorf("after the machine has gone: got %v", shown())
	}
}

// TestViewsBounded: of many images that one deploy after the other left, the
// latest few are kept.
func TestViewsBounded(t *testing.T) {
	v := newViews()
	now := time.Now()
	for i := range 20 {
		v.known[root.Digest(string(rune('a'+i)))] = &view{mounted: true, needed: now.Add(time.Duration(i-20) * time.Second)}
	}
	v.known["needed"] = &view{mounted: true, needed: now}
	gone := v.lapsed(now)
	if len(gone) != 20-maxLinger || len(v.known) != maxLinger+1 || v.known["needed"] == nil || v.known["t"] == nil || v.known["a"] != nil {
		t.Errorf("gone: %v, kept: %v", gone, v.known)
	}
	if gone := v.lapsed(now.Add(time.Second)); len(gone) != 1 {
		t.Errorf("a second later: %v", gone)
	}
}

// TestViewFails: a machine whose files cannot be shown does not come up, and
// leaves nothing.
func TestViewFails(t *testing.T) {
	h := newHost(t)
	h.images.viewError = errors.New("no mounts today")
	c := webConfig()
	c.Statics = []root.Static{{GuestPath: "/app/static", URLPrefix: "/static"}}
	if _, err := h.Launch(t.Context(), h.machine(1, c, true)); err == nil {
		t.Error("the launch succeeded")
	}
}
