package edge

import (
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	root "github.com/roost-run/roost"
	"github.com/roost-run/roost/internal/orders"
)

// One machine's connections to its /.fly/api do not use up the process.
func TestMachineConnectionsAreBounded(t *testing.T) {
	h := newHost(t)
	h.addMachine(root.Service{Autostop: root.AutostopOff}, root.StateStarted, orders.PhaseStarted)
	h.edge()
	h.startControl()
	path := filepath.Join(filepath.Dir(h.cfg.Run), "machine.sock")
	dial := func() net.Conn {
		t.Helper()
		var d net.Dialer
		c, err := d.DialContext(t.Context(), "unix", path)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() })
		return c
	}
	refused := func(c net.Conn, within time.Duration) bool {
		t.Helper()
		if err := c.SetReadDeadline(time.Now().Add(within)); err != nil {
			t.Fatal(err)
		}
		_, err := c.Read(make([]byte, 1))
		if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) && !errors.Is(err, io.EOF) {
			t.Fatal(err)
		}
		return errors.Is(err, io.EOF)
	}
	first := dial()
	for range maxAPIConns - 1 {
		dial()
	}
	if !refused(dial(), 10*time.Second) {
		t.Fatalf("connection %d of one machine is taken", maxAPIConns+1)
	}
	if refused(first, time.Millisecond) {
		t.Fatal("a connection that was taken is closed")
	}
	_ = first.Close()
	for end := time.Now().Add(10 * time.Second); ; {
		c := dial()
		_, err := io.WriteString(c, "GET /.fly/busy HTTP/1.0\r\n\r\n")
		if err == nil {
			_ = c.SetReadDeadline(time.Now().Add(5 * time.Second))
			var data []byte
			if data, err = io.ReadAll(c); err == nil && len(data) > 0 {
				break
			}
		}
		if time.Now().After(end) {
			t.Fatalf("no place after one left: %v", err)
		}
		<-time.After(10 * time.Millisecond)
	}
	if l := limited(nil, orders.ListenAPI); l != nil {
		t.Error("people's connections are bounded as if they were a machine's")
	}
}
