package controlplane

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	root "github.com/roost-run/roost"
	"github.com/roost-run/roost/internal/certs"
	"github.com/roost-run/roost/internal/config"
	"github.com/roost-run/roost/internal/control"
	"github.com/roost-run/roost/internal/network"
	"github.com/roost-run/roost/internal/orders"
)

// The compiler checks that what control asks for is there.
var (
	_ control.Public = public{}
	_ control.Poster = poster{}
)

// agentName is what apps see in their logs of a question of ours.
const agentName = "roost-deploy"

// maxAnswer is how much of an answer is read.
const maxAnswer = 2 << 10

// public asks apps through the edge's public listeners, as anybody does.
type public struct {
	supervisor *orders.Client
	domain     string
}

func (p public) Ask(ctx context.Context, app root.AppName, q control.PublicQuestion) (control.PublicAnswer, error) {
	addr, err := p.address(ctx, q)
	if err != nil {
		return control.PublicAnswer{}, err
	}
	host := string(app) + "." + p.domain
	scheme, usual := "http", "80"
	if q.TLS {
		scheme, usual = "https", "443"
	}
	// A listener may stand for another port: people need the one that is there.
	a := control.PublicAnswer{URL: scheme + "://" + host + q.Path}
	if _, port, err := net.SplitHostPort(addr); err == nil && port != usual {
		a.URL = scheme + "://" + net.JoinHostPort(host, port) + q.Path
	}
	req, err := http.NewRequestWithContext(ctx, q.Method, scheme+"://"+host+q.Path, nil)
	if err != nil {
		return a, err
	}
	for name, values := range q.Header {
		req.Header[http.CanonicalHeaderKey(name)] = values
	}
	req.Header.Set("User-Agent", agentName)
	var d net.Dialer
	hc := &http.Client{
		Transport: &http.Transport{
			DisableKeepAlives: true,
			DialContext:       func(ctx context.Context, _, _ string) (net.Conn, error) { return d.DialContext(ctx, "tcp", addr) },
			// Whether the app answers is asked, not who vouches for its name.
			TLSClientConfig: &tls.Config{InsecureSkipVerify: true, ServerName: certs.OwnName, MinVersion: tls.VersionTLS12},
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	resp, err := hc.Do(req)
	if err != nil {
		return a, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil && len(body) == 0 {
		return a, err
	}
	a.Status, a.Edge, a.Body = resp.StatusCode, resp.Header.Get("Roost-Error"), string(body)
	return a, nil
}

// address finds the listener that stands for the port.
func (p public) address(ctx context.Context, q control.PublicQuestion) (string, error) {
	names, files, err := p.supervisor.Listeners(ctx)
	if err != nil {
		return "", err
	}
	found := ""
	for i, f := range files {
		if n := names[i]; found == "" && n.Kind == orders.ListenEdge && n.Port == q.Port && n.TLS == q.TLS {
			found = boundTo(f)
		}
		_ = f.Close()
	}
	if found == "" {
		return "", root.Errorf(root.Unimplemented, "no listener of this host stands for port %d", q.Port)
	}
	return found, nil
}

// boundTo is the address of a listening socket, as this host reaches it.
func boundTo(f *os.File) string {
	l, err := net.FileListener(f)
	if err != nil {
		return ""
	}
	a, ok := l.Addr().(*net.TCPAddr)
	if err := l.Close(); err != nil || !ok {
		return ""
	}
	host := a.IP.String()
	if a.IP.IsUnspecified() {
		host = "127.0.0.1"
	}
	return net.JoinHostPort(host, strconv.Itoa(a.Port))
}

// poster tells webhooks. It follows no redirect: where the request goes is
// what was configured.
type poster struct{ out *network.Outward }

// Post implements control.Poster.
func (p poster) Post(ctx context.Context, url string, body io.Reader) (int, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, url, body)
	if err != nil {
		return 0, err
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("User-Agent", agentName)
	hc := &http.Client{
		Transport:     &http.Transport{DisableKeepAlives: true, Proxy: http.ProxyFromEnvironment, DialContext: p.out.DialContext},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	resp, err := hc.Do(req)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	_, _ = io.CopyN(io.Discard, resp.Body, maxAnswer) // what it says does not matter
	return resp.StatusCode, nil
}

// failpoint ends this process, once, at the point of a rollout that the
// setting test_failpoint names: "rollout:updated". The second time the process
// goes on, as after a crash.
func failpoint(cfg config.Config) func(string) {
	want, ok := strings.CutPrefix(cfg.TestFailpoint, "rollout:")
	if !ok {
		return nil
	}
	mark := filepath.Join(cfg.Run, "failpoint")
	return func(point string) {
		if point != want {
			return
		}
		f, err := os.OpenFile(mark, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
		if err != nil {
			return // it has happened
		}
		_, _ = fmt.Fprintln(f, point)
		_ = f.Close()
		_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
		select {} // not a step further
	}
}
