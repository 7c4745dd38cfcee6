package proxy

import (
	"maps"
	"net"
	"net/http"
	"net/textproto"
	"strconv"
	"strings"
	"time"

	root "github.com/roost-run/roost"
)

// Names that the edge puts on the wire.
const (
	serverName = "roost"
	via        = "1.1 roost"
)

// hopHeaders belong to one connection (RFC 9110, section 7.6.1).
var hopHeaders = []string{
	"Connection", "Proxy-Connection", "Keep-Alive", "Proxy-Authenticate", "Proxy-Authorization", "Te", "Trailer", "Transfer-Encoding", "Upgrade",
}

// ownHeaders are the edge's own: what a client sends under these names is
// dropped.
var ownHeaders = []string{
	"Fly-Client-Ip", "Fly-Region", "Fly-Request-Id", "Fly-Forwarded-Port", "Fly-Forwarded-Proto", "Fly-Forwarded-Ssl",
	"Fly-Replay-Src", "Fly-Replay-Failed", "Fly-Replay-Cache-Status", "Fly-Preferred-Instance-Unavailable",
	"Fly-Traceparent", "Fly-Tracestate", "Fly-Dispatch-Start",
}

func removeHop(h http.Header) {
	for _, f := range h["Connection"] {
		for name := range strings.SplitSeq(f, ",") {
			if name = textproto.TrimString(name); name != "" {
				h.Del(name)
			}
		}
	}
	for _, name := range hopHeaders {
		delete(h, name)
	}
}

// upgradeType is the protocol that a message's Upgrade header names, "" if it
// asks for none.
func upgradeType(h http.Header) string {
	for _, f := range h["Connection"] {
		for name := range strings.SplitSeq(f, ",") {
			if strings.EqualFold(textproto.TrimString(name), "upgrade") {
				return h.Get("Upgrade")
			}
		}
	}
	return ""
}

// requestHeader makes the header that a machine sees (Fly docs, "Request
// headers").
func (p *Proxy) requestHeader(x *exchange) http.Header {
	r := x.r
	h := r.Header.Clone()
	up := upgradeType(h)
	trailers := strings.Contains(strings.ToLower(h.Get("Te")), "trailers")
	removeHop(h)
	for _, name := range ownHeaders {
		delete(h, name)
	}
	for name := range h {
		if strings.HasPrefix(name, "Roost-") {
			delete(h, name)
		}
	}
	if up != "" {
		h["Connection"], h["Upgrade"] = []string{"Upgrade"}, []string{up}
	}
	if trailers {
		h["Te"] = []string{"trailers"}
	}
	if _, ok := h["User-Agent"]; !ok {
		h["User-Agent"] = []string{""} // or net/http adds its own
	}

	client, _, err := net.SplitHostPort(r.RemoteAddr)
	if err != nil {
		client = r.RemoteAddr
	}
	local := ""
	if a, ok := r.Context().Value(http.LocalAddrContextKey).(net.Addr); ok {
		if host, _, err := net.SplitHostPort(a.String()); err == nil {
			local = host
		}
	}
	proto, ssl := "http", "off"
	if secure(r) {
		proto, ssl = "https", "on"
	}
	port := strconv.Itoa(x.port)
	set := func(name, value string) { h[name] = []string{value} }
	set("Fly-Client-Ip", client)
	forwarded := client
	if prior := h["X-Forwarded-For"]; len(prior) > 0 {
		forwarded = strings.Join(prior, ", ") + ", " + client
	}
	if local != "" {
		forwarded += ", " + local
	}
	set("X-Forwarded-For", forwarded)
	set("X-Forwarded-Proto", proto)
	set("X-Forwarded-Ssl", ssl)
	if h.Get("X-Forwarded-Port") == "" {
		set("X-Forwarded-Port", port)
	}
	set("Fly-Forwarded-Port", port)
	set("Fly-Forwarded-Proto", proto)
	set("Fly-Forwarded-Ssl", ssl)
	set("Fly-Region", string(p.o.Region))
	set("Fly-Request-Id", x.id)
	clientVia := strconv.Itoa(r.ProtoMajor) + "." + strconv.Itoa(r.ProtoMinor) + " " + serverName
	if r.ProtoMajor > 1 { // has no minor version: RFC 9113, section 8.8.4
		clientVia = strconv.Itoa(r.ProtoMajor) + " " + serverName
	}
	if prior := h["Via"]; len(prior) > 0 {
		clientVia = strings.Join(prior, ", ") + ", " + clientVia
	}
	set("Via", clientVia)
	set("X-Request-Start", "t="+strconv.FormatInt(x.start.UnixMicro(), 10))
	for i := range x.transforms {
		x.transforms[i].Apply(h)
	}
	if s := x.src; s != nil {
		v := "instance=" + string(s.machine.ID) + ";region=" + string(s.machine.Region) + ";t=" + strconv.FormatInt(s.at.UnixMicro(), 10)
		if s.state != "" {
			v += ";state=" + s.state
		}
		set("Fly-Replay-Src", v)
	}
	if x.failed != "" {
		set("Fly-Replay-Failed", x.failed)
	}
	if x.preferredOut != "" {
		set("Fly-Preferred-Instance-Unavailable", string(x.preferredOut))
	}
	return h
}

