package buildkit

import (
	"bytes"
	"strings"

	"github.com/containerd/platforms"
	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/frontend/dockerfile/parser"

	root "github.com/roost-run/roost"
)

// checkPlatforms refuses a stage for another kind of machine than this host:
// the store has images for the host only, and BuildKit would take one of those
// without a word. A platform that is a variable stands for the host's.
func (b *Build) checkPlatforms() error {
	file, err := parser.Parse(bytes.NewReader(b.Dockerfile))
	if err != nil {
		return nil //nolint:nilerr // the build says what is wrong with it, and where
	}
	stages, _, err := instructions.Parse(file.AST, nil)
	if err != nil {
		return nil //nolint:nilerr // as above
	}
	host := platforms.DefaultStrict()
	for _, s := range stages {
		if s.Platform == "" || strings.Contains(s.Platform, "$") {
			continue
		}
		line := 0
		if len(s.Location) > 0 {
			line = s.Location[0].Start.Line
		}
		p, err := platforms.Parse(s.Platform)
		switch {
		case err != nil:
			return root.Errorf(root.Invalid, "%s:%d: FROM --platform=%s is no platform, such as %s", b.Name, line, s.Platform, platforms.DefaultString())
		case !host.Match(p):
			return root.Errorf(root.Invalid, "%s:%d: FROM --platform=%s: images are built for this host, which is %s; leave --platform out", b.Name, line, s.Platform, platforms.DefaultString())
		}
	}
	return nil
}
