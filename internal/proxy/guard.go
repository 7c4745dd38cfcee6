package proxy

import "net"

// refusedHeader carries why a request's head was refused from the guard to
// the handler.
const refusedHeader = "Roost-Refused"

// guard refuses ambiguous requests before net/http would mend them.
type guard struct{ net.Listener }
