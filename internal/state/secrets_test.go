package state

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	root "github.com/roost-run/roost"
)

func secretSet(version int) root.SecretSet {
	return root.SecretSet{
		App: "shop", Version: version, Sealed: []byte{1, 2, 3}, CreatedAt: now, CreatedBy: "root",
		Secrets: []root.Secret{{Name: "KEY", Digest: "0123456789abcdef", CreatedAt: now, UpdatedAt: now, Version: version}},
	}
}

func TestSecrets(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	ctx := t.Context()
	for v := 1; v <= 3; v++ {
		must[int64](t)(s.PutSecrets(ctx, secretSet(v)))
	}
	if got := must[root.App](t)(s.App(ctx, "shop")).Secrets; got != 3 {
		t.Errorf("the app's version: got %d, want 3", got)
	}
	if diff := cmp.Diff(secretSet(2), must[root.SecretSet](t)(s.Secrets(ctx, "shop", 2))); diff != "" {
		t.Errorf("an older version (-want +got):\n%s", diff)
	}
	for _, v := range []int{2, 3, 5} {
		_, err := s.PutSecrets(ctx, secretSet(v))
		wantError(t, err, root.Conflict, CodeSecretsChanged)
	}
	_, err := s.PutSecrets(ctx, root.SecretSet{App: "gone", Version: 1})
	wantError(t, err, root.NotFound, "")
	_, err = s.Secrets(ctx, "shop", 9)
	wantError(t, err, root.NotFound, "")

	// The version in force stays, whoever asks for it to go.
	must[int64](t)(s.DropSecrets(ctx, "shop", 1, 3))
	if diff := cmp.Diff([]int{2, 3}, must[[]int](t)(s.SecretVersions(ctx, "shop"))); diff != "" {
		t.Errorf("versions (-want +got):\n%s", diff)
	}

	must[int64](t)(s.DeleteApp(ctx, "shop"))
	if got := must[[]int](t)(s.SecretVersions(ctx, "shop")); len(got) != 0 {
		t.Errorf("of a deleted app: got %v, want none", got)
	}
}

// TestEditApp: an edit loses nothing of what others write at the same time.
func TestEditApp(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	ctx := t.Context()
	first := true
	must[int64](t)(s.EditApp(ctx, "shop", func(a *root.App) error {
		if first {
			first = false
			must[int64](t)(s.PutSecrets(ctx, secretSet(1)))
		}
		a.Release = 7
		return nil
	}))
	a := must[root.App](t)(s.App(ctx, "shop"))
	if a.Release != 7 || a.Secrets != 1 {
		t.Errorf("got release %d and secrets %d, want 7 and 1", a.Release, a.Secrets)
	}
	_, err := s.EditApp(ctx, "gone", func(*root.App) error { return nil })
	wantError(t, err, root.NotFound, "")
	_, err = s.EditApp(ctx, "shop", func(*root.App) error { return root.Errorf(root.Invalid, "no") })
	wantError(t, err, root.Invalid, "")
}
