package control

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"

	root "github.com/roost-run/roost"
	"github.com/roost-run/roost/internal/auth"
	"github.com/roost-run/roost/internal/state"
)

// Secrets are the verbs on an app's secrets. They are write-only: nothing here
// returns a value to a user.
type Secrets struct {
	Deps
	redeployer Redeployer
}

// Redeployer brings the machines of an app's release to its current secrets:
// a release whose image and config are those of the current one.
type Redeployer interface {
	Redeploy(ctx context.Context, a auth.Actor, app root.AppName, reason, description string) (*root.Release, error)
}

// SecretValues are values on their way in: nil removes the secret. They print
// as how many they are.
type SecretValues map[string]*string

// String keeps the values out of whatever prints them.
func (v SecretValues) String() string { return fmt.Sprintf("%d secrets", len(v)) }

// GoString is String.
func (v SecretValues) GoString() string { return v.String() }

// LogValue is String.
func (v SecretValues) LogValue() slog.Value { return slog.StringValue(v.String()) }

// List returns the secrets that an app's next machine gets: names, digests,
// times. Version 0, without secrets, if it never had any.
func (s *Secrets) List(ctx context.Context, a auth.Actor, app root.AppName) (root.SecretSet, error) {
	found, err := s.app(a, auth.SecretRead, app)
	if err != nil {
		return root.SecretSet{}, err
	}
	set, err := s.current(ctx, found)
	if err != nil {
		return root.SecretSet{}, err
	}
	s.markStaged(set)
	set.Sealed = nil
	return set, nil
}

// current reads the version that the app's record names.
func (s *Secrets) current(ctx context.Context, app *root.App) (root.SecretSet, error) {
	if app.Secrets == 0 {
		return root.SecretSet{App: app.Name}, nil
	}
	return s.Store.Secrets(ctx, app.Name, app.Secrets)
}

// markStaged finds the secrets that some machine which belongs to a release
// does not have yet; where no machine does, that of any machine.
func (s *Secrets) markStaged(set root.SecretSet) {
	var all, released []int
	for _, m := range s.Catalog.Snapshot().Machines(set.App) {
		if strings.HasPrefix(m.Group(), temporaryGroups) || m.Spec.Destroy != nil {
			continue
		}
		all = append(all, m.Spec.Secrets)
		if m.Managed() {
			released = append(released, m.Spec.Secrets)
		}
	}
	if len(released) > 0 {
		all = released
	}
	oldest := 0
	if len(all) > 0 {
		oldest = slices.Min(all)
	}
	for i := range set.Secrets {
		set.Secrets[i].Staged = set.Secrets[i].Version > oldest
	}
}

// temporaryGroups begins the process groups of machines that no release updates.
const temporaryGroups = "fly_app_"

// Get returns one secret, without its value; kind NotFound.
func (s *Secrets) Get(ctx context.Context, a auth.Actor, app root.AppName, name string) (root.Secret, error) {
	set, err := s.List(ctx, a, app)
	if err != nil {
		return root.Secret{}, err
	}
	for _, x := range set.Secrets {
		if x.Name == name {
			return x, nil
		}
	}
	return root.Secret{}, root.Errorf(root.NotFound, "app %s has no secret %s", app, clipName(name))
}

func clipName(name string) string {
	if len(name) > root.MaxSecretName {
		return name[:root.MaxSecretName] + "..."
	}
	return name
}

// Set sets and removes secrets and returns what there is then. Others stay. A
// change makes the next version, which machines get that are created or
// updated from now on; Deploy brings it to those that there are. Removing what
// is not there, and setting what is the same, changes nothing.
func (s *Secrets) Set(ctx context.Context, a auth.Actor, app root.AppName, values SecretValues) (root.SecretSet, error) {
	if _, err := s.app(a, auth.SecretWrite, app); err != nil {
		return root.SecretSet{}, err
	}
	var problems []error
	for name, value := range values {
		if value == nil {
			continue
		}
		if err := root.ValidateSecret(name, *value); err != nil {
			problems = append(problems, err)
		}
	}
	if len(problems) > 0 {
		slices.SortFunc(problems, func(a, b error) int { return strings.Compare(a.Error(), b.Error()) })
		return root.SecretSet{}, root.Errorf(root.KindOf(problems[0]), "%s", errors.Join(problems...))
	}
	for range maxAttempts {
		set, rev, err := s.set(ctx, a, app, values)
		if e, ok := errors.AsType[*root.Error](err); ok && e.Code == state.CodeSecretsChanged {
			continue // somebody else's set came between: theirs is kept
		}
		if err != nil {
			return root.SecretSet{}, err
		}
		if err := s.read(ctx, rev); err != nil {
			return root.SecretSet{}, err
		}
		s.prune(ctx, app)
		s.markStaged(set)
		set.Sealed = nil
		return set, nil
	}
	return root.SecretSet{}, root.Errorf(root.Unavailable, "the secrets of %s are being changed by others all the time; try again", app)
}

