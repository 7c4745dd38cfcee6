package control

import (
	"context"
	"encoding/json"
	"fmt"

	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	root "github.com/roost-run/roost"
	"github.com/roost-run/roost/internal/seal"
)

// values makes SecretValues of names and values in turn.
func values(pairs ...string) SecretValues {
	out := SecretValues{}
	for i := 0; i < len(pairs); i += 2 {
		out[pairs[i]] = &pairs[i+1]
	}
	return out
}

func TestSecrets(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	set, err := w.Secrets.List(ctx, admin, "shop")
	w.must(err)
	if set.Version != 0 || len(set.Secrets) != 0 {
		t.Errorf("before any: got %+v", set)
	}
	one, err := w.Secrets.Set(ctx, admin, "shop", values("B", "canary-b", "A", "canary-a"))
	w.must(err)
	if one.Version != 1 || one.Secrets[0].Name != "A" || one.Secrets[1].Name != "B" || one.Sealed != nil {
		t.Fatalf("got %+v, want version 1 of A and B, without what is sealed", one)
	}
	w.now = w.now.Add(1e9)
	two, err := w.Secrets.Set(ctx, admin, "shop", SecretValues{"A": new("canary-2"), "B": new("canary-b"), "C": nil})
	w.must(err)
	if a, b := two.Secrets[0], two.Secrets[1]; two.Version != 2 || a.Digest == one.Secrets[0].Digest || b != one.Secrets[1] ||
		a.CreatedAt != one.Secrets[0].CreatedAt || !a.UpdatedAt.After(a.CreatedAt) || a.Version != 2 {
		t.Errorf("after a change of A: got %+v, was %+v", two, one)
	}
	same, err := w.Secrets.Set(ctx, admin, "shop", SecretValues{"A": new("canary-2"), "GONE": nil})
	w.must(err)
	if same.Version != 2 {
		t.Errorf("nothing changed: got version %d, want 2", same.Version)
	}
	// Every version can be opened, each with what it had.
	for version, want := range map[int]map[string]string{0: nil, 1: {"A": "canary-a", "B": "canary-b"}, 2: {"A": "canary-2", "B": "canary-b"}} {
		got, err := w.Secrets.Open(ctx, "shop", version)
		w.must(err)
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("version %d (-want +got):\n%s", version, diff)
		}
	}
	_, err = w.Secrets.Open(ctx, "shop", 9)
	w.want(err, root.NotFound, "version 9")
	// In the store there is nothing to read.
	stored, err := w.store.Secrets(ctx, "shop", 2)
	w.must(err)
	if text := fmt.Sprintf("%s %+v", stored.Sealed, stored); strings.Contains(text, "canary") {
		t.Error("a value stands in the store")
	}
	gone, err := w.Secrets.Set(ctx, admin, "shop", SecretValues{"A": nil, "B": nil})
	w.must(err)
	if gone.Version != 3 || len(gone.Secrets) != 0 {
		t.Errorf("after the last one went: got %+v", gone)
	}
	if got, err := w.Secrets.Open(ctx, "shop", 3); err != nil || len(got) != 0 {
		t.Errorf("an empty version: got %v, %v", got, err)
	}
}

func TestSecretsRefuse(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	for name, tt := range map[string]struct {
		values SecretValues
		kind   root.Kind
		text   string
	}{
		"no name":       {values("", "canary"), root.Invalid, "letters, digits and underscores"},
		"a digit first": {values("1A", "canary"), root.Invalid, `"1A"`},
		"a dash":        {values("A-B", "canary"), root.Invalid, `"A-B"`},
		"ours":          {values("FLY_REGION", "canary"), root.Invalid, "set by the platform"},
		"NUL":           {values("A", "canary\x00"), root.Invalid, "NUL"},
		"large":         {values("A", strings.Repeat("canary", 20_000)), root.TooLarge, "64"},
	} {
		_, err := w.Secrets.Set(ctx, admin, "shop", tt.values)
		w.want(err, tt.kind, tt.text)
		if err != nil && strings.Contains(err.Error(), "canary") {
			t.Errorf("%s: the error shows the value: %v", name, err)
		}
	}
	many := SecretValues{}
	for i := range 10 {
		many[fmt.Sprintf("A%d", i)] = new(strings.Repeat("x", 60_000))
	}
	_, err := w.Secrets.Set(ctx, admin, "shop", many)
	w.want(err, root.TooLarge, "together")
	_, err = w.Secrets.Set(ctx, reader, "shop", values("A", "b"))
	w.want(err, root.Forbidden, "")
	_, err = w.Secrets.List(ctx, foreign, "shop")
	w.want(err, root.Forbidden, "")
	_, err = w.Secrets.Set(ctx, admin, "gone", values("A", "b"))
	w.want(err, root.NotFound, "")
	_, err = w.Secrets.Deploy(ctx, admin, "shop", "")
	w.want(err, root.Precondition, "no release")
	w.must(func() error { _, err := w.Secrets.Set(ctx, admin, "shop", values("FLY_API_TOKEN", "t")); return err }())
	if got := fmt.Sprintf("%v %+v %#v %s", values("A", "canary"), values("A", "canary"), values("A", "canary"), values("A", "canary")); strings.Contains(got, "canary") || strings.Contains(got, "0xc") {
		t.Errorf("values print as %s", got)
	}
}

