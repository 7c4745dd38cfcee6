package proxy

import (
	"fmt"
	"time"

	root "github.com/roost-run/roost"
)

// Notice is something about an app's traffic that its owner wants to read in
// the app's log.
type Notice struct {
	App     root.AppName
	Machine root.MachineID // "" where none is concerned
	Key     string         // the same for what is the same to a reader
	Message string
}

// longHold is how long a request waits before that is worth a line.
const longHold = time.Second

// notify tells of a request that failed at the edge or waited for long. Only
// the path is told of what was asked for: queries may have secrets in them.
func (p *Proxy) notify(x *exchange) {
	rec := &x.rec
	if p.o.Notify == nil || x.app == "" || rec.Status == statusClientClosed {
		return
	}
	n := Notice{App: x.app, Machine: root.MachineID(rec.Machine)}
	asked := clip(x.r.Method + " " + x.r.URL.EscapedPath())
	switch {
	case rec.Code != "":
		if n.Machine == "" && x.waitingFor.Machine != nil {
			n.Machine = x.waitingFor.Machine.ID
		}
		n.Key = rec.Code + "/" + string(n.Machine)
		n.Message = fmt.Sprintf("[%s] %s: %s", rec.Code, rec.Err, asked)
	case x.held >= longHold:
		n.Key = "held/" + string(n.Machine)
		n.Message = fmt.Sprintf("request waited %s for a machine: %s", x.held.Round(time.Millisecond), asked)
	default:
		return
	}
	p.o.Notify(n)
}
