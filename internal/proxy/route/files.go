package route

import (
	"cmp"
	"slices"
	"strings"

	root "github.com/roost-run/roost"
)

// FileSet is what one image contributes to an app's statics.
type FileSet struct {
	Image  root.Digest
	Mounts []FileMount
}

// FileMount is an entry of [[statics]].
type FileMount struct {
	Prefix string // of paths, without a slash at its end: "/static"; "" is all
	Guest  string // absolute path in the image: "/app/static"
	Index  string // what a path that ends in a slash names there; "" nothing
}

// Under returns what follows the mount's prefix in path, without the slash
// between them. "/static" covers "/static" and "/static/a", not "/staticky".
func (m *FileMount) Under(path string) (rest string, ok bool) {
	rest, ok = strings.CutPrefix(path, m.Prefix)
	if !ok || rest == "" {
		return "", ok
	}
	return strings.CutPrefix(rest, "/")
}

// fileSets collects the statics of an app: one set per image and list, those
// that count first in front. Statics are not per process group ("fly.toml",
// section 3.12), so every machine counts; while a release replaces another
// both have their files found, the newer one's first.
func fileSets(machines []*root.Machine) []FileSet {
	type ranked struct {
		FileSet
		by *root.Machine
	}
	var sets []ranked
	for _, m := range machines {
		if len(m.Spec.Config.Statics) == 0 || m.Spec.Image.Digest == "" || m.Spec.Destroy != nil {
			continue
		}
		s := ranked{FileSet{Image: m.Spec.Image.Digest, Mounts: mountsOf(m.Spec.Config.Statics)}, m}
		i := slices.IndexFunc(sets, func(o ranked) bool { return o.Image == s.Image && slices.Equal(o.Mounts, s.Mounts) })
		switch {
		case i < 0:
			sets = append(sets, s)
		case counts(m, sets[i].by) < 0:
			sets[i].by = m
		}
	}
	if len(sets) == 0 {
		return nil
	}
	slices.SortStableFunc(sets, func(a, b ranked) int { return counts(a.by, b.by) })
	out := make([]FileSet, len(sets))
	for i, s := range sets {
		out[i] = s.FileSet
	}
	return out
}

// counts orders machines by how much their files are the app's current ones.
func counts(a, b *root.Machine) int {
	return cmp.Or(
		cmp.Compare(reserve(a), reserve(b)),
		cmp.Compare(b.Spec.Release, a.Spec.Release),
		cmp.Compare(b.Spec.Instance, a.Spec.Instance), // ULIDs: newer ones are greater
	)
}

// reserve is 0 for machines that take, or may take, the app's requests; files
// of others are only looked at last.
func reserve(m *root.Machine) int {
	switch {
	case m.Spec.Cordoned:
		return 3
	case m.Origin == root.OriginApp:
		return 2
	}
	switch m.Status.State {
	case root.StateStarted, root.StateStopping, root.StateStopped, root.StateSuspending, root.StateSuspended, root.StateRestarting:
		return 0
	}
	return 1
}

// mountsOf puts the longest prefix first.
func mountsOf(statics []root.Static) []FileMount {
	out := make([]FileMount, 0, len(statics))
	for _, s := range statics {
		out = append(out, FileMount{Prefix: "/" + strings.Trim(s.URLPrefix, "/"), Guest: s.GuestPath, Index: s.IndexDocument})
		if last := &out[len(out)-1]; last.Prefix == "/" {
			last.Prefix = ""
		}
	}
	slices.SortStableFunc(out, func(a, b FileMount) int { return len(b.Prefix) - len(a.Prefix) })
	return out
}