// TestSecretsReachMachines: a version of a machine runs with what was current
// when it was made; a secret is staged until the machines have it.
func TestSecretsReachMachines(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	_, err := w.Secrets.Set(ctx, admin, "shop", values("A", "1"))
	w.must(err)
	m := w.create("web")
	without, err := w.Machines.Create(ctx, admin, "shop", CreateMachine{Config: config(), SkipSecrets: true})
	w.must(err)
	if m.Spec.Secrets != 1 || without.Spec.Secrets != 0 {
		t.Errorf("versions: got %d and %d, want 1 and, without secrets, 0", m.Spec.Secrets, without.Spec.Secrets)
	}
	w.must(w.Machines.Destroy(ctx, admin, "shop", without.ID, "", true))
	staged := func() []string {
		set, err := w.Secrets.List(ctx, admin, "shop")
		w.must(err)
		var out []string
		for _, s := range set.Secrets {
			if s.Staged {
				out = append(out, s.Name)
			}
		}
		return out
	}
	if got := staged(); len(got) > 0 {
		t.Errorf("staged: got %v, want none", got)
	}
	_, err = w.Secrets.Set(ctx, admin, "shop", values("B", "2"))
	w.must(err)
	if got := staged(); !slices.Equal(got, []string{"B"}) {
		t.Errorf("staged: got %v, want B", got)
	}
	if now, err := w.Machines.Get(ctx, admin, "shop", m.ID); err != nil || now.Spec.Secrets != 1 {
		t.Errorf("a running machine was touched: %v, %v", now, err)
	}
	m, err = w.Machines.Update(ctx, admin, "shop", m.ID, UpdateMachine{Config: m.Spec.Config})
	w.must(err)
	if got := staged(); m.Spec.Secrets != 2 || len(got) > 0 {
		t.Errorf("after an update: version %d, staged %v, want 2 and none", m.Spec.Secrets, got)
	}
}

// TestSecretsPruned: versions go when nothing needs them.
func TestSecretsPruned(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	_, err := w.Secrets.Set(ctx, admin, "shop", values("A", "v1"))
	w.must(err)
	w.create("old") // runs with version 1
	_, err = w.Secrets.Set(ctx, admin, "shop", values("A", "v2"))
	w.must(err)
	w.release(2) // and a release with version 2
	for i := 3; i <= keptVersions+5; i++ {
		_, err := w.Secrets.Set(ctx, admin, "shop", values("A", fmt.Sprintf("v%d", i)))
		w.must(err)
	}
	got, err := w.store.SecretVersions(ctx, "shop")
	w.must(err)
	if len(got) != keptVersions+2 || got[0] != 1 || got[1] != 2 || got[2] != 6 {
		t.Errorf("kept %v, want 1 (a machine's), 2 (a release's) and the last %d", got, keptVersions)
	}
}

