// Package origin is how the edge, which owns every socket of the API, tells
// control where a request that it passes on came in, and from whom: who calls
// without a token is decided by it. Set and Of are the only code that spells
// the headers. It decides nothing itself, and starts no goroutine.
package origin

import (
	"fmt"
	"net/http"
	"strings"

	root "github.com/roost-run/roost"
	"github.com/roost-run/roost/internal/orders"
)

// Where requests come in.
const (
	Socket   = orders.ListenAPISock  // root's socket on the host
	TCP      = orders.ListenAPI      // 127.0.0.1:4280
	Internal = orders.ListenInternal // _api.internal:4280
	Machine  = orders.ListenMachine  // /.fly/api
)

// Origin is where a request came in, and from whom.
type Origin struct {
	Front   orders.ListenerKind
	Peer    string         // of User, or an address
	Machine root.MachineID // whose socket or address it is; "" for no machine's
}

// User is the peer that is a user of this host.
func User(uid uint32) string { return fmt.Sprintf("uid:%d", uid) }

// LocalRoot says whether root of this host calls, on the socket for it.
func (o Origin) LocalRoot() bool { return o.Front == Socket && o.Peer == User(0) }

// The headers. All of prefix are the platform's.
const (
	prefix  = "Roost-"
	front   = prefix + "Front"
	peer    = prefix + "Peer"
	machine = prefix + "Machine"
)

// Set writes o to the headers of a request that is passed on, in place of all
// that the client sent under the platform's names.
func Set(h http.Header, o Origin) {
	for name := range h {
		if strings.HasPrefix(name, prefix) {
			h.Del(name)
		}
	}
	h.Set(front, string(o.Front))
	h.Set(peer, o.Peer)
	if o.Machine != "" {
		h.Set(machine, string(o.Machine))
	}
}

// Of reads the origin of a request that came in on control's socket. passedOn
// is false for one that a process of the platform makes on its own account.
func Of(h http.Header) (o Origin, passedOn bool) {
	_, passedOn = h[front]
	return Origin{orders.ListenerKind(h.Get(front)), h.Get(peer), root.MachineID(h.Get(machine))}, passedOn
}
