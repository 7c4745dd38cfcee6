package roost

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"

	root "github.com/roost-run/roost"
	"github.com/roost-run/roost/internal/api/route"
	"github.com/roost-run/roost/internal/auth"
	"github.com/roost-run/roost/internal/client"
)

// Dialer reaches the ports of machines.
type Dialer interface {
	Dial(ctx context.Context, a auth.Actor, app root.AppName, id root.MachineID, port int) (net.Conn, *root.Machine, error)
}

// proxyChunk is how much is read from a machine for one frame.
const proxyChunk = 32 << 10

// proxy connects the upgraded connection to a port of a machine; see
// client.ProxyProtocol. Nothing is upgraded before the machine has answered.
func (h *handlers) proxy(w http.ResponseWriter, r *http.Request) error {
	app, err := route.App(r)
	if err != nil {
		return err
	}
	q := r.URL.Query()
	port, err := route.Int(q, "port", 1, 65535, 0)
	if err != nil {
		return err
	}
	id := root.MachineID("")
	if v := q.Get("machine"); v != "" {
		if id, err = root.ParseMachineID(v); err != nil {
			return err
		}
	}
	if !strings.EqualFold(r.Header.Get("Upgrade"), client.ProxyProtocol) {
		return root.Errorf(root.Invalid, "this route needs the header \"Upgrade: %s\"; `roost proxy` speaks it", client.ProxyProtocol)
	}
	upstream, m, err := h.Dialer.Dial(r.Context(), route.Actor(r), app, id, port)
	if err != nil {
		return err
	}
	defer upstream.Close()
	w.Header().Set("Connection", "Upgrade")
	w.Header().Set("Upgrade", client.ProxyProtocol)
	w.Header().Set("Roost-Machine", string(m.ID))
	w.WriteHeader(http.StatusSwitchingProtocols)
	conn, buffered, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return fmt.Errorf("proxy: %w", err)
	}
	defer conn.Close()
	up := make(chan error, 1) // one result
	go func() {
		err := upload(upstream, buffered)
		if err != nil {
			_ = upstream.Close() // the client is gone: ends the other direction, too
		}
		up <- err
	}()
	err = download(client.NewFrameWriter(conn), upstream)
	if err != nil {
		_ = conn.Close() // ends upload
	}
	// The machine says nothing more; the client may still have something to say.
	sent := <-up
	if errors.Is(err, net.ErrClosed) {
		err = nil
	}
	return errors.Join(err, sent)
}

// upload passes the client's frames on until it ends its direction.
func upload(to net.Conn, from io.Reader) error {
	for {
		kind, data, err := client.ReadFrame(from)
		switch {
		case err != nil:
			return errClientGone
		case kind != client.FrameStdin:
			continue
		case len(data) == 0:
			if cw, ok := to.(interface{ CloseWrite() error }); ok {
				_ = cw.CloseWrite() // the machine may be gone
			}
			return nil
		}
		if _, err := to.Write(data); err != nil {
			return nil // the machine takes nothing more; download says what follows
		}
	}
}

// download passes on what the machine says, and its end.
func download(to *client.FrameWriter, from io.Reader) error {
	buf := make([]byte, proxyChunk)
	for {
		n, err := from.Read(buf)
		if n > 0 {
			if e := to.Frame(client.FrameStdout, buf[:n]); e != nil {
				return errClientGone
			}
		}
		if err != nil { // also a reset: the client sees an end either way
			return to.Frame(client.FrameStdout, nil)
		}
	}
}