// set makes the next version of what the store has now.
func (s *Secrets) set(ctx context.Context, a auth.Actor, name root.AppName, values SecretValues) (root.SecretSet, int64, error) {
	app, err := s.Store.App(ctx, name) // newer than the catalog
	if err != nil {
		return root.SecretSet{}, 0, err
	}
	old, err := s.current(ctx, &app)
	if err != nil {
		return root.SecretSet{}, 0, err
	}
	opened, err := s.Vault.open(old)
	if err != nil {
		return root.SecretSet{}, 0, err
	}
	now := s.Now().UTC()
	next := root.SecretSet{App: name, Version: app.Secrets + 1, CreatedAt: now, CreatedBy: a.Name}
	kept := map[string]root.Secret{}
	for _, x := range old.Secrets {
		kept[x.Name] = x
	}
	changed := false
	for key, value := range values {
		was, had := kept[key]
		if value == nil {
			changed = changed || had
			delete(kept, key)
			delete(opened, key)
			continue
		}
		if had && opened[key] == *value {
			continue
		}
		changed = true
		opened[key] = *value
		x := root.Secret{Name: key, Digest: s.Vault.Keys.Digest(app.ID, key, *value), CreatedAt: now, UpdatedAt: now, Version: next.Version}
		if had {
			x.CreatedAt = was.CreatedAt
		}
		kept[key] = x
	}
	if !changed {
		return old, 0, nil
	}
	size := 0
	for key, value := range opened {
		size += len(key) + len(value)
	}
	if root.Bytes(size) > root.MaxSecrets {
		return root.SecretSet{}, 0, root.Errorf(root.TooLarge, "the secrets of %s would take %d bytes together; at most %s fit", name, size, root.MaxSecrets)
	}
	for _, x := range kept {
		next.Secrets = append(next.Secrets, x)
	}
	slices.SortFunc(next.Secrets, func(a, b root.Secret) int { return strings.Compare(a.Name, b.Name) })
	if next.Sealed, err = s.Vault.seal(name, next.Version, opened); err != nil {
		return root.SecretSet{}, 0, err
	}
	rev, err := s.Store.PutSecrets(ctx, next)
	return next, rev, err
}

// Open returns the values of one version; see Vault.Open.
func (s *Secrets) Open(ctx context.Context, app root.AppName, version int) (map[string]string, error) {
	return s.Vault.Open(ctx, app, version)
}

// Deploy brings the app's current secrets to the machines of its release, as a
// release of its own. Machines that are stopped stay stopped.
func (s *Secrets) Deploy(ctx context.Context, a auth.Actor, app root.AppName, description string) (*root.Release, error) {
	if _, err := s.app(a, auth.SecretWrite, app); err != nil {
		return nil, err
	}
	if s.redeployer == nil {
		return nil, &root.Error{Kind: root.Precondition, Code: "no_release", Message: "the app has no release yet: deploy it first"}
	}
	if description == "" {
		description = "secrets changed"
	}
	return s.redeployer.Redeploy(ctx, a, app, "secrets", description)
}

// keptVersions is how many versions stay although nothing needs them: a
// machine that is just being created may.
const keptVersions = 10

// prune forgets versions that no machine and no release runs with. What fails
// is done by the next change.
func (s *Secrets) prune(ctx context.Context, app root.AppName) {
	if err := s.pruneVersions(ctx, app); err != nil && ctx.Err() == nil {
		s.Log.Warn("old versions of secrets were not pruned", "app", app, "err", err)
	}
}

func (s *Secrets) pruneVersions(ctx context.Context, app root.AppName) error {
	versions, err := s.Store.SecretVersions(ctx, app)
	if err != nil || len(versions) <= keptVersions {
		return err
	}
	releases, err := s.Store.Releases(ctx, app)
	if err != nil {
		return err
	}
	needed := map[int]bool{}
	for _, r := range releases {
		needed[r.Secrets] = true
	}
	for _, m := range s.Catalog.Snapshot().Machines(app) {
		needed[m.Spec.Secrets] = true
	}
	drop := slices.DeleteFunc(versions[:len(versions)-keptVersions], func(v int) bool { return needed[v] })
	if len(drop) == 0 {
		return nil
	}
	_, err = s.Store.DropSecrets(ctx, app, drop...)
	return err
}
