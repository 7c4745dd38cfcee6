package roost

import (
	"net/http"

	"github.com/roost-run/roost/internal/api/route"
	"github.com/roost-run/roost/internal/client"
)

// Certs are control's verbs on certificates that the Machines API does not have.
type Certs interface {
	Root() string
}

// localAuthority hands out the certificate of the local authority.
func (h *handlers) localAuthority(w http.ResponseWriter, _ *http.Request) error {
	return route.WriteJSON(w, http.StatusOK, client.Authority{Certificate: h.Certs.Root()})
}
