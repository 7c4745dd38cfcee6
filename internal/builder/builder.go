// Package builder is the process that turns an uploaded context into an image.
package builder

import (
	"context"

	root "github.com/roost-run/roost"
)

// Run serves builds on the builder's socket below the run directory until ctx
// ends or nothing has been asked of it for a while.
func Run(ctx context.Context, runDir string) error {
	return root.Errorf(root.Unimplemented, "building images is not built yet")
}
