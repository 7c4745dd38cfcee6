// Package registry serves the image store of this host by the OCI
// distribution protocol, to "docker push", other tools and other hosts. It
// keeps nothing of its own, and asks its caller who may do what.
package registry

import (
	"log/slog"
	"net/http"

	root "github.com/roost-run/roost"
	"github.com/roost-run/roost/internal/image"
)

// Authorize decides whether r may read (or, with push, write) the repository
// repo, an app's name; repo is empty for the mere log-in check. It returns an
// error of kind Unauthenticated or Forbidden.
type Authorize func(r *http.Request, repo string, push bool) error

// Handler serves /v2/.
func Handler(store *image.Store, authorize func(r *http.Request, repo string, push bool) error, log *slog.Logger) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		http.Error(w, root.Errorf(root.Unimplemented, "the registry is not built yet").Error(), http.StatusNotImplemented)
	})
}
