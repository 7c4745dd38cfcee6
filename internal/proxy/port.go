package proxy

import (
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"

	root "github.com/roost-run/roost"
	"github.com/roost-run/roost/internal/certs"
	"github.com/roost-run/roost/internal/proxy/route"
)

// find returns the app that a host leads to.
func (p *Proxy) find(s *root.Snapshot, host string) (root.AppName, bool) {
	return route.Find(s, host, p.o.Domain)
}

// challenged answers a certificate authority that validates a host. What
// nothing of ours waits for is the app's own business.
func (p *Proxy) challenged(w http.ResponseWriter, x *exchange) bool {
	token, ok := strings.CutPrefix(x.r.URL.Path, certs.WellKnown)
	if !ok || p.o.Challenge == nil || token == "" || x.r.Method != http.MethodGet && x.r.Method != http.MethodHead {
		return false
	}
	host, _, err := net.SplitHostPort(x.r.Host)
	if err != nil {
		host = x.r.Host
	}
	answer, ok := p.o.Challenge(x.r.Context(), host, token)
	if !ok {
		return false
	}
	h := w.Header()
	h.Set("Content-Type", "text/plain; charset=utf-8")
	h.Set("Content-Length", strconv.Itoa(len(answer)))
	p.part(h)
	x.rec.Status = http.StatusOK
	w.WriteHeader(http.StatusOK)
	n, _ := io.WriteString(w, answer) // the authority went away: it asks again
	x.rec.Bytes = int64(n)
	return true
}

// onPort does what a port asks for before the request goes to a machine:
// plain requests are sent to HTTPS, or refused where only TLS is spoken.
func (p *Proxy) onPort(w http.ResponseWriter, x *exchange) (answered bool, _ *failure) {
	if secure(x.r) {
		return false, nil
	}
	table := p.router.Table(p.o.Catalog.Snapshot(), x.app)
	if table == nil {
		return false, nil
	}
	targets := table.Port(x.port)
	if len(targets) == 0 {
		return false, nil
	}
	switch port := targets[0].Port; {
	case port.ForceHTTPS && p.o.HTTPSPort != 0 && !strings.HasPrefix(x.r.URL.Path, certs.WellKnown):
		p.sendToHTTPS(w, x)
		return true, nil
	case port.HasHandler("tls"):
		return false, failf(http.StatusBadRequest, "PU01", "client problem: port %d of app %s speaks HTTPS, the request came without TLS", x.port, x.app).
			hint("Use https:// in front of the address.")
	}
	return false, nil
}

// sendToHTTPS answers 301, as Fly does, to where HTTPS is reached.
func (p *Proxy) sendToHTTPS(w http.ResponseWriter, x *exchange) {
	host := x.r.Host
	if name, _, err := net.SplitHostPort(host); err == nil {
		host = name
	}
	if p.o.HTTPSPort != 443 {
		host = net.JoinHostPort(host, strconv.Itoa(p.o.HTTPSPort))
	}
	// The path goes as it came: parsing it again could change what it means.
	u := url.URL{Scheme: "https", Host: host}
	h := w.Header()
	h.Set("Location", u.String()+requestPath(x.r))
	h.Set("Content-Length", "0")
	p.part(h)
	x.rec.Status = http.StatusMovedPermanently
	w.WriteHeader(http.StatusMovedPermanently)
}

// requestPath is the path and query that the client asked for.
func requestPath(r *http.Request) string {
	path := r.URL.EscapedPath()
	if !strings.HasPrefix(path, "/") {
		path = "/" + path
	}
	if r.URL.RawQuery != "" || r.URL.ForceQuery {
		path += "?" + r.URL.RawQuery
	}
	return path
}

// handshakeFailed counts and logs a connection that never became one.
func (p *Proxy) handshakeFailed(code string, c net.Conn, err error) {
	p.o.Metrics.Handshake(code)
	p.o.Logger.Info("TLS handshake failed", "code", code, "client", c.RemoteAddr().String(), "err", err)
}
