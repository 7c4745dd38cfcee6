package builder

import (
	"context"
	"io"

	root "github.com/roost-run/roost"
)

// Request is one build.
type Request struct {
	App  root.AppName      `json:"app"`
	Kind string            `json:"kind"` // KindGo
	Args map[string]string `json:"args,omitempty"`
}

// KindGo builds a Go program without Dockerfile. Its one argument is ArgPackage.
const (
	KindGo     = "go"
	ArgPackage = "package" // directory of the main package inside the context; default "."
)

// Build has the builder behind the socket build the context, a tar archive
// (plain or gzip), and returns the image, stored and named on this host. Log,
// if set, is called with each line of output, from one goroutine. When ctx
// ends the build is killed.
func Build(ctx context.Context, socket string, r Request, tar io.Reader, log func(line string)) (root.Image, error) {
	return root.Image{}, root.Errorf(root.Unimplemented, "building images is not built yet")
}
