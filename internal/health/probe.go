package health

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"mime"
	"net"
	"net/http"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"unicode/utf8"

	root "github.com/roost-run/roost"
)

const (
	// userAgent is how an app tells probes from visitors in its log.
	userAgent = "Roost-HealthCheck/1.0"
	// maxRead is how much of an answer's body is looked at, maxExcerpt how much
	// of that is kept.
	maxRead    = 8 << 10
	maxExcerpt = 500
	// maxProbeHeader bounds the head of an answer.
	maxProbeHeader = 64 << 10
)

// outcome is what one probe found.
type outcome struct {
	passed   bool
	headline string // "200 OK", "connect: connection refused": what changes when the cause does
	excerpt  string // of the body
	hint     string // what to do
	refused  bool   // nobody listens
}

// output is the outcome as people and the API see it.
func (o outcome) output() string {
	s := o.headline
	if o.excerpt != "" {
		s += ": " + o.excerpt
	}
	if o.hint != "" {
		s += "\n" + o.hint
	}
	return s
}

// prober makes the probes of one check.
type prober struct {
	check     root.NamedCheck
	addr      string
	host      string // Host without one in the check's headers
	transport http.RoundTripper
	dial      func(ctx context.Context, network, addr string) (net.Conn, error)
}

func newProbe(c root.NamedCheck, address, host string, dial func(ctx context.Context, network, addr string) (net.Conn, error)) *prober {
	p := &prober{check: c, addr: net.JoinHostPort(address, strconv.Itoa(c.Port)), host: host, dial: dial}
	for name, values := range c.Headers {
		if http.CanonicalHeaderKey(name) == "Host" && len(values) > 0 {
			p.host = values[0]
		}
	}
	if c.Type != root.CheckHTTP {
		return p
	}
	// A connection of its own for each probe: that the app takes a new one is
	// what users depend on, and none is open while the machine is frozen.
	t := &http.Transport{
		DialContext: dial, DisableKeepAlives: true, DisableCompression: true, MaxResponseHeaderBytes: maxProbeHeader,
		WriteBufferSize: 2 << 10, ReadBufferSize: 4 << 10,
	}
	if c.TLS {
		name := c.TLSServerName
		if name == "" {
			name, _, _ = strings.Cut(p.host, ":")
		}
		t.TLSClientConfig = &tls.Config{ServerName: name, InsecureSkipVerify: c.TLSSkipVerify} //nolint:gosec // the user's own choice, for their own app
	}
	p.transport = t
	return p
}

// probe makes one probe; it takes no longer than the check's timeout.
func (p *prober) probe(ctx context.Context) outcome {
	ctx, cancel := context.WithTimeout(ctx, p.check.Timeout)
	defer cancel()
	if p.check.Type != root.CheckHTTP {
		c, err := p.dial(ctx, "tcp", p.addr)
		if err != nil {
			return p.failed(err)
		}
		_ = c.Close() // nothing was sent
		return outcome{passed: true, headline: "connection accepted"}
	}
	resp, err := p.transport.RoundTrip(p.request(ctx))
	if err != nil {
		return p.failed(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxRead))
	if err != nil && ctx.Err() != nil {
		return p.failed(ctx.Err()) // a 2xx that never ends is no answer
	}
	o := outcome{headline: strings.TrimSpace(fmt.Sprintf("%d %s", resp.StatusCode, http.StatusText(resp.StatusCode)))}
	o.excerpt = excerpt(resp.Header.Get("Content-Type"), body)
	o.passed = resp.StatusCode >= 200 && resp.StatusCode < 300
	if !o.passed {
		o.hint = p.advice(resp)
	}
	return o
}

func (p *prober) request(ctx context.Context) *http.Request {
	scheme := "http://"
	if p.check.TLS {
		scheme = "https://"
	}
	// The path was checked with the config: it begins with a slash and has no
	// spaces. What still is no path fails as the probe's outcome.
	r, err := http.NewRequestWithContext(ctx, p.check.Method, scheme+p.addr+p.check.Path, nil)
	if err != nil {
		r, _ = http.NewRequestWithContext(ctx, http.MethodGet, scheme+p.addr+"/", nil)
	}
	r.Host = p.host
	r.Header.Set("User-Agent", userAgent)
	if p.check.Secure {
		r.Header.Set("X-Forwarded-Proto", "https")
	}
	for name, values := range p.check.Headers {
		if key := http.CanonicalHeaderKey(name); key != "Host" {
			r.Header[key] = values
		}
	}
	return r
}

