package builder

import (
	"encoding/json"
	"net/http"
	"sync"

	"github.com/roost-run/roost/internal/builder/buildkit"
	"github.com/roost-run/roost/internal/ipc"
)

// news is the reply to a build, line by line. A client that left ends the
// request's context; what cannot be sent is dropped.
type news struct {
	mu  sync.Mutex
	out *ipc.Stream // guarded by mu
}

func newNews(w http.ResponseWriter) *news { return &news{out: ipc.NewStream(w)} }

func (n *news) send(e event) {
	n.mu.Lock()
	defer n.mu.Unlock()
	_ = n.out.Send(e)
}

func (n *news) log(text string) { n.send(event{Log: &text}) }

func (n *news) status(s *buildkit.Status) {
	data, err := json.Marshal(s)
	if err != nil {
		return // nothing of it is worth a build
	}
	n.send(event{Status: data})
}
