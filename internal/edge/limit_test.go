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
	"github.com/roost-run/roost/internal/patience"
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
	if !refused(dial(), patience.Limit) {
		t.Fatalf("connection %d of one machine is taken", maxAPIConns+1)
	}
	if refused(first, time.Millisecond) {
		t.Fatal("a connection that was taken is closed")
	}
	_ = first.Close()
	patience.Until(t, "a place after one left", func() bool {
		c := dial()
		defer c.Close()
		if _, err := io.WriteString(c, "GET /.fly/busy HTTP/1.0\r\n\r\n"); err != nil {
			return false
		}
		_ = c.SetReadDeadline(patience.Deadline())
		data, err := io.ReadAll(c)
		return err == nil && len(data) > 0
	})
	if l := limited(nil, orders.ListenAPI); l != nil {
		t.Error("people's connections are bounded as if they were a machine's")
	}
}
