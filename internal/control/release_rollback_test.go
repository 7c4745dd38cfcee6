package control

import (
	"fmt"
	"strings"
	"testing"

	root "github.com/roost-run/roost"
)

// back goes back, and says to which version's content.
func (d *deployment) back(version int) string {
	d.t.Helper()
	b, err := d.Releases.Rollback(d.t.Context(), admin, "shop", version, Rollback{})
	if err != nil {
		return root.MessageOf(err)
	}
	if r := d.ended(b.Release.Version); r.Progress.Status != root.ReleaseComplete {
		d.t.Fatalf("rollback: got %+v", r.Progress)
	}
	return fmt.Sprintf("v%d is v%d: %s", b.Release.Version, b.Release.Repeats, b.Why)
}

// Each rollback goes further back, and none forth again.
func TestRollbackGoesFurtherBack(t *testing.T) {
	d := newDeployment(t)
	expect := func(got, want string) {
		t.Helper()
		if !strings.HasPrefix(got, want) {
			t.Errorf("got %q, want %q", got, want)
		}
	}
	for _, image := range []string{"one", "two", "three"} {
		d.release(definition(image, nil))
	}
	expect(d.back(0), "v4 is v2: v2 is the newest complete release before v3, which serves")
	expect(d.back(0), "v5 is v1: v1 is the newest complete release before v2, which serves again as v4")
	expect(d.back(0), "app shop has no other complete release before v1, which serves again as v5, to go back to")
	d.expect("at the end", "app one v5 started", "worker one v5 started")
	// A name always works, also forth.
	expect(d.back(3), "v6 is v3: ")
	expect(d.back(4), "v7 is v2: ")
	// A new release begins anew; one that repeats what serves would change nothing.
	d.release(definition("four", nil))
	d.release(definition("four", nil))
	d.release(definition("five", map[string]string{"BAD": "1"}))
	expect(d.back(0), "v11 is v2: v7 is the newest complete release before v9, which serves (v8 would change nothing)")
	expect(d.back(0), "v12 is v1: v1 is the newest complete release before v2, which serves again as v11")
}

// A rollback of before releases said what they repeat is known by its content.
func TestRollbackOfAnOlderRecord(t *testing.T) {
	list := []root.Release{
		{Version: 3, Reason: ReasonRollback, Image: root.Image{Digest: "one"}, Progress: root.Progress{Status: root.ReleaseComplete}},
		{Version: 2, Reason: ReasonDeploy, Image: root.Image{Digest: "two"}, Progress: root.Progress{Status: root.ReleaseComplete}},
		{Version: 1, Reason: ReasonDeploy, Image: root.Image{Digest: "one"}, Progress: root.Progress{Status: root.ReleaseComplete}},
	}
	if to, _, err := rollbackTarget("shop", list, 3, 0); err == nil {
		t.Errorf("got v%d, want that nothing is before v1", to.Version)
	}
}

// A rollback brings the secrets back that the release ran with, or none, and
// machines that are made later get the same.
func TestRollbackAndSecrets(t *testing.T) {
	d := newDeployment(t)
	d.release(definition("one", nil))
	_, err := d.store.EditApp(t.Context(), "shop", func(a *root.App) error { a.Secrets = 1; return nil })
	d.must(err)
	d.release(definition("two", nil))
	b, err := d.Releases.Rollback(t.Context(), admin, "shop", 0, Rollback{DryRun: true})
	d.must(err)
	if b.To != 1 || b.Release.Version != 0 || b.Release.Secrets != 0 || !strings.Contains(strings.Join(b.Warnings, " "), "waits for the next deploy") {
		t.Errorf("dry run: got %+v", b)
	}
	list, err := d.Releases.List(t.Context(), admin, "shop")
	if err != nil || len(list) != 2 {
		t.Errorf("a dry run made a release: %d, %v", len(list), err)
	}
	d.back(0)
	d.must(d.Scale.Count(t.Context(), admin, "shop", ScaleCount{Groups: []GroupCount{{Group: "worker", Count: 2}}, Bound: Unbounded}, nil))
	console, _, end, err := d.Consoles.Open(t.Context(), admin, "shop", Console{})
	d.must(err)
	if console.Spec.Secrets != 0 {
		t.Errorf("console: got secrets %d, want those that serve", console.Spec.Secrets)
	}
	d.must(end())
	d.must(d.Scale.Resize(t.Context(), admin, "shop", Resize{Group: "worker", Memory: root.GiB}, nil))
	for _, m := range d.cat.Snapshot().Machines("shop") {
		if m.Spec.Secrets != 0 {
			t.Errorf("machine of %s: got secrets %d, want those that v1 had", m.Group(), m.Spec.Secrets)
		}
	}
	// What comes next brings the newer ones, and says so.
	r := d.release(definition("three", nil))
	warned := false
	d.must(d.Releases.Events(t.Context(), admin, "shop", r.Version, "", false, func(e root.ReleaseEvent) error {
		warned = warned || e.Warning && strings.Contains(e.Message, "v3, a rollback, runs with older secrets")
		return nil
	}))
	if r.Secrets != 1 || !warned {
		t.Errorf("the next release: got secrets %d, said: %v", r.Secrets, warned)
	}
}