// release stores a complete release of the app with that version of secrets.
func (w *world) release(secrets int, groups ...root.Group) root.Release {
	w.t.Helper()
	ctx := w.t.Context()
	if len(groups) == 0 {
		groups = []root.Group{{Name: "app", Config: config()}}
	}
	r, _, err := w.store.CreateRelease(ctx, root.Release{
		ID: "01J0ABCDEFGHJKMNPQRSTVWXYZ", App: "shop", Image: root.Image{Registry: "example.com", Repository: "shop", Digest: "sha256:1"},
		Groups: groups, Secrets: secrets, Definition: []byte(`{"app":"shop"}`),
	})
	w.must(err)
	w.must(w.store.HoldRollout(ctx, "shop", hostID, func(ctx context.Context) error {
		_, err := w.store.FinishRollout(ctx, hostID, root.Rollout{App: "shop", Version: r.Version}, root.Progress{Status: root.ReleaseComplete}, root.ReleaseEvent{ID: "E", End: true}, false)
		return err
	}))
	rev, err := w.store.EditApp(ctx, "shop", func(a *root.App) error { a.Release = r.Version; return nil })
	w.must(err)
	w.must(w.Machines.Catalog.WaitRevision(ctx, rev))
	return r
}

// tape is a log that was written.
type tape []string

func (t tape) Tail(_ context.Context, _ root.AppName, _ LogFilter, _ bool, line func(LogLine) error) error {
	for _, s := range t {
		if err := line(LogLine{Message: s}); err != nil {
			return err
		}
	}
	return nil
}

// TestLogsAreScrubbed: what an app prints of its secrets is masked, also of
// former values, and of one that is set while somebody watches.
func TestLogsAreScrubbed(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	for _, v := range []string{"canary-old", "canary-new"} {
		_, err := w.Secrets.Set(ctx, admin, "shop", values("KEY", v))
		w.must(err)
	}
	logs := scrubbedLogs{tape{"key is canary-old", "set now", "canary-new and canary-later"}, w.Secrets.Vault, w.Machines.Catalog}
	var got []string
	w.must(logs.Tail(ctx, "shop", LogFilter{}, true, func(l LogLine) error {
		got = append(got, l.Message)
		if l.Message == "set now" {
			_, err := w.Secrets.Set(ctx, admin, "shop", values("LATER", "canary-later"))
			w.must(err)
		}
		return nil
	}))
	want := []string{"key is [secret]", "set now", "[secret] and [secret]"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// builds is a builder that prints the secrets it gets.
type builds struct {
	Builder
	got map[string]string
}

func (b *builds) Build(_ context.Context, r BuildRequest, news func(BuildNews)) (root.Image, error) {
	b.got = r.Secrets
	for _, v := range r.Secrets {
		news(BuildNews{Log: "it is " + v})
		status, err := json.Marshal(map[string]any{"logs": []any{map[string]any{"vertex": "sha256:1", "data": []byte("it is " + v)}}, "vertexes": []any{map[string]any{"name": "RUN " + v}}})
		if err != nil {
			return root.Image{}, err
		}
		news(BuildNews{Status: status})
	}
	return root.Image{}, nil
}

func TestBuildSecrets(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	_, err := w.Secrets.Set(ctx, admin, "shop", values("TOKEN", "canary-token", "OTHER", "canary-other"))
	w.must(err)
	b := &builds{}
	w.Images.d.Builder = b
	var said strings.Builder
	_, err = w.Images.Build(ctx, admin, BuildRequest{App: "shop", Secrets: map[string]string{"mine": "canary-mine"}, AppSecrets: []string{"TOKEN"}}, func(n BuildNews) {
		said.WriteString(n.Log + "\n")
		var status struct {
			Logs []struct {
				Vertex string
				Data   []byte
			}
			Vertexes []struct{ Name string }
		}
		if len(n.Status) == 0 {
			return
		}
		if err := json.Unmarshal(n.Status, &status); err != nil || len(status.Logs) != 1 || status.Logs[0].Vertex != "sha256:1" {
			t.Errorf("status: got %s, %v", n.Status, err)
			return
		}
		said.WriteString(string(status.Logs[0].Data) + "\n" + status.Vertexes[0].Name + "\n")
	})
	w.must(err)
	if diff := cmp.Diff(map[string]string{"mine": "canary-mine", "TOKEN": "canary-token"}, b.got); diff != "" {
		t.Errorf("the build got (-want +got):\n%s", diff)
	}
	if text := said.String(); strings.Contains(text, "canary") || strings.Count(text, seal.Mask) != 6 {
		t.Errorf("the build's output shows:\n%s", text)
	}
	_, err = w.Images.Build(ctx, admin, BuildRequest{App: "shop", AppSecrets: []string{"NONE"}}, nil)
	w.want(err, root.Invalid, "no secret NONE")
}