// failed says in the kernel's or the TLS library's words why there was no answer.
func (p *prober) failed(err error) outcome {
	o := outcome{refused: errors.Is(err, syscall.ECONNREFUSED)}
	timeout, ok := errors.AsType[net.Error](err)
	switch {
	case o.refused:
		o.headline = "connect: connection refused"
	case errors.Is(err, context.DeadlineExceeded), ok && timeout.Timeout():
		o.headline = fmt.Sprintf("no answer within %s", p.check.Timeout)
		o.hint = "The app accepts connections too late, or takes longer for its answer than the check's timeout."
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		o.headline = "the app closed the connection without an answer"
	default:
		o.headline = deepest(err)
		if _, ok := errors.AsType[tls.RecordHeaderError](err); ok {
			o.hint = "The app does not speak TLS on this port: set the check's protocol to \"http\"."
		} else if _, ok := errors.AsType[*tls.CertificateVerificationError](err); ok {
			o.hint = "Set the check's tls_server_name to a name in the certificate, or tls_skip_verify."
		}
	}
	return o
}

// deepest is the innermost text of a network error, without addresses, which
// would change with each probe.
func deepest(err error) string {
	if op, ok := errors.AsType[*net.OpError](err); ok && op.Err != nil {
		return op.Err.Error()
	}
	return err.Error()
}

// advice says what usually is behind an answer.
func (p *prober) advice(resp *http.Response) string {
	switch code := resp.StatusCode; {
	case code == http.StatusBadRequest:
		return fmt.Sprintf("The probe's Host is %s: an app that takes only some names (Django: ALLOWED_HOSTS) has to allow it, or the check names another in headers.Host.", p.host)
	case code >= 300 && code < 400:
		to := resp.Header.Get("Location")
		if strings.HasPrefix(to, "https://") && !p.check.Secure {
			return fmt.Sprintf("It redirects to %s, and a redirect does not pass: give the check the header X-Forwarded-Proto with the value https, which such apps look at, or except its path from the redirect.", clip(to, 200))
		}
		return fmt.Sprintf("It redirects to %s, and a redirect does not pass: point the check's path there.", clip(to, 200))
	case code == http.StatusUnauthorized || code == http.StatusForbidden:
		return fmt.Sprintf("%s wants a login: check a path that does not.", p.check.Path)
	case code == http.StatusNotFound:
		return fmt.Sprintf("The app has nothing at %s: correct the check's path.", p.check.Path)
	case code == http.StatusMethodNotAllowed:
		return fmt.Sprintf("%s does not take %s: correct the check's method.", p.check.Path, p.check.Method)
	case code >= 500:
		return "The app's own log says more."
	}
	return ""
}

var (
	unseen = regexp.MustCompile(`(?is)<(script|style|head)\b.*?(</(script|style|head)\s*>|$)|<!--.*?(-->|$)`)
	title  = regexp.MustCompile(`(?is)<title[^>]*>(.*?)</title>`)
	tag    = regexp.MustCompile(`(?s)<[^>]*(>|$)`)
)

// excerpt is the beginning of a body as one line of readable text.
func excerpt(contentType string, body []byte) string {
	kind, _, err := mime.ParseMediaType(contentType)
	if err != nil {
		kind = ""
	}
	if !utf8.Valid(trimRune(body)) && !strings.HasPrefix(kind, "text/") {
		return fmt.Sprintf("%d bytes of %s", len(body), orUnknown(kind))
	}
	s := strings.ToValidUTF8(string(body), "")
	if kind == "text/html" {
		head := ""
		if m := title.FindStringSubmatch(s); m != nil {
			head = m[1] + " "
		}
		s = head + tag.ReplaceAllString(unseen.ReplaceAllString(s, " "), " ")
	}
	s = strings.Join(strings.FieldsFunc(s, func(r rune) bool { return r <= ' ' || r == 0x7f }), " ")
	return clip(s, maxExcerpt)
}

func orUnknown(kind string) string {
	if kind == "" {
		return "unknown kind"
	}
	return kind
}

// trimRune drops a character that the limit has cut in two.
func trimRune(b []byte) []byte {
	for i := 1; i <= utf8.UTFMax && i <= len(b); i++ {
		if utf8.RuneStart(b[len(b)-i]) {
			if !utf8.FullRune(b[len(b)-i:]) {
				return b[:len(b)-i]
			}
			break
		}
	}
	return b
}

// clip cuts s to about n bytes, at a character.
func clip(s string, n int) string {
	if len(s) <= n {
		return s
	}
	return strings.ToValidUTF8(s[:n], "") + "..."
}
