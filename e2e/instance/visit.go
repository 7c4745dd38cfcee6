package instance

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"

	"github.com/roost-run/roost/machines"
)

// DialEdge connects to where apps answer, whatever the name says: the
// DialContext of a transport that visits them.
func (in *Instance) DialEdge(ctx context.Context, network, _ string) (net.Conn, error) {
	var d net.Dialer
	return d.DialContext(ctx, network, in.Edge)
}

// Visitor is an HTTP client that finds every app at the edge. Its idle
// connections are the caller's to close.
func (in *Instance) Visitor() *http.Client {
	return &http.Client{Timeout: RequestTimeout, Transport: &http.Transport{MaxIdleConnsPerHost: 100, DialContext: in.DialEdge}}
}

// Get asks an app for a path and returns the answer with its whole body;
// header is names and values in turn. A status other than 200 is an error.
func Get(ctx context.Context, visitor *http.Client, host, path string, header ...string) (*http.Response, []byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+host+path, nil)
	if err != nil {
		return nil, nil, err
	}
	for i := 0; i+1 < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := visitor.Do(req)
	if err != nil {
		return nil, nil, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return nil, nil, fmt.Errorf("GET %s: %w", path, err)
	}
	if resp.StatusCode != http.StatusOK {
		return resp, body, fmt.Errorf("GET %s: status %d, Roost-Error %q: %.300s", path, resp.StatusCode, resp.Header.Get("Roost-Error"), body)
	}
	return resp, body, nil
}

// AsRoot is a Machines API client for root on the host: through the socket,
// without a token.
func (in *Instance) AsRoot() *machines.Client {
	return machines.New(machines.Options{BaseURL: "unix://" + filepath.Join(in.Run(), "api.sock")})
}
