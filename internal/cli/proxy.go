package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"regexp"
	"strconv"
	"strings"
	"sync"

	"github.com/spf13/cobra"

	"github.com/roost-run/roost/internal/client"
)

func newProxyCmd(f *factory) *cobra.Command {
	var bind string
	cmd := &cobra.Command{
		Use: "proxy LOCAL[:REMOTE] [HOST]", Short: "Forward a local port into an app's private network", Args: cobra.RangeArgs(1, 2),
		Long: `Forward a local port to a port of an app's machine, past the proxy, until ctrl-c.
HOST is a machine's id, or a name of the private network: APP.internal or
ID.vm.APP.internal. Without it, a machine of --app that runs is taken, else one
that can be woken. A machine is kept awake while connections are open.`,
		Example: "  roost proxy 15432:5432 --app db\n  roost proxy 6379 redis-app.internal",
		RunE: func(cmd *cobra.Command, args []string) error {
			local, remote, err := parseForward(args[0])
			if err != nil {
				return usageError{err}
			}
			machine := ""
			if len(args) > 1 {
				var app string
				if app, machine, err = parseProxyHost(args[1]); err != nil {
					return usageError{err}
				}
				f.app = first(app, f.app)
			}
			app, c, err := f.target()
			if err != nil {
				return err
			}
			return f.forward(cmd.Context(), c, app, machine, net.JoinHostPort(bind, strconv.Itoa(local)), remote)
		},
	}
	cmd.Flags().StringVarP(&bind, "bind-addr", "b", "127.0.0.1", "local address to listen on")
	return f.onApp(cmd)
}

// parseForward reads LOCAL[:REMOTE]; LOCAL 0 is any free port.
func parseForward(s string) (local, remote int, err error) {
	l, r, both := strings.Cut(s, ":")
	if !both {
		r = l
	}
	bad := fmt.Errorf("%q is not LOCAL[:REMOTE], such as 15432:5432", s)
	if local, err = strconv.Atoi(l); err != nil || local < 0 || local > 65535 {
		return 0, 0, bad
	}
	if remote, err = strconv.Atoi(r); err != nil || remote < 1 || remote > 65535 {
		return 0, 0, bad
	}
	return local, remote, nil
}

var machineID = regexp.MustCompile(`^[0-9a-f]{14}$`)

// parseProxyHost reads a machine's id, or a name of the private network.
func parseProxyHost(host string) (app, machine string, err error) {
	if machineID.MatchString(host) {
		return "", host, nil
	}
	bad := fmt.Errorf("%q is not a machine's id, APP.internal or ID.vm.APP.internal", host)
	name, ok := strings.CutSuffix(strings.TrimSuffix(host, "."), ".internal")
	if !ok {
		return "", "", bad
	}
	id, app, vm := strings.Cut(name, ".vm.")
	switch {
	case !vm && !strings.Contains(name, "."):
		return name, "", nil
	case vm && machineID.MatchString(id) && !strings.Contains(app, "."):
		return app, id, nil
	}
	return "", "", bad
}

// forward listens and passes each connection on, until ctx ends.
func (f *factory) forward(ctx context.Context, c *client.Client, app, machine, listen string, port int) error {
	if machine == "" {
		if _, err := c.App(ctx, app); err != nil { // now, not at the first connection
			return err
		}
	} else if _, err := c.Get(ctx, app, machine); err != nil {
		return unknownMachine(err, app)
	}
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", listen)
	if err != nil {
		return hintError{err, "another program may use that port: LOCAL 0 takes any free one"}
	}
	f.io.Notef("Proxying %s to port %d of %s; ctrl-c ends it", l.Addr(), port, first(machine, app))
	stop := context.AfterFunc(ctx, func() { _ = l.Close() })
	defer stop()
	var wg sync.WaitGroup
	defer wg.Wait()
	for {
		conn, err := l.Accept()
		if ctx.Err() != nil {
			return nil // a person has seen enough
		}
		if err != nil {
			return err
		}
		wg.Go(func() {
			if err := relay(ctx, c, conn, app, machine, port); err != nil && ctx.Err() == nil {
				message, _ := f.explain(err)
				f.io.Notef("Connection from %s: %s", conn.RemoteAddr(), message)
			}
		})
	}
}

// relay joins one connection to the machine's port until both have said all.
func relay(ctx context.Context, c *client.Client, conn net.Conn, app, machine string, port int) (err error) {
	defer conn.Close()
	tunnel, err := c.Dial(ctx, app, machine, port)
	if err != nil {
		return err
	}
	defer func() { _ = tunnel.Close() }() // what counts was said before
	stop := context.AfterFunc(ctx, func() { _, _ = conn.Close(), tunnel.Close() })
	defer stop()
	done := make(chan struct{})
	go func() {
		defer close(done)
		if _, err := io.Copy(tunnel, conn); err != nil {
			_ = tunnel.Close()
			return
		}
		_ = tunnel.CloseWrite() // the machine may have ended it
	}()
	_, err = io.Copy(conn, tunnel)
	if err != nil {
		_ = conn.Close() // ends the other direction
	} else if cw, ok := conn.(*net.TCPConn); ok {
		_ = cw.CloseWrite()
	}
	<-done
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}
