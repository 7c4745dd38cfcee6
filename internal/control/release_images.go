package control

import (
	"context"
	"errors"
	"fmt"
	"slices"

	root "github.com/roost-run/roost"
	"github.com/roost-run/roost/internal/auth"
)

// pinChecks finds the images that machine checks name.
func (s *Releases) pinChecks(ctx context.Context, a auth.Actor, org root.OrgSlug, checks []root.MachineCheck) ([]root.MachineCheck, error) {
	checks = slices.Clone(checks)
	for i := range checks {
		k := &checks[i]
		if len(k.Command) == 0 {
			return nil, root.Errorf(root.Invalid, "a machine check needs command")
		}
		if k.Ref == "" {
			continue
		}
		if err := s.mayUse(ctx, a, org, k.Ref); err != nil {
			return nil, err
		}
		var err error
		if k.Image, err = s.Images.Resolve(ctx, k.Ref); err != nil {
			return nil, fmt.Errorf("resolve image of a machine check: %w", err)
		}
	}
	return checks, nil
}

// protect keeps the images of an app's releases, and of more, on this host.
// Kind NotFound when one of more is not there.
func (s *Releases) protect(ctx context.Context, app root.AppName, more ...root.Digest) error {
	list, err := s.Store.Releases(ctx, app)
	if err != nil {
		return err
	}
	seen := map[root.Digest]bool{}
	var digests []root.Digest
	add := func(d root.Digest) {
		if d != "" && !seen[d] {
			seen[d] = true
			digests = append(digests, d)
		}
	}
	for _, d := range more {
		add(d)
	}
	for i := range list {
		for _, d := range imagesOf(&list[i]) {
			add(d)
		}
	}
	err = s.Images.Protect(ctx, protectOwner(app), digests...)
	if !root.IsKind(err, root.NotFound) {
		return err
	}
	// One that is lost must not keep the others from being kept.
	probe := protectOwner(app) + "/probe"
	var here []root.Digest
	for i, d := range digests {
		switch err := s.Images.Protect(ctx, probe, d); {
		case err == nil:
			here = append(here, d)
		case !root.IsKind(err, root.NotFound) || i < len(more) && slices.Contains(more, d):
			return errors.Join(err, s.Images.Protect(ctx, probe))
		default:
			s.Log.Warn("the image of a release is not on this host", "app", app, "digest", d)
		}
	}
	return errors.Join(s.Images.Protect(ctx, protectOwner(app), here...), s.Images.Protect(ctx, probe))
}

// imagesOf are the images that a release needs, its own first.
func imagesOf(r *root.Release) []root.Digest {
	digests := []root.Digest{r.Image.Digest}
	for i := range r.Groups {
		for _, k := range r.Groups[i].Checks {
			if d := k.Image.Digest; d != "" && !slices.Contains(digests, d) {
				digests = append(digests, d)
			}
		}
	}
	return digests
}

func protectOwner(app root.AppName) string { return "releases/" + string(app) }