// responseHeader copies a machine's header to the client's.
func (x *exchange) responseHeader(dst, src http.Header, o *root.HTTPOptions) {
	clear(dst)
	maps.Copy(dst, src)
	for _, name := range []string{"Fly-Replay", "Fly-Replay-Cache", "Fly-Replay-Cache-Ttl-Secs", "Fly-Replay-Cache-Allow-Bypass"} {
		delete(dst, name)
	}
	if !o.Pristine {
		x.stamp(dst)
	}
	edit(dst, o)
}

// edit does to a header what a port's options say.
func edit(h http.Header, o *root.HTTPOptions) {
	for name, values := range o.Headers {
		switch {
		case framing(name): // the edge's own business
		case len(values) == 0:
			delete(h, name)
		default:
			h[name] = values
		}
	}
}

// framing reports whether a header says how a message is read.
func framing(name string) bool {
	switch name {
	case "Content-Length", "Transfer-Encoding", "Connection", "Upgrade", "Trailer":
		return true
	}
	return false
}

// stamp adds the edge's own response headers.
func (x *exchange) stamp(h http.Header) {
	h["Server"] = []string{serverName}
	if prior := h["Via"]; len(prior) > 0 {
		h["Via"] = []string{strings.Join(prior, ", ") + ", " + via}
	} else {
		h["Via"] = []string{via}
	}
	h["Fly-Request-Id"] = []string{x.id}
}

// Record is a line of the access log.
type Record struct {
	At       time.Time     `json:"at"`
	ID       string        `json:"request_id"`
	App      string        `json:"app,omitempty"`
	Machine  string        `json:"machine,omitempty"`
	Client   string        `json:"client"`
	Method   string        `json:"method"`
	Host     string        `json:"host"`
	Path     string        `json:"path"`
	Proto    string        `json:"proto"`
	Status   int           `json:"status"`
	Bytes    int64         `json:"bytes"`
	Took     time.Duration `json:"-"`
	Held     time.Duration `json:"-"`
	Replays  int           `json:"replays,omitempty"`
	Woken    bool          `json:"woken,omitempty"`
	Code     string        `json:"code,omitempty"`
	Err      string        `json:"err,omitempty"`
	Agent    string        `json:"user_agent,omitempty"`
	TookMS   float64       `json:"took_ms"`
	HeldMS   float64       `json:"held_ms,omitempty"`
	Upgraded bool          `json:"upgraded,omitempty"`
	Static   bool          `json:"static,omitempty"` // a file, no machine was asked
}
